"""Student's t distribution in plain Python: its distribution function and its quantiles."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


# 2^16 sign patterns take well under a second; beyond that only the t-test is given.
MOST_FLIPPED_CLUSTERS = 16


@dataclass(frozen=True)
class Answer:
    """One answered question: `nll` is the mean negative log-likelihood of an answer token, in nats."""

    prompt: str
    setting: str
    depth: float
    key: str
    expected: str
    nll: float
    is_exact: bool
    generated: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Answer:
        """The answer that `to_dict` wrote; a missing or unknown field is refused by name."""
        names = {field.name for field in dataclasses.fields(cls)}
        for name in sorted(names ^ data.keys()):
            raise ArgumentError(name, data.get(name), f"an answer has the fields {', '.join(sorted(names))}")
        return cls(**data)


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval [low, high]; a single value has the whole line as its interval.

    `n` values from `clusters` clusters. `is_clustered` is False when there was one cluster only: then the
    interval is over that cluster's values and says nothing about other haystacks.
    """

    mean: float
    low: float
    high: float
    standard_error: float
    n: int
    clusters: int
    is_clustered: bool
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict, in which an infinite bound or error is null."""
        plain = dataclasses.asdict(self)
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in plain.items()}


@dataclass(frozen=True)
class PairedDifference:
    """How a run differs from a baseline: `difference` is the mean of nll(run) - nll(baseline), in nats.

    `p_t`: two-sided t-test over clusters; where all are `alike`, the sign-flip test. `p_permutation`: two-sided exact
    sign-flip test over clusters, None past 16 clusters; with k clusters it can't fall below 2 / 2^k, so fewer than six
    can't reach 0.05, which is why the t-interval decides.
    """

    difference: Estimate
    p_t: float
    p_permutation: float | None

    @property
    def is_better(self) -> bool:
        """Whether the whole interval lies below zero: the run finds the right answers likelier."""
        return self.difference.high < 0

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval lies above zero: the run finds the right answers less likely."""
        return self.difference.low > 0


@dataclass(frozen=True)
class PairedExact:
    """Exact matches that a run won and lost against a baseline; `p`: McNemar's exact test, two-sided.

    The test takes questions as independent; where they share haystacks its p is too small.
    """

    won: int
    lost: int
    p: float


def mean_interval(values: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95) -> Estimate:
    """The mean of all values and its t-interval; clusters, a label for each value, are the independent units.

    With k >= 2 clusters the variance of the mean is k/(k-1) sum_c (S_c - n_c mean)^2 / n^2, S_c the sum and
    n_c the size of cluster c, at k - 1 degrees of freedom: the weighted variance of the cluster means. With
    one cluster the interval is over its values. Raises ArgumentError for no values, a value that isn't
    finite, or unequal lengths.
    """
    groups = _groups(values, clusters, confidence)
    mean, error, df = _mean_error(groups)
    reach = math.inf if df == 0 else 0.0 if error == 0 else error * t_quantile((1 + confidence) / 2, df)
    is_clustered = len(groups) > 1
    return Estimate(mean, mean - reach, mean + reach, error, len(values), len(groups), is_clustered, confidence)


def proportion_interval(successes: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95) -> Estimate:
    """The share of successes and its Wilson interval, always inside [0, 1].

    Clustered answers count for less: their number n is replaced by `effective_size` of deff = max(1, variance between
    clusters / binomial variance). With one cluster the interval is over its values. Where answers of a cluster nearly
    all agree the interval is too short: of ten answers each in ten clusters, a share of 0.1 is covered 0.91 of the time
    if they are correlated by 0.3 and 0.82 if by 0.6, since all are often alike then and deff can't be seen; means, as
    of the NLL, don't have that. Raises ArgumentError as `mean_interval` does.
    """
    values = [float(bool(success)) for success in successes]
    groups = _groups(values, clusters, confidence)
    n = len(values)
    p, clustered_error, _ = _mean_error(groups)
    if len(groups) > 1:
        return clustered_share(p, n, clustered_error, len(groups), confidence)
    low, high = wilson(p, n, NormalDist().inv_cdf((1 + confidence) / 2))
    return Estimate(p, low, high, math.sqrt(p * (1 - p) / n), n, 1, False, confidence)


