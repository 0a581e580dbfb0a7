"""The length rules that set each frequency by itself: by lists, by rounding, by clipping, or as given."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError
from ropewalk.schedule import (
    Rule,
    Schedule,
    check_length,
    check_positive,
    checked_numbers,
    default_schedule,
    wavelengths_in_radians,
)


@dataclasses.dataclass(frozen=True)
class LongRoPE(Rule):
    """Each frequency divided by its own searched factor: theta_c / lambda_c (arXiv 2402.13753).

    `short_factor` serves target_length <= original_length (tokens), `long_factor` longer targets; each holds
    rotary_dim / 2 numbers. Attention scale: `attention_factor`, else sqrt(1 + ln f / ln L) with f = `factor`,
    else f = target_length / original_length, and 1 when f <= 1. One list serves a whole generation. Leaves
    out the search itself and the paper's unscaled first tokens (its n-hat), as the released models do.
    """

    name: ClassVar[str] = "longrope"
    summary: ClassVar[str] = "divides each frequency by its own factor from a searched list"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    target_length: int
    attention_factor: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        for argument in ("short_factor", "long_factor"):
            remedy = "give rotary_dim/2 finite numbers over 0"
            numbers = checked_numbers(argument, getattr(self, argument), math.ulp(0.0), remedy)
            object.__setattr__(self, argument, numbers)
        check_length("original_length", self.original_length)
        check_length("target_length", self.target_length)
        if self.attention_factor is not None:
            check_positive("attention_factor", self.attention_factor)
        if self.factor is not None:
            check_positive("factor", self.factor)
        if self.original_length < 2:
            raise ArgumentError("original_length", self.original_length, "give at least 2: its log divides")

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        radians = wavelengths_in_radians(rotary_dim, base)
        for argument in ("short_factor", "long_factor"):
            _check_count(argument, getattr(self, argument), rotary_dim)
        is_long = self.target_length > self.original_length
        numbers = self.long_factor if is_long else self.short_factor
        factors = torch.tensor(numbers, dtype=torch.float32, device="cpu")
        return Schedule(1.0 / (factors * radians), self._attention_scale())

    def _attention_scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        factor = self.target_length / self.original_length if self.factor is None else self.factor
        return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(self.original_length))


@dataclasses.dataclass(frozen=True)
class Resonance(Rule):
    """Every wavelength rounded to whole tokens: 2 pi / round(2 pi / theta_c) (arXiv 2403.00071).

    `rule` is the rule whose schedule is rounded (Resonance YaRN is Resonance(YaRN(...))), or None for plain
    RoPE. A wavelength under one token becomes one; a pair that doesn't turn stays still. The rounded values
    are found in float64 from the float32 schedule; halves round to even. The inner rule's attention scale is
    kept.
    """

    name: ClassVar[str] = "resonance"
    summary: ClassVar[str] = "rounds every wavelength to a whole number of tokens"
    rule: Rule | None = None

    def __post_init__(self) -> None:
        _check_inner(self.rule)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        inner = _inner_schedule(self.rule, rotary_dim, base)
        whole = (2 * math.pi / inner.frequencies.double()).round().clamp(min=1)
        return Schedule((2 * math.pi / whole).float(), inner.attention_scale)


@dataclasses.dataclass(frozen=True)
class CoPE(Rule):
    """Clipped RoPE: the n slowest pairs tapered to rest by a raised cosine (arXiv 2602.05258).

    theta'_c = theta_c (1 + cos(pi j / (n - 1))) / 2 for the j-th of the n slowest pairs, j = 0 .. n - 1: the
    first keeps its frequency and the last stands still (cos 1, sin 0: content alone). The formula is that of
    the authors' released code, which fixes n = 20 for Llama-3-8B (64 pairs); give that as `clipped`. With
    `original_length` L (tokens) instead, n counts the pairs whose wavelength 2 pi / theta_c exceeds L, the
    paper's description of the pairs out of distribution. Exactly one of the two is given. `rule` is the rule
    whose schedule is clipped, or None for plain RoPE. n = 1 changes nothing. Leaves out the hard clip that
    the paper compares with.
    """

    name: ClassVar[str] = "cope"
    summary: ClassVar[str] = "softly brings pairs slower than the training length to rest"
    original_length: int | None = None
    clipped: int | None = None
    rule: Rule | None = None

    def __post_init__(self) -> None:
        if (self.original_length is None) == (self.clipped is None):
            raise ArgumentError("clipped", self.clipped, "give clipped or original_length, not both")
        if self.original_length is not None:
            check_length("original_length", self.original_length)
        clipped = self.clipped
        if clipped is not None and (not isinstance(clipped, int) or isinstance(clipped, bool) or clipped < 0):
            raise ArgumentError("clipped", clipped, "give the number of slowest pairs to clip, 0 or more")
        _check_inner(self.rule)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        inner = _inner_schedule(self.rule, rotary_dim, base)
        frequencies = inner.frequencies.clone()
        count = min(self._count(frequencies), len(frequencies))
        # a linear space of one point is its start, so a single clipped pair keeps its frequency
        phase = torch.linspace(0.0, math.pi, count, dtype=torch.float32, device="cpu")
        frequencies[len(frequencies) - count :] *= 0.5 * (1.0 + torch.cos(phase))
        return Schedule(frequencies, inner.attention_scale)

    def _count(self, frequencies: Tensor) -> int:
        """How many of the slowest pairs are clipped."""
        if self.original_length is not None:
            return int((2 * math.pi / frequencies > self.original_length).sum())
        return self.clipped or 0


@dataclasses.dataclass(frozen=True)
class Given(Rule):
    """Frequencies as they were given: any schedule read off a model, when no other rule describes it.

    `frequencies` holds rotary_dim / 2 finite numbers of at least 0, in radians per position. The base is
    ignored, so there's no formula and no paper; nothing adapts to a length.
    """

    name: ClassVar[str] = "given"
    summary: ClassVar[str] = "frequencies as they were read off a model"
    frequencies: tuple[float, ...]
    attention_scale: float = 1.0

    def __post_init__(self) -> None:
        remedy = "give rotary_dim/2 finite numbers of at least 0"
        object.__setattr__(self, "frequencies", checked_numbers("frequencies", self.frequencies, 0.0, remedy))
        check_positive("attention_scale", self.attention_scale)

    @classmethod
    def of(cls, schedule: Schedule) -> Given:
        """The rule that gives back this schedule, bit by bit."""
        return cls(tuple(schedule.frequencies.tolist()), float(schedule.attention_scale))

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        _check_count("frequencies", self.frequencies, rotary_dim)
        frequencies = torch.tensor(self.frequencies, dtype=torch.float32, device="cpu")
        return Schedule(frequencies, self.attention_scale)


def _inner_schedule(rule: Rule | None, rotary_dim: int, base: float) -> Schedule:
    return default_schedule(rotary_dim, base) if rule is None else rule.schedule(rotary_dim, base)


def _check_inner(rule: Any) -> None:
    if rule is not None and not isinstance(rule, Rule):
        raise ArgumentError("rule", rule, "give a length rule, such as YaRN(...), or None")


def _check_count(argument: str, numbers: tuple[float, ...], rotary_dim: int) -> None:
    if len(numbers) != rotary_dim // 2:
        remedy = f"rotary_dim {rotary_dim} needs {rotary_dim // 2} numbers"
        raise ArgumentError(f"len({argument})", len(numbers), remedy)
