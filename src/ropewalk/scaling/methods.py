"""The length rules: each turns RoPE's base into the frequencies for a longer context, one class a method.

In the formulas r is the number of rotated channels, theta_c = base^(-2c/r) the frequency of pair c, L the
original length, L' the target length and s = L' / L the factor. Results are float32, rounded in the order of
operations that transformers uses, so a rule that both have gives the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError
from ropewalk.scaling.base import Rule, Schedule, default_schedule, wavelengths_in_radians
from ropewalk.validation import (
    check_factor,
    check_flag,
    check_length,
    check_positive,
    check_rotary_dim,
    checked_numbers,
)


@dataclasses.dataclass(frozen=True)
class Linear(Rule):
    """Position interpolation: every frequency divided by the factor, theta_c / s (arXiv 2306.15595, eq. 4).

    `factor` is s, at least 1. Leaves out the paper's fine-tuning; untuned models lose short-range resolution.
    """

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "divides every frequency by the factor"
    factor: float

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        return Schedule(default_schedule(rotary_dim, base).frequencies / self.factor)


@dataclasses.dataclass(frozen=True)
class NTK(Rule):
    """NTK-aware scaling: base' = base * s^(r/(r-2)) (arXiv 2309.00071, section 3.1).

    The fastest pair keeps its frequency and the slowest is divided by s. `factor` is s, at least 1. The same
    base for every length: no growth while tokens arrive. Needs at least 4 rotated channels.
    """

    name: ClassVar[str] = "ntk"
    summary: ClassVar[str] = "a larger base, so that slow pairs stretch and fast pairs stay"
    factor: float

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        return default_schedule(rotary_dim, _stretched_base(rotary_dim, base, self.factor))


@dataclasses.dataclass(frozen=True)
class DynamicNTK(Rule):
    """Dynamic NTK at one length: base' = base * (f L'/L - (f - 1))^(r/(r-2)) (arXiv 2309.00071, section 3.3).

    `target_length` L' is the longest context of the whole generation, `original_length` L the training
    length, both in tokens, and `factor` f at least 1. No change when L' <= L. Leaves out, on purpose, the
    recomputation while tokens arrive: keys cached under one base would meet queries under another
    (transformers issue 25104).
    """

    name: ClassVar[str] = "dynamic_ntk"
    summary: ClassVar[str] = "NTK with the base that one target length asks for"
    target_length: int
    original_length: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        check_length("target_length", self.target_length)
        check_length("original_length", self.original_length)
        check_factor("factor", self.factor)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        length = max(self.target_length, self.original_length)
        stretch = (self.factor * length / self.original_length) - (self.factor - 1)
        return default_schedule(rotary_dim, _stretched_base(rotary_dim, base, stretch))


@dataclasses.dataclass(frozen=True)
class NTKByParts(Rule):
    """Slow pairs interpolated, fast pairs kept, a ramp between (arXiv 2309.00071, section 3.2).

    theta'_c = (1 - g) theta_c / s + g theta_c, with g rising from 0 to 1 while the turns a pair makes over
    the original length, L theta_c / (2 pi), go from `beta_slow` to `beta_fast`. The ramp is linear in the
    turns, as the paper prints it; YaRN's is linear in the pair's index, as its authors' code has it. For
    YaRN's own ramp without its temperature use YaRN(..., attention_factor=1.0).
    """

    name: ClassVar[str] = "ntk_by_parts"
    summary: ClassVar[str] = "interpolates pairs that turn less than beta_fast times in the training length"
    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)
        check_length("original_length", self.original_length)
        _check_betas(self.beta_fast, self.beta_slow)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        frequencies = default_schedule(rotary_dim, base).frequencies
        turns = self.original_length * frequencies / (2 * math.pi)
        kept = ((turns - self.beta_slow) / (self.beta_fast - self.beta_slow)).clamp(0, 1)
        return Schedule((1 - kept) * (frequencies / self.factor) + kept * frequencies)


@dataclasses.dataclass(frozen=True)
class YaRN(Rule):
    """NTK-by-parts with a temperature: attention scale 0.1 ln s + 1 (arXiv 2309.00071, section 3.4, eq. 22).

    The ramp runs over the pair's index between the pairs that make `beta_fast` and `beta_slow` turns in
    `original_length` tokens; `truncate` rounds its ends outwards to whole indices, as the authors' code does.
    `attention_factor` replaces the temperature; `mscale` and `mscale_all_dim`, given together, make it (0.1
    mscale ln s + 1) / (0.1 mscale_all_dim ln s + 1), DeepSeek's form. Leaves out fine-tuning and "dynamic
    YaRN".
    """

    name: ClassVar[str] = "yarn"
    summary: ClassVar[str] = "interpolates slow pairs, keeps fast ones, and sharpens attention"
    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)
        check_length("original_length", self.original_length)
        _check_betas(self.beta_fast, self.beta_slow)
        for argument in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, argument) is not None:
                check_positive(argument, getattr(self, argument))
        check_flag("truncate", self.truncate)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        radians = wavelengths_in_radians(rotary_dim, base)
        kept = 1 - self._ramp(rotary_dim, base)
        frequencies = 1.0 / (self.factor * radians) * (1 - kept) + 1.0 / radians * kept
        return Schedule(frequencies, self._attention_scale())

    def _ramp(self, rotary_dim: int, base: float) -> Tensor:
        """How far each pair is interpolated, 0 to 1, (rotary_dim / 2,) float32."""
        low = self._index_of_turns(self.beta_fast, rotary_dim, base)
        high = self._index_of_turns(self.beta_slow, rotary_dim, base)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        if low == high:
            high += 0.001  # a step instead of a division by zero
        index = torch.arange(rotary_dim // 2, dtype=torch.float32, device="cpu")
        return ((index - low) / (high - low)).clamp(0, 1)

    def _index_of_turns(self, turns: float, rotary_dim: int, base: float) -> float:
        """The (fractional) index of the pair that makes `turns` turns in the original length."""
        return rotary_dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    def _attention_scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return _temperature(self.factor, self.mscale) / _temperature(self.factor, self.mscale_all_dim)
        return _temperature(self.factor, 1)


@dataclasses.dataclass(frozen=True)
class Llama3(Rule):
    """Llama 3.1's rule: by wavelength, keep, divide by the factor, or blend (arXiv 2407.21783).

    Wavelengths under L / high_freq_factor keep their frequency; over L / low_freq_factor it is divided by
    `factor`; between, the two are blended linearly in L / wavelength. The report gives no equation: this is
    the released code's.
    """

    name: ClassVar[str] = "llama3"
    summary: ClassVar[str] = "Llama 3.1's blend by wavelength"
    factor: float
    original_length: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)
        check_length("original_length", self.original_length)
        check_positive("low_freq_factor", self.low_freq_factor)
        check_positive("high_freq_factor", self.high_freq_factor)
        if self.high_freq_factor <= self.low_freq_factor:
            remedy = f"give more than low_freq_factor, {self.low_freq_factor!r}"
            raise ArgumentError("high_freq_factor", self.high_freq_factor, remedy)

    def _schedule(self, rotary_dim: int, base: float) -> Schedule:
        length, low, high = self.original_length, self.low_freq_factor, self.high_freq_factor
        frequencies = default_schedule(rotary_dim, base).frequencies
        wavelengths = 2 * math.pi / frequencies
        is_slow, is_fast = wavelengths > length / low, wavelengths < length / high
        kept = (length / wavelengths - low) / (high - low)
        blended = (1 - kept) * frequencies / self.factor + kept * frequencies
        stretched = torch.where(is_slow, frequencies / self.factor, frequencies)
        return Schedule(torch.where(is_slow | is_fast, stretched, blended))


def _stretched_base(rotary_dim: int, base: float, stretch: float) -> float:
    """base * stretch^(r/(r-2)), under which the slowest pair's frequency is divided by `stretch`."""
    check_rotary_dim("rotary_dim", rotary_dim, minimum=4)
    return float(base * stretch ** (rotary_dim / (rotary_dim - 2)))


def _temperature(factor: float, weight: float) -> float:
    """0.1 * weight * ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0


def _check_betas(beta_fast: Any, beta_slow: Any) -> None:
    check_positive("beta_fast", beta_fast)
    check_positive("beta_slow", beta_slow)
    if beta_fast <= beta_slow:
        raise ArgumentError("beta_fast", beta_fast, f"give more than beta_slow, {beta_slow!r}")


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
