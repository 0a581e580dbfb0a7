"""The length rules once more, slowly: plain Python floats, one pair at a time, from the papers' equations."""

from __future__ import annotations

import math


def default(rotary_dim: int, base: float) -> list[float]:
    """RoFormer (2104.09864): theta_c = base^(-2c/r)."""
    return [base ** (-2 * c / rotary_dim) for c in range(rotary_dim // 2)]


def linear(rotary_dim: int, base: float, factor: float) -> list[float]:
    """Position interpolation (2306.15595): position m becomes m/s, that is theta/s."""
    return [theta / factor for theta in default(rotary_dim, base)]


def ntk(rotary_dim: int, base: float, factor: float) -> list[float]:
    """YaRN paper (2309.00071), NTK-aware: b' = b s^(|D|/(|D|-2))."""
    return default(rotary_dim, base * factor ** (rotary_dim / (rotary_dim - 2)))


def dynamic_ntk(rotary_dim: int, base: float, target: int, original: int, factor: float) -> list[float]:
    """NTK-aware with s = f L'/L - (f - 1) where that is over 1."""
    return ntk(rotary_dim, base, max(1.0, factor * target / original - factor + 1))


def ntk_by_parts(rotary_dim: int, base: float, factor: float, original: int, fast: float, slow: float) -> list[float]:
    """YaRN paper, NTK-by-parts: h(theta) = (1 - g(r)) theta/s + g(r) theta, r = L / wavelength."""
    frequencies = []
    for theta in default(rotary_dim, base):
        turns = original / (2 * math.pi / theta)
        if turns < slow:
            gamma = 0.0
        elif turns > fast:
            gamma = 1.0
        else:
            gamma = (turns - slow) / (fast - slow)
        frequencies.append((1 - gamma) * theta / factor + gamma * theta)
    return frequencies


def yarn(
    rotary_dim: int, base: float, factor: float, original: int, fast: float, slow: float, truncate: bool
) -> list[float]:
    """The ramp runs over the index of the pair that turns L theta_c / (2 pi) times, for `fast` and `slow`."""
    ends = [rotary_dim / 2 * math.log(original / (2 * math.pi * turns), base) for turns in (fast, slow)]
    if truncate:
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    low, high = max(ends[0], 0), min(ends[1], rotary_dim - 1)
    frequencies = []
    for c, theta in enumerate(default(rotary_dim, base)):
        step = 1.0 if c > low else 0.0
        interpolated = min(max((c - low) / (high - low), 0.0), 1.0) if high != low else step
        frequencies.append(interpolated * theta / factor + (1 - interpolated) * theta)
    return frequencies


def yarn_scale(factor: float) -> float:
    """sqrt(1/t) = 0.1 ln(s) + 1."""
    return 0.1 * math.log(factor) + 1


def llama3(rotary_dim: int, base: float, factor: float, original: int, low: float, high: float) -> list[float]:
    """Llama 3.1: three cases by wavelength."""
    frequencies = []
    for theta in default(rotary_dim, base):
        wavelength = 2 * math.pi / theta
        if wavelength < original / high:
            frequencies.append(theta)
        elif wavelength > original / low:
            frequencies.append(theta / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            frequencies.append((1 - smooth) * theta / factor + smooth * theta)
    return frequencies


def longrope(rotary_dim: int, base: float, factors: list[float]) -> list[float]:
    """LongRoPE (2402.13753): theta_c / lambda_c."""
    return [theta / factor for theta, factor in zip(default(rotary_dim, base), factors, strict=True)]


def longrope_scale(factor: float, original: int) -> float:
    """sqrt(1 + ln s / ln L), 1 when nothing is stretched."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def resonance(frequencies: list[float]) -> list[float]:
    """Resonance RoPE (2403.00071): wavelengths rounded to whole tokens."""
    return [2 * math.pi / round(2 * math.pi / theta) for theta in frequencies]


def cope(frequencies: list[float], clipped: int) -> list[float]:
    """CoPE (2602.05258): the last `clipped` frequencies times a cosine from 1 down to 0."""
    kept = len(frequencies) - clipped
    tapered = list(frequencies)
    for j in range(clipped):
        phase = math.pi * j / (clipped - 1) if clipped > 1 else 0.0
        tapered[kept + j] *= (1 + math.cos(phase)) / 2
    return tapered
