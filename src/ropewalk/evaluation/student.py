"""Student's t distribution in plain Python: its distribution function and its quantiles."""

from __future__ import annotations

import functools
import math

from ropewalk.errors import ArgumentError

_TINY = 1e-300
_TERMS = 10_000


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) for Student's t with `df` > 0 degrees of freedom, by the incomplete beta function.

    P(|T| > t) = I_x(df/2, 1/2) with x = df / (df + t^2) (Abramowitz and Stegun, 26.7.1).
    """
    if not df > 0:
        raise ArgumentError("df", df, "must be positive")
    if math.isnan(t):
        raise ArgumentError("t", t, "must be a number")
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t), t * t / (df + t * t))
    return 1.0 - tail if t > 0 else tail


@functools.lru_cache(maxsize=4096)  # a summary of many cells asks for the same few thousands of times
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, for 0 < p < 1, by bisection on the tail down to neighbouring floats."""
    if not 0 < p < 1:
        raise ArgumentError("p", p, "must lie between 0 and 1")
    tail, sign = (p, -1.0) if p < 0.5 else (1 - p, 1.0)
    low, high = 0.0, 1.0
    while t_cdf(-high, df) > tail:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_cdf(-middle, df) > tail else (low, middle)
    return sign * low


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b) with rest = 1 - x, given apart because near x = 1 it can't be told from x."""
    if x <= 0:
        return 0.0
    if rest <= 0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    # The continued fraction converges fast below the mean; above it the mirrored function is below.
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(b, a, rest) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The incomplete beta's continued fraction (Abramowitz and Stegun, 26.5.8), by Lentz's method."""
    value = c = 1.0
    d = 0.0
    for n in range(1, _TERMS):
        m = n // 2
        if n % 2:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _away_from_zero(1.0 + step * d)
        c = _away_from_zero(1.0 + step / c)
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return 1.0 / value


def _away_from_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY
