"""Does an encoding fit a model? Asked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ropewalk.encodings.absolute import LearnedModule, SinusoidalModule
from ropewalk.encodings.base import BiasModule, Encoding, EncodingModule, RotaryModule, ScoreModule
from ropewalk.encodings.dape import DAPEModule
from ropewalk.encodings.dape_v2 import DAPEv2Module
from ropewalk.encodings.dope import READINGS, WHOLE_VECTOR, DoPE, DoPEModule
from ropewalk.encodings.dope_remap import DoPERemapModule
from ropewalk.encodings.model_rotation import RotaryLayer, model_config
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPEModule
from ropewalk.encodings.remap import RemapModule
from ropewalk.encodings.rope import RoPE, RoPEModule
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlusModule
from ropewalk.encodings.xpos import XPosModule
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.patching.compatibility import check_carried, check_own_keys, observe
from ropewalk.patching.content_attention import check_implementation
from ropewalk.patching.probe_modules import LayerShape

# What a model does with its scores, by the option under which its attention function is told.
_OPTIONS = {"softcap": "caps its scores (softcap)", "s_aux": "has attention sinks (s_aux)"}


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
        UnsupportedModelError: the seam can't serve the model, or can't give its heads keys of their own; or its
            attention caps scores or has sinks, which an encoding with scores of its own can't have.
        ArgumentError: a named layer or head isn't there, the encoding has another head size, number of heads or width,
            or the model's attention implementation or dtype can't serve it.
    """
    observed = observe(model, layers)
    shapes = {layer.index: _declared(layer) for layer in layers} if observed is None else observed
    for layer in layers:
        if layer.index in carried:
            name = getattr(getattr(layer.module, "config", None), "_attn_implementation", None)
            check_implementation(made[layer.index], name)
    known = {layer.index for layer in layers}
    _check_named_layers(encoding, known)
    _check_selected_layers(encoding, known, set(shapes))
    _check_width(model, made)
    for layer in layers:
        if layer.index in shapes:
            _check_size(layer, made[layer.index], shapes[layer.index])
            _check_heads(layer, made[layer.index], shapes[layer.index])
            _check_scores(layer, made[layer.index], shapes[layer.index])
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


def _check_named_layers(encoding: Encoding, known: set[int]) -> None:
    """Refuse a PerLayer, be it inside another encoding, with a layer that the model doesn't have."""
    for index, entry in encoding.layers if isinstance(encoding, PerLayer) else ():
        if index not in known:
            raise ArgumentError("layers", index, f"the model's rotary layers are {_spans(known)}")
        _check_named_layers(entry, known)
    for name in encoding.nested:
        if isinstance(inner := getattr(encoding, name), Encoding):
            _check_named_layers(inner, known)


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


def _check_width(model: nn.Module, made: Mapping[int, EncodingModule]) -> None:
    """Refuse vectors that can't be added to the token vectors, for their width."""
    channels = getattr(model_config(model), "hidden_size", None)
    for module in made.values():
        if isinstance(module, (SinusoidalModule, LearnedModule)) and channels not in (None, module.encoding.width):
            raise ArgumentError("width", module.encoding.width, f"the model's token vectors have {channels} channels")


def _check_size(layer: RotaryLayer, module: EncodingModule, shape: LayerShape) -> None:
    if isinstance(module, PoPEModule):
        _check_polar(layer, module, shape)
    if isinstance(module, XPosModule):
        _check_decaying(layer, module, shape)
    heads = _heads_of(module)
    if heads is not None and heads != shape.num_heads:
        raise ArgumentError("num_heads", heads, f"layer {layer.index} has {shape.num_heads} query heads")
    rope = _rope_of(module)
    if rope is None:
        return
    if rope.head_dim != layer.rope.head_dim:
        raise _other_head_size(layer, rope.head_dim)
    if rope.width > shape.channels:
        raise ArgumentError(
            "rotary_dim", rope.width, f"layer {layer.index} hands over {shape.channels} channels a head"
        )


def _check_polar(layer: RotaryLayer, module: PoPEModule, shape: LayerShape) -> None:
    pope = module.encoding
    if pope.head_dim != layer.rope.head_dim:
        raise _other_head_size(layer, pope.head_dim)
    attended = shape.num_kv_heads if shape.attended_kv_heads is None else shape.attended_kv_heads
    if pope.num_kv_heads != attended:
        raise ArgumentError("num_kv_heads", pope.num_kv_heads, f"layer {layer.index} has {attended} key heads")


def _check_decaying(layer: RotaryLayer, module: XPosModule, shape: LayerShape) -> None:
    size = module.head_dim
    # xPos turns all its channels: those of the head, or where the model turns a part, perhaps that part.
    if size not in (layer.rope.head_dim, layer.rope.width):
        raise _other_head_size(layer, size)
    if size > shape.channels:
        raise ArgumentError("head_dim", size, f"layer {layer.index} hands over {shape.channels} channels a head")
    if next((p.dtype for p in layer.module.parameters()), None) == torch.float16:
        remedy = "too narrow for xPos's scales; use torch.bfloat16 or torch.float32"
        raise ArgumentError("dtype", torch.float16, remedy)


def _other_head_size(layer: RotaryLayer, head_dim: int) -> ArgumentError:
    return ArgumentError("head_dim", head_dim, f"layer {layer.index} has heads of {layer.rope.head_dim} channels")


def _check_heads(layer: RotaryLayer, module: EncodingModule, shape: LayerShape) -> None:
    if isinstance(module, RoPEPlusPlusModule):
        module.encoding.imaginary_heads(shape.num_heads, shape.num_kv_heads)  # refuses heads that aren't there
    if not isinstance(module, DoPEModule | DoPERemapModule):
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


def _check_scores(layer: RotaryLayer, module: EncodingModule, shape: LayerShape) -> None:
    """Refuse scores of the encoding's own where the model changes scores: no attention implementation does both."""
    if isinstance(module, ScoreModule) and shape.options:
        names = " and ".join(_OPTIONS.get(option, option) for option in shape.options)
        kind = type(layer.module).__name__
        if isinstance(module, RemapModule):
            remedy = "a remap of positions can't have that; give a length rule, such as YaRN"
            raise UnsupportedModelError(f"{kind} {names}: {remedy}")
        raise UnsupportedModelError(f"{kind} {names}: not served with scores of its own")


def _heads_of(module: EncodingModule) -> int | None:
    """For how many query heads an encoding is made; None where it is for any number."""
    if isinstance(module, BiasModule):
        return module.num_heads
    return module.encoding.num_heads if isinstance(module, (DAPEModule, DAPEv2Module)) else None


def _rope_of(module: EncodingModule) -> RoPE | None:
    """The RoPE that a module turns by: its own, or that of the RoPE module inside (RoPE++, remaps)."""
    if isinstance(module, DoPEModule):
        return module.config
    inner = module if isinstance(module, RoPEModule) else getattr(module, "rope", None)
    return inner.encoding if isinstance(inner, RoPEModule) else None


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
