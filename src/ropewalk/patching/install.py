"""The seam: an encoding into a Hugging Face model, and out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ropewalk.encodings.base import AbsoluteModule, Encoding, EncodingModule
from ropewalk.encodings.model_rotation import RotaryLayer, model_config, rotary_layers
from ropewalk.errors import ArgumentError
from ropewalk.patching.activation import Switch
from ropewalk.patching.handle import Handle, handle_of, has_encoding, put
from ropewalk.patching.layer_patch import Parts, carrying
from ropewalk.patching.requirements import fitting_shapes
from ropewalk.patching.rotary_patch import PlainRotation


def install(
    model: nn.Module,
    encoding: Encoding,
    when: str = "always",
    original_length: int | None = None,
    cache: str | None = None,
) -> Handle:
    """Give every rotary attention layer of a Hugging Face model another encoding.

    Each attention layer gets its own copy of its forward in which two global names mean this layer's encoder
    and attention; the model's rotary module hands on positions instead of (cos, sin). Nothing global is
    patched: two models of one class can live side by side, one with and one without. A deep copy of the
    model has the encoding too, and a handle of its own (`handle_of`); `save_pretrained` writes what it would
    without, and in its config which encoding it had: install in the model that you save, not in a part of it.

    An encoding that learns (PoPE's delta, a bias) becomes a submodule of each attention layer, `position_encoding`:
    the state dict, optimizers and `save_pretrained` see it, and `ropewalk.load` brings it back, installed as it was.

    Args:
        model: a causal model whose attention calls transformers' `apply_rotary_pos_emb`; most do.
        encoding: any; one that is added to the token vectors takes the rotation's place.
        when: `always`, or `long`: generations that fit `original_length` keep the model's own rotation.
        original_length: for `long`, the training length in tokens; the config's `max_position_embeddings`
        when None.
        cache: what a key/value cache holds: `encoded` keys, or their `content` with their positions, which is encoded
        anew at each step, so that a changed length rule is exact for keys already cached (one channel a key more).
        None: `encoded` for rotations and remaps, `content` for all else. A remap's encoded keys stand where they are
        read from afar; the near ones are turned back at each step.

    Raises:
        UnsupportedModelError: the architecture can't be served; nothing has been touched.
        ArgumentError: the encoding doesn't fit the model, or one is installed already.
    """
    if not isinstance(encoding, Encoding):
        raise ArgumentError("encoding", encoding, "give an encoding, such as RoPE.from_model(model)")
    if has_encoding(model):
        raise ArgumentError("model", type(model).__name__, "it has an encoding installed; remove() that one first")
    layers = rotary_layers(model)
    if when == "long" and original_length is None:
        original_length = getattr(model_config(model), "max_position_embeddings", None)
    switch = Switch(model, when, original_length, layers)
    made = _modules(encoding, layers)
    carried = carrying(encoding, made, cache)
    shapes = fitting_shapes(model, layers, encoding, made, carried)
    parts = Parts(made, {layer.index: PlainRotation(layer) for layer in layers}, shapes, carried, cache)
    # A layer that never rotates never asks its module, so what that could learn would get no gradient.
    used = {i: module for i, module in made.items() if i in shapes or isinstance(module, AbsoluteModule)}
    handle = put(model, layers, parts.of, switch, encoding, used)
    if reason := _no_continuous_batching(encoding, when, carried, parts.own_keys):
        handle.refuse_continuous_batching(reason)
    options: dict[str, Any] = {} if when == "always" else {"when": when, "original_length": original_length}
    handle.tell_config(options if cache is None else {**options, "cache": cache})
    return handle


@contextmanager
def installed(
    model: nn.Module,
    encoding: Encoding,
    when: str = "always",
    original_length: int | None = None,
    cache: str | None = None,
) -> Iterator[nn.Module]:
    """`install` for the length of a with block; undone on exit, exception or not.

    A model that always has this very encoding keeps it as it is: what it learned is in it, and a new one knows nothing.
    """
    if when == "always" and _always_has(model, encoding, cache):
        yield model
        return
    handle = install(model, encoding, when, original_length, cache)
    try:
        yield model
    finally:
        handle.remove()


def check_install(model: nn.Module, encoding: Encoding) -> None:
    """Refuse what `install` refuses, and leave the model as it is; it must be free of encodings."""
    with installed(model, encoding):
        pass


def _no_continuous_batching(encoding: Encoding, when: str, carried: frozenset[int], own_keys: bool) -> str:
    """Why an installed encoding can't be served by continuous batching; empty where it can."""
    if when == "long":
        return "one pass reads many requests, so when='long' can't decide for each; install with when='always'"
    if carried:
        return f"{encoding.kind} needs its keys with their positions, which a paged cache can't hold; use generate"
    if own_keys:
        remedy = "use generate, or scope='kv_group'"
        return f"{encoding.kind} gives some heads keys of their own, which a paged cache has no room for; {remedy}"
    return ""


def _always_has(model: nn.Module, encoding: Encoding, cache: str | None) -> bool:
    """Whether an encoding is installed for every pass, with such a cache if one is asked for."""
    present = handle_of(model)
    if present is None or present.encoding != encoding or "when" in present.options:
        return False
    return cache in (None, present.options.get("cache"))


def _modules(encoding: Encoding, layers: tuple[RotaryLayer, ...]) -> dict[int, EncodingModule]:
    """A module for each layer; layers with the same encoding on the same device share one, unless it learns."""
    shared: dict[tuple[Encoding, torch.device | None], EncodingModule] = {}
    modules: dict[int, EncodingModule] = {}
    for layer in layers:
        config = encoding.at(layer.index)
        device = _place(layer.module)
        module = shared.get((config, device))
        if module is None:
            built = config.module()
            if not isinstance(built, EncodingModule):
                raise ArgumentError("encoding", encoding.kind, "this kind can't go through the seam")
            module = built
            if next(module.parameters(), None) is None:
                shared[config, device] = module
            elif device is not None:
                module.to(device)
        modules[layer.index] = module
    return modules


def _place(layer: nn.Module) -> torch.device | None:
    """The device on which a layer computes; None where nothing says so, as for weights on the meta device."""
    places: list[torch.device] = []
    for module in layer.modules():
        # accelerate's hooks bring offloaded weights there for a pass; until then those are on the meta device.
        hook = getattr(module, "_hf_hook", None)
        wanted = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", (hook,))]
        places += [torch.device(device) for device in wanted if device is not None]
    places += [parameter.device for parameter in layer.parameters()]
    return next((place for place in places if place.type != "meta"), None)
