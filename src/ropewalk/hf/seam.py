"""The seam: an encoding into a Hugging Face model, and out again."""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ropewalk.encodings.base import Encoding, RotaryModule
from ropewalk.encodings.model_rotation import APPLY, RotaryLayer, layer_forward, model_config, rotary_layers
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.functions import global_names, rebind
from ropewalk.hf.encoder import LayerEncoder
from ropewalk.hf.own_keys import OwnKeyAttention
from ropewalk.hf.probe import check_served
from ropewalk.hf.step import Step, StepTables
from ropewalk.hf.when import Switch

_ATTENTION = "ALL_ATTENTION_FUNCTIONS"
_installed: weakref.WeakKeyDictionary[nn.Module, Handle] = weakref.WeakKeyDictionary()


class Handle:
    """An installed encoding; `remove()` puts back the very function objects that were there."""

    def __init__(self, model: nn.Module, encoding: Encoding, changes: list[_Change], switch: Switch):
        self.encoding = encoding
        self._model = weakref.ref(model)
        self._changes = changes
        self._switch = switch

    def remove(self) -> None:
        """Undo the installation; a second call does nothing."""
        for change in reversed(self._changes):
            change.undo()
        self._changes = []
        self._switch.disconnect()
        model = self._model()
        if model is not None and _installed.get(model) is self:
            del _installed[model]

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Change:
    """One attribute set on one object, and how it was before."""

    def __init__(self, owner: Any, name: str, value: Any):
        self._owner, self._name = owner, name
        self._had = name in owner.__dict__
        self._before = owner.__dict__.get(name)
        owner.__dict__[name] = value

    def undo(self) -> None:
        if self._had:
            self._owner.__dict__[self._name] = self._before
        else:
            self._owner.__dict__.pop(self._name, None)


def install(model: nn.Module, encoding: Encoding, when: str = "always", original_length: int | None = None) -> Handle:
    """Give every rotary attention layer of a Hugging Face model another encoding.

    Each attention layer gets its own copy of its forward in which two global names mean this layer's encoder and
    attention; the model's rotary module hands on positions instead of (cos, sin). Nothing global is patched: two
    models of one class can live side by side, one with and one without.

    Args:
        model: any causal model whose attention calls transformers' `apply_rotary_pos_emb`.
        encoding: RoPE, DoPE, NoPE or a PerLayer of them.
        when: `always`, or `long`: generations that fit `original_length` keep the model's own rotation.
        original_length: the training length in tokens; the config's `max_position_embeddings` when None.

    Raises:
        UnsupportedModelError: the architecture can't be served; nothing has been touched.
        ArgumentError: the encoding doesn't fit the model, or one is installed already.
    """
    if model in _installed:
        raise ArgumentError("model", type(model).__name__, "it has an encoding installed; remove() that one first")
    layers = rotary_layers(model)
    own = {layer.index: layer.rope.module() for layer in layers}
    check_served(model, lambda: _put(model, layers, own, own, Switch(model, "always", 1), None))
    made = _shared_modules(encoding, layers)
    _check_fits(layers, encoding, made)
    length = original_length or int(model_config(model).max_position_embeddings)
    return _put(model, layers, made, own, Switch(model, when, length), encoding)


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


def _shared_modules(encoding: Encoding, layers: tuple[RotaryLayer, ...]) -> dict[int, RotaryModule]:
    """A module for each layer; layers with the same encoding share one."""
    by_encoding: dict[Encoding, RotaryModule] = {}
    modules = {}
    for layer in layers:
        config = encoding.at(layer.index)
        if config not in by_encoding:
            module = config.module()
            if not isinstance(module, RotaryModule):
                raise ArgumentError("encoding", encoding.kind, "this kind isn't rotary and can't go through the seam")
            by_encoding[config] = module
        modules[layer.index] = by_encoding[config]
    return modules