def clustered_share(p: float, n: int, error: float, clusters: int, confidence: float = 0.95) -> Estimate:
    """A share p of n answers in 2 clusters or more, with its Wilson interval; error: p's standard error over them."""
    binomial = p * (1 - p) / n
    deff = max(1.0, error**2 / binomial) if binomial > 0 else 1.0
    size = effective_size(n, deff, clusters, confidence)
    low, high = wilson(p, size, NormalDist().inv_cdf((1 + confidence) / 2))
    return Estimate(p, low, high, math.sqrt(deff * binomial), n, clusters, True, confidence)


def effective_size(n: int, deff: float, clusters: int, confidence: float = 0.95) -> float:
    """How many independent answers n clustered ones are worth: n / deff (t_(n-1) / t_(k-1))^2, k clusters.

    t is Student's quantile: deff itself is only known from k clusters, and not at all where all answers are alike (Korn
    and Graubard, Survey Methodology 24, 1998). Answers that are each a cluster of their own count in full.
    """
    if clusters == n:
        return float(n)
    quantile = (1 + confidence) / 2
    return n / deff * (t_quantile(quantile, n - 1) / t_quantile(quantile, clusters - 1)) ** 2


def paired_difference(
    answers: Sequence[Answer], baseline: Sequence[Answer], confidence: float = 0.95
) -> PairedDifference:
    """Compare the nll of a run's answers with a baseline's on the same questions, clustered by prompt.

    Raises ArgumentError unless both have exactly the same (prompt, key) pairs with the same expected answers.
    """
    pairs = _matched(answers, baseline)
    values = [ours.nll - theirs.nll for ours, theirs in pairs]
    clusters = [ours.prompt for ours, _ in pairs]
    estimate = mean_interval(values, clusters, confidence)
    groups = _groups(values, clusters, confidence)
    mean, error, df = _mean_error(groups)
    if error == 0:
        estimate, p_t = alike(estimate)
    else:
        p_t = 1.0 if df == 0 else min(1.0, 2 * t_cdf(-abs(mean) / error, df))
    sums = [math.fsum(group) for group in groups]
    p_permutation = _sign_flip(sums) if len(sums) <= MOST_FLIPPED_CLUSTERS else None
    return PairedDifference(estimate, p_t, p_permutation)


def alike(difference: Estimate) -> tuple[Estimate, float]:
    """A difference that is the same, to the last digit, in each of k clusters; and its p.

    Nothing is known of its spread, so a t-test would be certain. Of sign patterns 2 in 2^k are as far from zero, which
    is p; where that is more than 1 - confidence the interval is the whole line. No difference at all has p = 1.
    """
    p = 1.0 if difference.mean == 0 else 0.5 ** (difference.clusters - 1)
    if difference.mean != 0 and p > 1 - difference.confidence:
        difference = dataclasses.replace(difference, low=-math.inf, high=math.inf)
    return difference, p


def paired_exact(answers: Sequence[Answer], baseline: Sequence[Answer]) -> PairedExact:
    """Compare exact matches on the same questions; raises ArgumentError as `paired_difference` does."""
    pairs = _matched(answers, baseline)
    won = sum(ours.is_exact and not theirs.is_exact for ours, theirs in pairs)
    lost = sum(theirs.is_exact and not ours.is_exact for ours, theirs in pairs)
    changed = won + lost
    tail = sum(math.comb(changed, i) for i in range(min(won, lost) + 1))
    return PairedExact(won, lost, min(1.0, 2 * tail / 2**changed))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where one is at most the family's error rate."""
    for p in p_values:
        if not 0 <= p <= 1:
            raise ArgumentError("p_values", p, "a p-value lies from 0 to 1")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _groups(values: Sequence[float], clusters: Sequence[Hashable], confidence: float) -> list[list[float]]:
    if len(values) != len(clusters):
        raise ArgumentError("clusters", len(clusters), f"give one label for each of the {len(values)} values")
    if not values:
        raise ArgumentError("values", [], "there is nothing to take the mean of; give at least one value")
    if not 0 < confidence < 1:
        raise ArgumentError("confidence", confidence, "must lie between 0 and 1, such as 0.95")
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        if not math.isfinite(value):
            raise ArgumentError("values", value, f"must be finite; look at what gave this in {cluster!r}")
        groups.setdefault(cluster, []).append(value)
    return list(groups.values())


