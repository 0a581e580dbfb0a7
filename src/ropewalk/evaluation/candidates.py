"""What a search tries: length rules with a few factors each, and DoPE plans on top of a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.analysis.statistics import Statistics
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.frequencies import Resonance, Rule, rule_for

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

# (mode, reading, score, r, indicator, order, heads): the papers' best rows first, then each reading once.
_DOPE: tuple[tuple[str, str, str, int | None, str, str, int], ...] = (
    ("gaussian", "rotation", "truncated_entropy", 32, "key", "ascending", 3),
    ("all", "nope", "truncated_entropy", 32, "key", "ascending", 3),
    ("parts", "unrotated", "truncated_entropy", 1, "key", "ascending", 5),
    ("all", "nope", "truncated_entropy", 1, "key", "ascending", 5),
    ("parts", "drop", "truncated_entropy", 1, "key", "ascending", 5),
    ("all", "zero", "truncated_entropy", 32, "key", "ascending", 3),
    ("gaussian", "multiply", "truncated_entropy", 32, "key", "ascending", 3),
    ("gaussian", "replace", "truncated_entropy", 32, "key", "ascending", 3),
    ("all", "nope", "truncated_effective_rank", 16, "query", "ascending", 5),
    ("parts", "unrotated", "truncated_effective_rank", 16, "query", "ascending", 10),
    ("all", "nope", "band_entropy", None, "key", "descending", 5),
    ("gaussian", "rotation", "truncated_effective_rank", 16, "query", "ascending", 5),
    ("parts", "unrotated", "band_entropy", None, "key", "descending", 10),
    ("all", "nope", "truncated_effective_rank", 8, "key", "ascending", 10),
)


@dataclass(frozen=True)
class Candidate:
    """One encoding to be measured, under a name that says what it is."""

    name: str
    encoding: Encoding

    @property
    def base(self) -> Encoding:
        """The RoPE beneath a DoPE plan; the encoding itself otherwise."""
        return self.encoding.rope if isinstance(self.encoding, DoPE) else self.encoding


def plain_candidate(own: RoPE | PerLayer) -> Candidate:
    """The model's own rotation, with no rule for more length than it was trained on."""
    return Candidate("plain", own)


def rule_candidates(
    own: RoPE | PerLayer,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool] = lambda _: True,
) -> list[Candidate]:
    """The length rules on a model's own rotation, likeliest first, each schedule once.

    LongRoPE isn't among them: its factor lists come from a search of their own, and none fits every model.

    Args:
        stretched: whether a layer's rotation takes the rule; layers with a window don't see far enough to need one.
    """
    stretch = max(1.0, target_length / original_length)
    found: list[Candidate] = []
    seen = [_schedules(own)]
    for name, multiples in _RULES:
        for multiple in multiples:
            factor = None if multiple is None else round(multiple * stretch, 2)
            rule = _rule(name, original_length, target_length, factor)
            encoding = with_rule(own, rule, stretched)
            schedules = _schedules(encoding)
            if any(_same(schedules, other) for other in seen):
                continue
            seen.append(schedules)
            found.append(Candidate(name if factor is None else f"{name} x{factor:g}", encoding))
    return found


def dope_candidates(
    base: Candidate, statistics: Statistics, original_length: int, seed: int = 42
) -> list[Candidate]:
    """DoPE plans on top of `base`, the papers' best first; each (mode, reading, heads) once."""
    rope = base.encoding
    assert isinstance(rope, RoPE | PerLayer)
    found: list[Candidate] = []
    seen: list[Encoding] = []
    total = len(statistics.layers) * statistics.num_heads
    for mode, reading, score, r, indicator, order, heads in _DOPE:
        rank = None if r is None else min(r, statistics.head_dim)
        selection = statistics.select(
            score, r=rank, indicator=indicator, stage="post_ntk", heads=min(heads, total), order=order
        )
        plan = DoPE(rope, selection, mode=mode, reading=reading, original_length=original_length, seed=seed)
        if plan in seen:
            continue
        seen.append(plan)
        chosen_by = f"{score}{'' if rank is None else f'-{rank}'}"
        found.append(
            Candidate(f"{base.name} + {mode}/{reading} of {len(selection)} ({chosen_by} {indicator})", plan)
        )
    return found


def with_rule(
    own: RoPE | PerLayer, rule: Rule | None, stretched: Callable[[int], bool] = lambda _: True
) -> RoPE | PerLayer:
    """A model's own rotation under another length rule, in those layers for which `stretched(layer)` is true."""
    if isinstance(own, RoPE):
        return dataclasses.replace(own, rule=rule)

    def change(layer: int, encoding: Encoding) -> Encoding:
        if not isinstance(encoding, RoPE) or not stretched(layer):
            return encoding
        return dataclasses.replace(encoding, rule=rule)

    return own.map(change)


def _rule(name: str, original_length: int, target_length: int, factor: float | None) -> Rule:
    if name.startswith("resonance+"):
        return Resonance(rule_for(name.removeprefix("resonance+"), original_length, target_length, factor))
    return rule_for(name, original_length, target_length, factor)


def _schedules(encoding: Any) -> list[Any]:
    ropes: Iterable[Any] = [e for _, e in encoding.layers] if isinstance(encoding, PerLayer) else [encoding]
    return [rope.schedule() for rope in ropes if isinstance(rope, RoPE)]


def _same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.allclose(a.frequencies, b.frequencies, rtol=1e-4, atol=0)
        and a.attention_scale == b.attention_scale
        for a, b in zip(one, other, strict=True)
    )
