"""The seam: an encoding into a Hugging Face model, and out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ropewalk.encodings.base import Encoding, RotaryModule
from ropewalk.encodings.model_rotation import APPLY, RotaryLayer, model_config, rotary_layers
from ropewalk.errors import ArgumentError
from ropewalk.hf.encoder import LayerEncoder
from ropewalk.hf.fit import fitting_shapes
from ropewalk.hf.handle import Handle, has_encoding, put
from ropewalk.hf.own_keys import ATTENTION, OwnKeyAttention
from ropewalk.hf.when import Switch


def install(model: nn.Module, encoding: Encoding, when: str = "always", original_length: int | None = None) -> Handle:
    """Give every rotary attention layer of a Hugging Face model another encoding.

    Each attention layer gets its own copy of its forward in which two global names mean this layer's encoder
    and attention; the model's rotary module hands on positions instead of (cos, sin). Nothing global is
    patched: two models of one class can live side by side, one with and one without. A deep copy of the
    model has the encoding too, and a handle of its own (`handle_of`); `save_pretrained` writes what it would
    without.

    Args:
        model: any causal model whose attention calls transformers' `apply_rotary_pos_emb`.
        encoding: RoPE, DoPE, NoPE or a PerLayer of them.
        when: `always`, or `long`: generations that fit `original_length` keep the model's own rotation.
        original_length: for `long`, the training length in tokens; the config's `max_position_embeddings`
        when None.

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
    switch = Switch(model, when, original_length)
    made = _modules(encoding, layers)
    shapes = fitting_shapes(model, layers, encoding, made)
    plain = {layer.index: layer.rope.module() for layer in layers}

    def names(layer: RotaryLayer) -> Mapping[str, Any]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        module, shape = made[layer.index], shapes.get(layer.index)
        changed: dict[str, Any] = {APPLY: LayerEncoder(module, plain[layer.index])}
        if shape is not None and module.own_keys(shape.num_heads, shape.num_kv_heads):
            changed[ATTENTION] = OwnKeyAttention(ALL_ATTENTION_FUNCTIONS, module)
        return changed

    return put(model, layers, names, switch, encoding)


@contextmanager
def installed(
    model: nn.Module, encoding: Encoding, when: str = "always", original_length: int | None = None
) -> Iterator[nn.Module]:
    """`install` for the length of a with block; undone on exit, exception or not."""
    handle = install(model, encoding, when, original_length)
    try:
        yield model
    finally:
        handle.remove()


def _modules(encoding: Encoding, layers: tuple[RotaryLayer, ...]) -> dict[int, RotaryModule]:
    """A module for each layer; layers with the same encoding on the same device share one."""
    shared: dict[tuple[Encoding, torch.device | None], RotaryModule] = {}
    modules = {}
    for layer in layers:
        config = encoding.at(layer.index)
        device = next((p.device for p in layer.module.parameters()), None)
        if (config, device) not in shared:
            module = config.module()
            if not isinstance(module, RotaryModule):
                raise ArgumentError("encoding", encoding.kind, "this kind isn't rotary and can't go through the seam")
            shared[config, device] = module
        modules[layer.index] = shared[config, device]
    return modules