def _mean_error(groups: list[list[float]]) -> tuple[float, float, int]:
    """(mean, standard error, degrees of freedom) over clusters, or over the values of a single cluster."""
    values = [value for group in groups for value in group]
    n = len(values)
    mean = math.fsum(values) / n
    units = groups if len(groups) > 1 else [[value] for value in values]
    k = len(units)
    if k == 1:
        return mean, math.inf, 0
    # Deviations are summed value by value: a group's sum less n_c times the mean would lose digits.
    squares = math.fsum(math.fsum(value - mean for value in unit) ** 2 for unit in units)
    return mean, math.sqrt(k / (k - 1) * squares) / n, k - 1


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval for a share p of n draws, at z standard errors."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The bounds touch 0 and 1 exactly when p does; rounding must not push them past p.
    return max(0.0, min(p, centre - reach)), min(1.0, max(p, centre + reach))


def _sign_flip(sums: list[float]) -> float:
    """The share of sign patterns of the cluster sums whose total is as far from zero as the real one's."""
    real = abs(math.fsum(sums))
    slack = 1e-12 * math.fsum(map(abs, sums))  # patterns that tie but for rounding count as ties
    totals = [0.0]
    for value in sums:
        totals = list(itertools.chain((t + value for t in totals), (t - value for t in totals)))
    return sum(abs(total) >= real - slack for total in totals) / len(totals)


def _matched(answers: Sequence[Answer], baseline: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    ours, theirs = _by_question(answers, "answers"), _by_question(baseline, "baseline")
    for prompt, key in sorted(ours.keys() ^ theirs.keys()):
        missing = "baseline" if (prompt, key) in ours else "answers"
        raise ArgumentError(missing, f"{prompt} {key}", "is missing; compare runs on the same prompts")
    for (prompt, key), answer in ours.items():
        if answer.expected != theirs[prompt, key].expected:
            raise ArgumentError(
                "baseline", f"{prompt} {key}", "expects another answer; compare runs on the same prompts"
            )
    return [(answer, theirs[question]) for question, answer in ours.items()]


def _by_question(answers: Sequence[Answer], name: str) -> dict[tuple[str, str], Answer]:
    found: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        question = answer.prompt, answer.key
        if question in found:
            raise ArgumentError(name, " ".join(question), "is there twice; give each answer once")
        found[question] = answer
    return found


Numbers = NDArray[np.float64]
CONFIDENCE = 0.95


def mean_of(means: Numbers, counts: Numbers) -> Estimate:
    """The mean of all answers and its t-interval, from each prompt's mean and number of answers."""
    total = float(counts.sum())
    mean = float(means @ counts) / total
    error = _error(means, counts, mean)
    df = len(means) - 1
    reach = math.inf if df == 0 else 0.0 if error == 0 else error * t_quantile((1 + CONFIDENCE) / 2, df)
    return Estimate(mean, mean - reach, mean + reach, error, int(total), len(means), df > 0, CONFIDENCE)


def share_of(right: Numbers, counts: Numbers) -> Estimate:
    """The share of right answers and its Wilson interval, as `clustered_share` has it; of one cluster, from 0 to 1."""
    total = float(counts.sum())
    p = float(right.sum()) / total
    if len(counts) == 1:
        return Estimate(p, 0.0, 1.0, math.inf, int(total), 1, False, CONFIDENCE)
    return clustered_share(p, int(total), _error(right / counts, counts, p), len(counts), CONFIDENCE)


def difference_of(means: Numbers, baseline: Numbers, counts: Numbers) -> tuple[Estimate, float]:
    """The mean difference to a baseline on the same prompts with its t-interval, and p of the two-sided t-test."""
    estimate = mean_of(means - baseline, counts)
    if estimate.standard_error == 0:
        return alike(estimate)
    if estimate.clusters == 1:
        return estimate, 1.0
    return estimate, min(1.0, 2 * t_cdf(-abs(estimate.mean) / estimate.standard_error, estimate.clusters - 1))


def _error(means: Numbers, counts: Numbers, mean: float) -> float:
    k = len(means)
    if k == 1:
        return math.inf
    deviations = (means - mean) * counts
    return math.sqrt(k / (k - 1) * float(deviations @ deviations)) / float(counts.sum())
