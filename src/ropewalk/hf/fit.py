"""Does an encoding fit a model? Asked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from ropewalk.encodings.base import BiasModule, Encoding, EncodingModule, RotaryModule
from ropewalk.encodings.dope import READINGS, WHOLE_VECTOR, DoPE, DoPEModule
from ropewalk.encodings.model_rotation import RotaryLayer
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPEModule
from ropewalk.encodings.rope import RoPE, RoPEModule
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.hf.content import check_implementation
from ropewalk.hf.echo import LayerShape
from ropewalk.hf.probe import check_carried, check_own_keys, observe


def fitting_shapes(
    model: nn.Module,
    layers: tuple[RotaryLayer, ...],
    encoding: Encoding,
    made: Mapping[int, EncodingModule],
    carried: frozenset[int] = frozenset(),
) -> dict[int, LayerShape]:
    """What each rotating layer hands its rotation; refuses a model or an encoding that doesn't fit.

    In `carried` layers content reaches attention with its positions.

    Raises:
        UnsupportedModelError: the seam can't serve the model, or can't give its heads keys of their own.
        ArgumentError: a selected layer or head isn't there, the encoding has another head size or width, or the
            model's attention implementation can't serve it.
    """
    observed = observe(model, layers)
    shapes = {layer.index: _declared(layer) for layer in layers} if observed is None else observed
    for layer in layers:
        if layer.index in carried:
            name = getattr(getattr(layer.module, "config", None), "_attn_implementation", None)
            check_implementation(made[layer.index], name)
    _check_selected_layers(encoding, {layer.index for layer in layers}, set(shapes))
    for layer in layers:
        if layer.index in shapes:
            _check_size(layer, made[layer.index], shapes[layer.index])
            _check_heads(layer, made[layer.index], shapes[layer.index])
    own = {
        index: module
        for index, shape in shapes.items()
        if isinstance(module := made[index], RotaryModule) and module.own_keys(shape.num_heads, shape.num_kv_heads)
    }
    if observed is not None:
        if own:
            check_own_keys(model, layers, own)
        if carried:
            check_carried(model, layers, shapes)
    return shapes


def _check_selected_layers(encoding: Encoding, known: set[int], rotating: set[int]) -> None:
    entries = encoding.layers if isinstance(encoding, PerLayer) else ((None, encoding),)
    for only, entry in entries:
        for layer, head in entry.heads if isinstance(entry, DoPE) else ():
            if only is not None and layer != only:
                continue
            if layer not in known:
                raise ArgumentError("heads", (layer, head), f"the model's rotary layers are {_spans(known)}")
            if layer not in rotating:
                remedy = f"layer {layer} has no rotation to remove; layers with one: {_spans(rotating)}"
                raise ArgumentError("heads", (layer, head), remedy)


def _check_size(layer: RotaryLayer, module: EncodingModule, shape: LayerShape) -> None:
    if isinstance(module, PoPEModule):
        _check_polar(layer, module, shape)
    if isinstance(module, BiasModule) and module.num_heads != shape.num_heads:
        raise ArgumentError("num_heads", module.num_heads, f"layer {layer.index} has {shape.num_heads} query heads")
    rope = _rope_of(module)
    if rope is None:
        return
    if rope.head_dim != layer.rope.head_dim:
        raise ArgumentError(
            "head_dim", rope.head_dim, f"layer {layer.index} has heads of {layer.rope.head_dim} channels"
        )
    if rope.width > shape.channels:
        raise ArgumentError(
            "rotary_dim", rope.width, f"layer {layer.index} hands over {shape.channels} channels a head"
        )


def _check_polar(layer: RotaryLayer, module: PoPEModule, shape: LayerShape) -> None:
    pope = module.encoding
    if pope.head_dim != layer.rope.head_dim:
        raise ArgumentError(
            "head_dim", pope.head_dim, f"layer {layer.index} has heads of {layer.rope.head_dim} channels"
        )
    attended = shape.num_kv_heads if shape.attended_kv_heads is None else shape.attended_kv_heads
    if pope.num_kv_heads != attended:
        raise ArgumentError("num_kv_heads", pope.num_kv_heads, f"layer {layer.index} has {attended} key heads")


def _check_heads(layer: RotaryLayer, module: EncodingModule, shape: LayerShape) -> None:
    if not isinstance(module, DoPEModule):
        return
    kind, dope = type(layer.module).__name__, module.dope
    for head in dope.heads.in_layer(layer.index):
        if head >= shape.num_heads:
            remedy = f"the layer has query heads 0 to {shape.num_heads - 1}"
            raise ArgumentError("heads", (layer.index, head), remedy)
    if dope.reading in WHOLE_VECTOR and shape.channels < layer.rope.head_dim:
        remedy = (
            f"{kind} hands over {shape.channels} of {layer.rope.head_dim} channels; "
            f"use {READINGS[dope.mode][0]!r}, which needs no others"
        )
        raise ArgumentError("reading", dope.reading, remedy)
    if shape.is_regrouped and shape.num_heads > shape.num_kv_heads:
        raise UnsupportedModelError(
            f"{kind} deals its key heads out in an order of its own: which query head reads which is unknown"
        )


def _rope_of(module: EncodingModule) -> RoPE | None:
    if isinstance(module, DoPEModule):
        return module.config
    if isinstance(module, RoPEModule):
        return module.encoding
    rope = getattr(module, "rope", None)
    return rope if isinstance(rope, RoPE) else None


def _declared(layer: RotaryLayer) -> LayerShape:
    """A layer's shape by its config, for models that can't be run."""
    config = getattr(layer.module, "config", None)
    heads = getattr(config, "num_attention_heads", None) or getattr(layer.module, "num_heads", None)
    if heads is None:
        raise UnsupportedModelError(f"{type(layer.module).__name__} doesn't say how many heads it has")
    ratio = getattr(layer.module, "num_key_value_groups", None)
    groups = heads // ratio if ratio else getattr(config, "num_key_value_heads", None) or heads
    return LayerShape(int(heads), int(groups), layer.rope.head_dim)


def _spans(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    if ordered and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered)) or "none"