def _check_fits(layers: tuple[RotaryLayer, ...], encoding: Encoding, made: dict[int, RotaryModule]) -> None:
    """Refuse before anything is touched what would fail, or worse not fail, in a forward pass."""
    selected = getattr(encoding, "heads", None)
    if selected is not None:
        known = {layer.index for layer in layers}
        for layer_index, head in selected:
            if layer_index not in known:
                raise ArgumentError("heads", (layer_index, head), f"the model's rotary layers are {_spans(known)}")
    for layer in layers:
        heads, groups = head_counts(layer)
        if selected is not None:
            for head in selected.in_layer(layer.index):
                if head >= heads:
                    raise ArgumentError("heads", (layer.index, head), f"the layer has query heads 0 to {heads - 1}")
        module = made[layer.index]
        width = getattr(encoding.at(layer.index), "width", None)
        if width is not None and width > layer.rope.head_dim:
            raise ArgumentError("rotary_dim", width, f"layer {layer.index} has heads of {layer.rope.head_dim} channels")
        if not module.own_keys(heads, groups):
            continue
        if _ATTENTION not in global_names(layer_forward(layer.module)):
            raise UnsupportedModelError(
                f"{type(layer.module).__name__} computes its attention itself, so a head can't have a key of its own "
                "there; use scope='kv_group'"
            )
        if _splits_outside(layer):
            raise UnsupportedModelError(
                f"{type(layer.module).__name__} cuts its keys before the rotation, so a head can't have a key of its "
                "own there; use scope='kv_group'"
            )


def head_counts(layer: RotaryLayer) -> tuple[int, int]:
    """(query heads, key/value heads) of an attention layer."""
    config = getattr(layer.module, "config", None)
    heads = getattr(config, "num_attention_heads", None) or getattr(layer.module, "num_heads", None)
    if heads is None:
        raise UnsupportedModelError(f"{type(layer.module).__name__} doesn't say how many heads it has")
    ratio = getattr(layer.module, "num_key_value_groups", None)
    groups = heads // ratio if ratio else getattr(config, "num_key_value_heads", None) or heads
    return int(heads), int(groups)


def _splits_outside(layer: RotaryLayer) -> bool:
    """Whether the layer hands only its rotating channels to `apply_rotary_pos_emb`, as phi and stablelm do."""
    code = getattr(layer_forward(layer.module), "__func__", layer_forward(layer.module)).__code__
    return layer.rope.width < layer.rope.head_dim and any(
        name in code.co_varnames for name in ("query_rot", "q_rot", "key_rot")
    )


def _spans(numbers: set[int]) -> str:
    ordered = sorted(numbers)
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))


def _put(
    model: nn.Module,
    layers: tuple[RotaryLayer, ...],
    made: dict[int, RotaryModule],
    own: dict[int, RotaryModule],
    switch: Switch,
    encoding: Encoding | None,
) -> Handle:
    """Make the changes; whatever happens midway, none of them stays."""
    changes: list[_Change] = []
    handle = Handle(model, encoding or layers[0].rope, changes, switch)
    try:
        for rotary in {id(layer.rotary): layer.rotary for layer in layers}.values():
            changes.append(_Change(rotary, "forward", types.MethodType(_position_giver(switch), rotary)))
        for layer in layers:
            changes.append(_layer_change(layer, made[layer.index], own[layer.index]))
        switch.connect()
    except BaseException:
        handle.remove()
        raise
    if encoding is not None:
        _installed[model] = handle
    return handle


def _position_giver(switch: Switch) -> Any:
    def forward(rotary: nn.Module, x: Tensor, position_ids: Tensor, *_: Any, **__: Any) -> Step:
        """In place of (cos, sin) of `position_ids` (B, N): the positions, and room for tables made once."""
        return Step(position_ids, StepTables(position_ids, switch.is_active))

    return forward


def _layer_change(layer: RotaryLayer, module: RotaryModule, plain: RotaryModule) -> _Change:
    names: dict[str, Any] = {APPLY: LayerEncoder(module, plain)}
    forward = layer_forward(layer.module)
    if module.own_keys(*head_counts(layer)):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        names[_ATTENTION] = OwnKeyAttention(ALL_ATTENTION_FUNCTIONS, module)
    copy = types.MethodType(rebind(forward, names), layer.module)
    place = "_old_forward" if "_old_forward" in layer.module.__dict__ else "forward"
    return _Change(layer.module, place, copy)
