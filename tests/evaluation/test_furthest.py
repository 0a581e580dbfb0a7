"""Arms compared where texts are longest: p-values of the t-test, corrected, and whether the lowest stands out."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from ropewalk.evaluation.comparison import against_first, lead
from ropewalk.evaluation.statistics import holm

_DRAWS = random.Random(4)
# Windows differ more than arms do. `b` and `c` are below `a` by about 0.1, and `d` above it by next to nothing.
HARDNESS = [_DRAWS.gauss(2.0, 0.5) for _ in range(8)]
NATS = {
    name: [hardness + shift + _DRAWS.gauss(0.0, 0.03) for hardness in HARDNESS]
    for name, shift in (("a", 0.0), ("b", -0.1), ("c", -0.12), ("d", 0.01))
}


def p_of(one: str, other: str) -> float:
    """Of the paired t-test, by the area under Student's density (Simpson's rule, tails by 1/t)."""
    differences = [x - y for x, y in zip(NATS[one], NATS[other], strict=True)]
    df = len(differences) - 1
    t = abs(statistics.mean(differences)) / (statistics.stdev(differences) / math.sqrt(df + 1))
    scale = math.gamma((df + 1) / 2) / (math.gamma(df / 2) * math.sqrt(df * math.pi))

    def tail(u: float) -> float:  # the density at 1/u, times what 1/u is stretched by
        return scale * (1 + 1 / (df * u * u)) ** (-(df + 1) / 2) / u**2 if u else 0.0

    steps = 20_000
    ends = [tail(place / steps / t) for place in range(steps + 1)]
    return 2 * (ends[0] + ends[-1] + 4 * sum(ends[1::2]) + 2 * sum(ends[2:-1:2])) / (3 * steps * t)


def test_each_arm_is_compared_with_the_first_on_the_same_windows() -> None:
    found = against_first(NATS)
    wanted = [p_of(name, "a") for name in "bcd"]
    assert list(found) == ["b", "c", "d"]
    assert [one.p for one in found.values()] == pytest.approx(wanted, rel=1e-6)
    assert [one.adjusted for one in found.values()] == pytest.approx(holm(wanted), rel=1e-6)
    assert found["b"].adjusted > found["b"].p
    mean = sum(x - y for x, y in zip(NATS["b"], NATS["a"], strict=True)) / 8
    assert found["b"].difference.mean == pytest.approx(mean) and found["b"].is_better
    assert not found["d"].is_better and not found["d"].is_worse


def test_the_lowest_and_the_next_are_one_pair_of_all() -> None:
    found = lead(NATS)
    assert found is not None and (found.lowest, found.following) == ("c", "b")
    pairs = list(itertools.combinations("abcd", 2))
    wanted = dict(zip(pairs, holm([p_of(*pair) for pair in pairs]), strict=True))
    assert found.by.adjusted == pytest.approx(wanted["b", "c"], rel=1e-6)
    assert found.by.p == pytest.approx(p_of("b", "c"), rel=1e-6) and found.by.difference.mean < 0
    # Of arms that are alike one is the lowest always; among so many, chance alone makes a pair of them look apart.
    alike = {str(arm): [_DRAWS.gauss(0.0, 1.0) for _ in range(6)] for arm in range(12)}
    chosen = lead(alike)
    assert chosen is not None and chosen.by.adjusted > 0.05


def test_one_arm_leads_nobody_and_one_window_tells_nothing() -> None:
    assert lead({"a": [1.0, 2.0]}) is None and against_first({"a": [1.0, 2.0]}) == {}
    single = {"a": [2.0], "b": [1.0]}
    found = lead(single)
    assert found is not None and found.lowest == "b" and found.by.adjusted == 1.0 and not found.by.is_better
    assert against_first(single)["b"].adjusted == 1.0


def test_what_only_rounding_tells_apart_is_not_better() -> None:
    found = lead({"a": [1.0, 2.0, 3.0], "b": [1.0001, 2.0001, 3.0001]})
    assert found is not None and found.by.adjusted < 0.05 and not found.by.is_better
