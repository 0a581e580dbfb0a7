"""What a search tries: length rules with a few factors each, and DoPE plans on top of a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn

from ropewalk.analysis.head_statistics import Statistics
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import WHOLE_VECTOR, DoPE
from ropewalk.encodings.model_rotation import model_config, own_rotation, rotary_layers
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rope import RoPE
from ropewalk.errors import ArgumentError, UnsupportedModelError
from ropewalk.heads import HeadSelection
from ropewalk.patching import installed
from ropewalk.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, NTKByParts, Resonance, Rule, YaRN, rule_for

# (rule, multiples of target / original that serve as its factor); None where the rule has no factor. The order is
# that of promise, so that a small budget tries the likeliest first: past the training length a factor well above
# target / original was seen to help more than the nominal one.
_RULES: tuple[tuple[str, tuple[float | None, ...]], ...] = (
    ("yarn", (1.5,)),
    ("ntk", (2.0,)),
    ("ntk_by_parts", (1.5,)),
    ("llama3", (2.0,)),
    ("yarn", (2.0,)),
    ("dynamic_ntk", (None,)),
    ("resonance+yarn", (1.5,)),
    ("cope", (None,)),
    ("linear", (1.0,)),
    ("ntk", (3.0, 1.5)),
    ("ntk_by_parts", (2.0, 1.0)),
    ("yarn", (1.0, 3.0)),
    ("llama3", (1.0,)),
    ("ntk", (4.0,)),
    ("resonance+ntk", (2.0,)),
    ("linear", (1.5,)),
)

# For a model with a rule of its own: multiples of target / original by which that rule's factor grows.
_FURTHER = (1.0, 1.5, 2.0)

# (mode, reading, score, r, indicator, order, heads): the papers' best rows first, then each reading once.
_DOPE: tuple[tuple[str, str, str, int | None, str, str, int], ...] = (
    ("gaussian", "rotation", "truncated_entropy", 32, "key", "ascending", 3),
    ("all", "nope", "truncated_entropy", 32, "key", "ascending", 3),
    ("parts", "unrotated", "truncated_entropy", 1, "key", "ascending", 5),
    ("parts", "drop", "truncated_entropy", 1, "key", "ascending", 5),
    ("all", "zero", "truncated_entropy", 32, "key", "ascending", 3),
    ("gaussian", "multiply", "truncated_entropy", 32, "key", "ascending", 3),
    ("gaussian", "replace", "truncated_entropy", 32, "key", "ascending", 3),
    ("all", "nope", "truncated_entropy", 1, "key", "ascending", 5),
    ("all", "nope", "truncated_effective_rank", 16, "query", "ascending", 5),
    ("parts", "unrotated", "truncated_effective_rank", 16, "query", "ascending", 10),
    ("all", "nope", "band_entropy", None, "key", "descending", 5),
    ("gaussian", "rotation", "truncated_effective_rank", 16, "query", "ascending", 5),
    ("parts", "unrotated", "band_entropy", None, "key", "descending", 10),
    ("all", "nope", "truncated_effective_rank", 8, "key", "ascending", 10),
)

# On a remap: how many rows of the table are tried in one view before the next.
_ROWS_A_VIEW = 3


@dataclass(frozen=True)
class Candidate:
    """One encoding to be measured, under a name that says what it is."""

    name: str
    encoding: Encoding


def plain_candidate(own: RoPE | PerLayer) -> Candidate:
    """The model's own rotation, with no rule for more length than it was trained on."""
    return Candidate("plain", own)


def is_rope(encoding: Encoding | None) -> TypeGuard[RoPE | PerLayer]:
    """Whether an encoding is RoPE in every layer that has one; None, a module of the user's own, isn't known to be."""
    each = [one for _, one in encoding.layers] if isinstance(encoding, PerLayer) else [encoding]
    return all(isinstance(one, RoPE) for one in each)


def rotation_to_stretch(
    model: nn.Module, original_length: int, saved: RoPE | PerLayer | None = None
) -> tuple[RoPE | PerLayer, Callable[[int], bool]]:
    """A model's rotation, its architecture's unless it was `saved` with another, and which layers a rule changes.

    Layers with a sliding window that the training length holds never meet a distance that they weren't trained on, so
    they keep their rotation: then the rotation comes as a PerLayer, also where all layers turn alike. A model all of
    whose layers are such is stretched whole: there, only measuring can tell.
    """
    own, config = saved or own_rotation(model), model_config(model)
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    layers = rotary_layers(model)
    near = set()
    if types and (window is None or window <= original_length):
        near = {layer.index for layer in layers if "sliding" in str(types[layer.index])}
    if not near or len(near) == len(layers):
        return own, lambda _: True
    return PerLayer(tuple((layer.index, own.at(layer.index)) for layer in layers)), lambda layer: layer not in near


def rule_candidates(
    own: RoPE | PerLayer,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool] = lambda _: True,
) -> list[Candidate]:
    """The length rules on a model's own rotation, likeliest first, each schedule once.

    First comes a rule that the model has already, taken further. LongRoPE isn't among the others: its factor lists
    come from a search of their own, and none fits every model. A rule that can't serve the model's sizes is left out.

    Args:
        stretched: whether a layer's rotation takes the rule; layers with a window don't see far enough to need one.
    """
    stretch = max(1.0, target_length / original_length)
    tried = [
        *_further(own, stretch, target_length, stretched),
        *_ruled(own, stretch, original_length, target_length, stretched),
    ]
    found: list[Candidate] = []
    seen = [_schedules(own)]
    for candidate in tried:
        schedules = _schedules(candidate.encoding)
        if not any(_same(schedules, other) for other in seen):
            seen.append(schedules)
            found.append(candidate)
    return found


def dope_candidates(
    base: Candidate, statistics: Statistics, original_length: int, seed: int = 42, scope: str = "query_head"
) -> list[Candidate]:
    """DoPE plans on top of `base`, a rule or a remap, the papers' best first; each (mode, reading, heads) once.

    Readings that need whole heads are left out where the model hands over only the channels that turn. On a remap each
    row comes three times: for its far view, its near view and both, the first rows of all views before later ones.
    """
    rope = base.encoding
    assert isinstance(rope, RoPE | Remap | PerLayer)
    first = rope.at(statistics.layers[0])
    first = first.single_rope() if isinstance(first, Remap) else first
    is_cut = isinstance(first, RoPE) and statistics.head_dim < first.head_dim
    found: list[Candidate] = []
    seen: list[Encoding] = []
    total = len(statistics.layers) * statistics.num_heads
    for (mode, reading, score, r, indicator, order, heads), view in _rows_and_views(is_remap(rope)):
        if is_cut and reading in WHOLE_VECTOR:
            continue
        rank = None if r is None else min(r, statistics.head_dim)
        selection = statistics.select(
            score, r=rank, indicator=indicator, stage="post_ntk", heads=min(heads, total), order=order
        )
        plan = DoPE(
            rope,
            selection,
            mode=mode,
            reading=reading,
            original_length=original_length,
            seed=seed,
            scope=scope,
            view=view,
        )
        if plan in seen:
            continue
        seen.append(plan)
        chosen_by = f"{score}{'' if rank is None else f'-{rank}'}"
        where = f" {view}" if is_remap(rope) else ""
        name = f"{base.name} + DoPE {mode}/{reading}{where}, {len(selection)} heads ({chosen_by} {indicator})"
        found.append(Candidate(name, plan))
    return found


def is_remap(encoding: Encoding) -> bool:
    """Whether an encoding is a remap of positions, in some layers at least."""
    if isinstance(encoding, PerLayer):
        return any(isinstance(entry, Remap) for _, entry in encoding.layers)
    return isinstance(encoding, Remap)


def _rows_and_views(is_remap: bool) -> list[tuple[tuple[str, str, str, int | None, str, str, int], str]]:
    """Rows of the table with the view in which heads are changed, likeliest first."""
    if not is_remap:
        return [(row, "both") for row in _DOPE]
    blocks = [_DOPE[start : start + _ROWS_A_VIEW] for start in range(0, len(_DOPE), _ROWS_A_VIEW)]
    return [(row, view) for block in blocks for view in ("far", "near", "both") for row in block]


