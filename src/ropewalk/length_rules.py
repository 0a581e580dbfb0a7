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
from ropewalk.schedule import (
    Rule,
    Schedule,
    check_factor,
    check_flag,
    check_length,
    check_positive,
    check_rotary_dim,
    default_schedule,
    wavelengths_in_radians,
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
