"""Does a model compute the same with its own rotation put in through the seam?"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.encodings.base import EncodingModule, RotaryModule
from ropewalk.encodings.model_rotation import APPLY, RotaryLayer
from ropewalk.errors import UnsupportedModelError
from ropewalk.patching.activation import Switch
from ropewalk.patching.handle import put
from ropewalk.patching.layer_patch import Parts
from ropewalk.patching.probe_modules import EchoModule, LayerShape, WatchingAttention, WatchingEncoder
from ropewalk.patching.rotary_patch import LayerEncoder
from ropewalk.patching.separate_keys import ATTENTION, OwnKeyAttention

_TOKENS = 6
_shapes: weakref.WeakKeyDictionary[nn.Module, dict[int, LayerShape]] = weakref.WeakKeyDictionary()
_carrying: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_own_key_layers: weakref.WeakKeyDictionary[nn.Module, set[int]] = weakref.WeakKeyDictionary()


def observe(model: nn.Module, layers: tuple[RotaryLayer, ...]) -> dict[int, LayerShape] | None:
    """What each layer hands its rotation in a short pass with the model's own rotation put in through the
    seam.

    Layers that don't rotate are missing. None for a model whose weights aren't there to run (on the meta
    device). A model that passed once isn't asked again.

    Raises:
        UnsupportedModelError: the pass differs from one without the seam, or fails; the model is left as it
        was.
    """
    if any(p.device.type == "meta" for p in model.parameters()):
        return None
    if model not in _shapes:
        seen: dict[int, LayerShape] = {}
        own = {layer.index: layer.rope.module() for layer in layers}

        def names(layer: RotaryLayer) -> Mapping[str, Any]:
            from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

            encoder = WatchingEncoder(own[layer.index], layer.index, seen)
            return {APPLY: encoder, ATTENTION: WatchingAttention(ALL_ATTENTION_FUNCTIONS, layer.index, seen)}

        _compare(model, lambda: put(model, layers, names, Switch(model)), "its own rotation", "it can't be served")
        _shapes[model] = seen
    return _shapes[model]


def check_own_keys(model: nn.Module, layers: tuple[RotaryLayer, ...], made: Mapping[int, RotaryModule]) -> None:
    """Refuse a model in which heads can't have keys of their own: own keys equal to the shared one must
    change nothing.

    Raises:
        UnsupportedModelError: the pass differs from one without the seam, or fails; the model is left as it
        was.
    """
    if set(made) <= _own_key_layers.setdefault(model, set()):
        return

    def names(layer: RotaryLayer) -> Mapping[str, Any]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        own = layer.rope.module()
        if layer.index not in made:
            return {APPLY: LayerEncoder(own, own)}
        echo = EchoModule(own, made[layer.index])
        return {APPLY: LayerEncoder(echo, own), ATTENTION: OwnKeyAttention(ALL_ATTENTION_FUNCTIONS, echo)}

    kind = type(next(layer for layer in layers if layer.index in made).module).__name__
    _compare(
        model,
        lambda: put(model, layers, names, Switch(model)),
        f"keys of their own for some heads of {kind}",
        "use scope='kv_group'",
    )
    _own_key_layers[model] |= set(made)


def check_carried(model: nn.Module, layers: tuple[RotaryLayer, ...], shapes: Mapping[int, LayerShape]) -> None:
    """Refuse a model whose queries and keys can't reach attention as content with their positions beside.

    The model's own rotation, put in where attention happens, must change nothing.

    Raises:
        UnsupportedModelError: the pass differs from one without the seam, or fails; the model is left as it was.
    """
    if model in _carrying:
        return
    own: dict[int, EncodingModule] = {layer.index: layer.rope.module() for layer in layers}
    plain = {layer.index: layer.rope.module() for layer in layers}
    parts = Parts(own, plain, shapes, frozenset(own))
    _compare(
        model,
        lambda: put(model, layers, parts.of, Switch(model)),
        "content that carries its positions",
        "it can have rotations only",
    )
    _carrying.add(model)


def _compare(model: nn.Module, changed: Callable[[], AbstractContextManager[Any]], what: str, remedy: str) -> None:
    """Refuse the model unless a short pass gives the same with and without a change that shouldn't matter."""
    name = type(model).__name__
    with _at_rest(model):
        try:
            before = _short_pass(model)
        except Exception as error:
            text = f"{name} doesn't run on {_TOKENS} tokens alone ({_line(error)}); it can't be served"
            raise UnsupportedModelError(text) from error
        try:
            with changed():
                after = _short_pass(model)
        except Exception as error:
            text = f"{name} fails with {what} put in through the seam ({_line(error)}); {remedy}"
            raise UnsupportedModelError(text) from error
    tolerance = 5e-2 if before.dtype in (torch.bfloat16, torch.float16) else 1e-4
    scale = float(before.float().abs().max()) or 1.0
    difference = float((before.float() - after.float()).abs().max()) / scale
    if not difference <= tolerance:
        raise UnsupportedModelError(
            f"{name} computes otherwise with {what} put in through the seam (by {difference:.1e} of its "
            f"largest output); {remedy}"
        )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _short_pass(model: nn.Module) -> Tensor:
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    tokens = (torch.arange(_TOKENS, device=device) * 7 + 3) % vocabulary
    output = model(input_ids=tokens[None], use_cache=False)
    logits: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return logits


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout and no use of the caller's random numbers; all as before on exit."""
    training = [module for module in model.modules() if module.training]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"]
    with torch.no_grad(), torch.random.fork_rng(devices=sorted({d.index or 0 for d in devices})):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