def serving_scope(model: nn.Module, base: Candidate, statistics: Statistics) -> str:
    """The scope in which a model can have DoPE: `query_head`, or `kv_group` where heads can't have own keys."""
    rope = base.encoding
    assert isinstance(rope, RoPE | Remap | PerLayer)
    every = DoPE(rope, HeadSelection((layer, 0) for layer in statistics.layers))
    try:
        with installed(model, every):
            return "query_head"
    except UnsupportedModelError:
        return "kv_group"


def _further(
    own: RoPE | PerLayer, stretch: float, target_length: int, stretched: Callable[[int], bool]
) -> list[Candidate]:
    """The rule that a model was trained with, for a longer target; nothing for a model without."""
    found: list[Candidate] = []
    ropes = [own] if isinstance(own, RoPE) else [e for layer, e in own.layers if stretched(layer)]
    rule = next((r.rule for r in ropes if isinstance(r, RoPE) and _taken_further(r.rule, stretch, target_length)), None)
    for multiple in _FURTHER if rule is not None else ():

        def change(rope: RoPE, by: float = multiple * stretch) -> Rule | None:
            return _taken_further(rope.rule, by, target_length) or rope.rule

        further = _taken_further(rule, multiple * stretch, target_length)
        factor = "" if isinstance(rule, DynamicNTK | LongRoPE) else f" x{getattr(further, 'factor', 0):g}"
        name = "" if rule is None else rule.name
        found += _with_rules(f"own {name}{factor}", own, change, stretched)
    return found


def _taken_further(rule: Rule | None, by: float, target_length: int) -> Rule | None:
    """The rule for a target that is `by` times longer; None for rules that have no such thing."""
    if isinstance(rule, DynamicNTK | LongRoPE):
        return dataclasses.replace(rule, target_length=target_length)
    if isinstance(rule, Linear | NTK | NTKByParts | YaRN | Llama3):
        return dataclasses.replace(rule, factor=round(rule.factor * by, 2))
    return None


def _ruled(
    own: RoPE | PerLayer,
    stretch: float,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool],
) -> list[Candidate]:
    """The rules of the table in place of whatever rule the model has."""
    found: list[Candidate] = []
    for name, multiples in _RULES:
        for multiple in multiples:
            factor = None if multiple is None else round(multiple * stretch, 2)
            rule = _rule(name, original_length, target_length, factor)

            def change(_: RoPE, rule: Rule = rule) -> Rule:
                return rule

            found += _with_rules(name if factor is None else f"{name} x{factor:g}", own, change, stretched)
    return found


def _with_rules(
    name: str, own: RoPE | PerLayer, change: Callable[[RoPE], Rule | None], stretched: Callable[[int], bool]
) -> list[Candidate]:
    """The rotation with the rule `change(rope)` in the stretched layers; nothing where a rule can't serve them."""

    def changed(layer: int, rope: Encoding) -> Encoding:
        if isinstance(rope, RoPE) and stretched(layer):
            return dataclasses.replace(rope, rule=change(rope))
        return rope

    try:
        encoding = own.map(changed) if isinstance(own, PerLayer) else dataclasses.replace(own, rule=change(own))
    except ArgumentError:  # the rule can't serve so few channels
        return []
    return [Candidate(name, encoding)]


def _rule(name: str, original_length: int, target_length: int, factor: float | None) -> Rule:
    if name.startswith("resonance+"):
        return Resonance(rule_for(name.removeprefix("resonance+"), original_length, target_length, factor))
    return rule_for(name, original_length, target_length, factor)


def _schedules(encoding: Any) -> list[Any]:
    ropes: Iterable[Any] = [e for _, e in encoding.layers] if isinstance(encoding, PerLayer) else [encoding]
    return [rope.schedule() for rope in ropes if isinstance(rope, RoPE)]


def _same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.allclose(a.frequencies, b.frequencies, rtol=1e-4, atol=0) and a.attention_scale == b.attention_scale
        for a, b in zip(one, other, strict=True)
    )
