"""Another encoding for a trained model, by name: fitted to the rotation that it has, and put in that one's place."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.model_rotation import RotaryLayer, model_config, rotary_layers
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus
from ropewalk.encodings.xpos import XPos
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.evaluation.candidates import is_rope, rotation_to_stretch
from ropewalk.patching.handle import handle_of
from ropewalk.patching.install import check_install, install
from ropewalk.scaling import rule_for, rules
from ropewalk.training.models import OWN_DRAWS
from ropewalk.training.presets import NAMES, Shape, named

OWN = "own"
# Rules that a name alone describes.
RULES = tuple(name for name in rules() if name not in ("longrope", "given"))
# DroPE's schedule begins with a rotation; dropped from the first step on, it is `nope`.
SWAPS = (OWN, *(name for name in NAMES if name != "drope"), *RULES)


def encoding_for(model: nn.Module, name: str, length: int, factor: float | None = None) -> Encoding | None:
    """What a name means for a trained model that is to read `length` tokens; None for `own`: leave it as it is.

    `rope` is the model's own rotation without a length rule, a rule's name that rotation with the rule. PoPE and other
    kinds of rotation take the base and the partial width of the model's own, layer by layer.

    Args:
        model: the model, with whatever encoding it has.
        name: one of `SWAPS`.
        length: tokens of the sequences to come.
        factor: of a length rule; None: `length` over the model's training length.

    Raises:
        ArgumentError: an unknown name, a factor for what takes none, a rule that would change nothing.
    """
    check_name(name, factor)
    if name == OWN:
        return None
    if name in RULES:
        return _ruled(model, name, length, factor)
    return _same_everywhere({layer.index: _fitted(model, layer, name, length) for layer in rotary_layers(model)})


def check_name(name: str, factor: float | None = None) -> None:
    """Refuse a name that isn't in `SWAPS`, and a factor for a name that takes none."""
    if name not in SWAPS:
        raise unknown_name("encoding", name, SWAPS)
    if factor is not None and name not in RULES:
        raise ArgumentError("factor", factor, f"is for length rules ({', '.join(RULES)}), not for {name}; leave it out")


def swap(model: nn.Module, encoding: Encoding | None, seed: int) -> None:
    """Put an encoding in the place of the one that a model has; None leaves the model as it is.

    What the encoding draws for itself comes from the seed alone. Raises ArgumentError or UnsupportedModelError for an
    encoding that doesn't fit the model.
    """
    if encoding is None:
        return
    present = handle_of(model)
    if present is not None:
        present.remove()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + OWN_DRAWS)
        install(model, encoding)


def check_fit(model: nn.Module, encoding: Encoding | None) -> None:
    """Refuse an encoding that doesn't fit a model, before any work; a model that has one already is let through."""
    if encoding is not None and handle_of(model) is None:
        check_install(model, encoding)


def _ruled(model: nn.Module, name: str, length: int, factor: float | None) -> Encoding:
    original = getattr(model_config(model), "max_position_embeddings", None)
    if original is None:
        raise ArgumentError("encoding", name, "the model's config doesn't tell its training length; rules need it")
    if length <= original and factor is None and name not in ("resonance", "cope"):
        remedy = f"the model was trained on {original} tokens: {name} would change nothing; give more, or a factor"
        raise ArgumentError("length", length, remedy)
    present = handle_of(model)
    if present is not None and not is_rope(present.encoding):
        remedy = f"the model has no rotation that {name} could stretch, it has {type(present.encoding).__name__}"
        raise ArgumentError("encoding", name, f"{remedy}; choose own, or an encoding")
    own, is_stretched = rotation_to_stretch(model, original)
    rule = rule_for(name, original, max(length, original), factor)

    def changed(layer: int, rope: Encoding) -> Encoding:
        return dataclasses.replace(rope, rule=rule) if isinstance(rope, RoPE) and is_stretched(layer) else rope

    return own.map(changed) if isinstance(own, PerLayer) else dataclasses.replace(own, rule=rule)


def _fitted(model: nn.Module, layer: RotaryLayer, name: str, length: int) -> Encoding:
    """A named encoding with the sizes, base and width of one layer's own rotation."""
    rope, config = dataclasses.replace(layer.rope, rule=None), model_config(model)
    if name == "rope":
        return rope
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    longest = max(length, getattr(config, "max_position_embeddings", None) or length)
    made = named(name, Shape(rope.head_dim, heads, key_heads, config.hidden_size, longest)).encoding
    if isinstance(made, PoPE):
        return dataclasses.replace(made, base=rope.base, rotary_dim=rope.rotary_dim)
    if isinstance(made, XPos):
        return dataclasses.replace(made, base=rope.base, layout=rope.layout)
    return dataclasses.replace(made, rope=rope) if isinstance(made, RoPEPlusPlus) else made


def _same_everywhere(layers: dict[int, Encoding]) -> Encoding:
    first = next(iter(layers.values()))
    return first if all(one == first for one in layers.values()) else PerLayer(tuple(layers.items()))
