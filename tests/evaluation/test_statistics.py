from __future__ import annotations

import itertools
import json
import math
import random
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import statistics as oracle

from ropewalk.errors import ArgumentError
from ropewalk.evaluation.shares import share_difference
from ropewalk.evaluation.statistics import (
    Answer,
    holm,
    mean_interval,
    paired_difference,
    paired_exact,
    proportion_interval,
    t_cdf,
    t_quantile,
)

# Two-sided 95 % and 99 % critical values: NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
NIST = [
    (1, 0.975, 12.706), (1, 0.995, 63.657), (2, 0.975, 4.303), (3, 0.975, 3.182), (4, 0.975, 2.776),
    (5, 0.95, 2.015), (7, 0.975, 2.365), (9, 0.975, 2.262), (9, 0.995, 3.250), (30, 0.975, 2.042),
    (100, 0.975, 1.984),
]  # fmt: skip

finite = st.floats(-1e3, 1e3)
clustered = st.lists(st.tuples(finite, st.integers(0, 4)), min_size=2, max_size=30)


def answer(prompt: str, key: str, nll: float = 1.0, is_exact: bool = False, expected: str = "7") -> Answer:
    return Answer(prompt, "original", 0.5, key, expected, nll, is_exact, "")


class TestStudent:
    @pytest.mark.parametrize(("df", "p", "t"), NIST)
    def test_quantiles_are_the_table_s(self, df, p, t):
        assert t_quantile(p, df) == pytest.approx(t, abs=5.1e-4)
        assert t_quantile(1 - p, df) == pytest.approx(-t, abs=5.1e-4)

    @pytest.mark.parametrize("df", [1, 2, 3.5, 9, 40, 1000])
    @pytest.mark.parametrize("t", [-6.0, -1.3, -1e-3, 0.0, 0.4, 2.0, 8.0])
    def test_cdf_is_the_density_s_integral(self, t, df):
        assert t_cdf(t, df) == pytest.approx(oracle.t_cdf(t, df), abs=1e-10)

    @pytest.mark.parametrize("t", [-1e8, -30.0, -0.5, 3.0])
    def test_closed_forms_of_one_and_two_degrees(self, t):
        one = 0.5 + math.atan(t) / math.pi if t > -10 else math.atan(-1 / t) / math.pi
        assert t_cdf(t, 1) == pytest.approx(one, rel=1e-10)
        root = math.sqrt(2 + t * t)
        two = (root + t) / (2 * root) if t > 0 else 1 / (root * (root - t))
        assert t_cdf(t, 2) == pytest.approx(two, rel=1e-10)

    def test_many_degrees_are_the_normal_distribution(self):
        assert t_quantile(0.975, 1e7) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-6)

    @given(st.floats(1e-6, 1 - 1e-6), st.floats(0.5, 500))
    def test_quantile_and_cdf_are_inverse(self, p, df):
        assert t_cdf(t_quantile(p, df), df) == pytest.approx(p, rel=1e-8)

    def test_bad_arguments(self):
        for call in (lambda: t_cdf(1, 0), lambda: t_cdf(math.nan, 2), lambda: t_quantile(1.0, 3)):
            with pytest.raises(ArgumentError):
                call()


class TestMeanInterval:
    @given(clustered)
    def test_is_the_sandwich_estimator_s(self, rows):
        values, clusters = [v for v, _ in rows], [c for _, c in rows]
        result = mean_interval(values, clusters)
        k = len(set(clusters))
        assert (result.n, result.clusters, result.is_clustered) == (len(rows), k, k > 1)
        mean, error = oracle.clustered_mean(values, clusters if k > 1 else list(range(len(rows))))
        assert result.mean == pytest.approx(mean, abs=1e-9)
        assert result.standard_error == pytest.approx(error, abs=1e-9)
        df = k - 1 if k > 1 else len(rows) - 1
        assert result.high - result.mean == pytest.approx(t_quantile(0.975, df) * error, abs=1e-7)
        assert result.low <= result.mean <= result.high

    def test_equal_clusters_give_the_textbook_interval_of_their_means(self):
        values = [1.0, 3.0, 4.0, 6.0, 9.0, 11.0]  # cluster means 2, 5, 10
        result = mean_interval(values, ["a", "a", "b", "b", "c", "c"])
        assert result.mean == pytest.approx(17 / 3)
        assert result.standard_error == pytest.approx(np.std([2, 5, 10], ddof=1) / math.sqrt(3))
        assert result.high == pytest.approx(17 / 3 + 4.302653 * result.standard_error, rel=1e-6)

    def test_one_cluster_uses_its_values_and_says_so(self):
        result = mean_interval([1.0, 2.0, 3.0], ["a"] * 3)
        assert not result.is_clustered
        assert result.standard_error == pytest.approx(1 / math.sqrt(3))

    def test_one_value_has_the_whole_line(self):
        result = mean_interval([2.0], ["a"])
        assert (result.low, result.mean, result.high) == (-math.inf, 2.0, math.inf)
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["low"] is None

    def test_equal_values_have_no_width(self):
        result = mean_interval([0.1] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2])
        assert result.low == pytest.approx(0.1, abs=1e-15)
        assert result.high == pytest.approx(0.1, abs=1e-15)

    def test_intervals_cover_as_often_as_they_say(self):
        """Correlated answers: the clustered interval covers about 95 %, one over the answers far less."""
        rng = np.random.default_rng(5)
        draws = rng.normal(size=(800, 6, 1)) + 0.5 * rng.normal(size=(800, 6, 10))
        clusters = [c for c in range(6) for _ in range(10)]
        hits = naive = 0
        for draw in draws:
            result = mean_interval(draw.ravel().tolist(), clusters)
            hits += result.low <= 0 <= result.high
            result = mean_interval(draw.ravel().tolist(), [0] * 60)
            naive += result.low <= 0 <= result.high
        assert 0.93 <= hits / 800 <= 0.97
        assert naive / 800 < 0.65

    @pytest.mark.parametrize(
        ("values", "clusters", "argument"),
        [
            ([], [], "values"),
            ([1.0], [], "clusters"),
            ([1.0, math.nan], [0, 1], "values"),
            ([math.inf], [0], "values"),
        ],
    )
    def test_bad_values(self, values, clusters, argument):
        with pytest.raises(ArgumentError) as error:
            mean_interval(values, clusters)
        assert error.value.argument == argument

    def test_bad_confidence(self):
        with pytest.raises(ArgumentError, match="confidence=95"):
            mean_interval([1.0], [0], confidence=95)


class TestProportionInterval:
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
    def test_is_wilson_s_with_the_design_effect(self, rows):
        hits, clusters = [h for h, _ in rows], [c for _, c in rows]
        result = proportion_interval(hits, clusters)
        n, p = len(hits), sum(hits) / len(hits)
        deff = 1.0
        if 1 < len(set(clusters)) < n and 0 < p < 1:
            deff = max(1.0, oracle.clustered_mean([float(h) for h in hits], clusters)[1] ** 2 / (p * (1 - p) / n))
        k, size = len(set(clusters)), n / deff
        if 1 < k < n:
            size *= (t_quantile(0.975, n - 1) / t_quantile(0.975, k - 1)) ** 2
        low, high = oracle.wilson(p, size, 1.959963984540054)
        assert result.mean == pytest.approx(p)
        assert (result.low, result.high) == pytest.approx((low, high), abs=1e-6)
        assert 0 <= result.low <= result.mean <= result.high <= 1

    def test_published_value(self):
        """Newcombe 1998, Statistics in Medicine 17, 857-872, table I: 81 of 263, score method."""
        result = proportion_interval([True] * 81 + [False] * 182, list(range(263)))
        assert (result.low, result.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)

    @pytest.mark.parametrize(("hits", "of"), [(1, 3), (6, 8), (0, 5), (2, 2)])
    def test_answers_of_clusters_of_their_own_count_in_full(self, hits, of):
        result = proportion_interval([True] * hits + [False] * (of - hits), range(of))
        assert (result.low, result.high) == pytest.approx(oracle.wilson(hits / of, of, 1.959963984540054))

    def test_answers_that_go_together_count_as_one(self):
        hits = [True] * 10 + [False] * 10 + [True] * 10 + [False] * 10
        alone = proportion_interval(hits, list(range(40)))
        together = proportion_interval(hits, [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10)
        assert together.high - together.low > 2 * (alone.high - alone.low)

    @pytest.mark.parametrize(("clusters", "share"), [(2, 0.5), (3, 0.8), (5, 0.3), (5, 0.9), (10, 0.5)])
    def test_few_clusters_are_covered_as_often_as_it_says(self, clusters, share):
        """Ten answers a cluster, correlated by 0.3: an interval with the normal quantile covers 0.79 to 0.89."""
        rng = random.Random(1)
        a, b = share * 0.7 / 0.3, (1 - share) * 0.7 / 0.3
        covered = 0
        for _ in range(200):
            rates = [rng.betavariate(a, b) for _ in range(clusters)]
            hits = [rng.random() < rate for rate in rates for _ in range(10)]
            found = proportion_interval(hits, [c for c in range(clusters) for _ in range(10)])
            covered += found.low <= share <= found.high
        assert covered >= 0.925 * 200

    def test_answers_that_are_all_alike_are_worth_less_than_so_many_draws(self):
        alike = proportion_interval([True] * 30, [0] * 10 + [1] * 10 + [2] * 10)
        assert alike.high == 1.0 and 0.6 < alike.low < 0.7

    def test_bounds_touch_the_ends_only_at_all_or_none(self):
        assert proportion_interval([True] * 10, list(range(10))).high == 1.0
        assert proportion_interval([False] * 10, list(range(10))).low == 0.0
        assert proportion_interval([True] * 10, list(range(10))).low == pytest.approx(0.7225, abs=1e-4)


class TestPairedDifference:
    @given(st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=4), min_size=2, max_size=7))
    def test_is_the_clustered_mean_of_the_differences(self, groups):
        ours = [answer(f"p{i}", f"k{j}", 5 + d / 8) for i, g in enumerate(groups) for j, d in enumerate(g)]
        theirs = [answer(a.prompt, a.key, 5.0) for a in reversed(ours)]
        result = paired_difference(ours, theirs)
        mean, error = oracle.clustered_mean([a.nll - 5 for a in ours], [a.prompt for a in ours])
        assert result.difference.mean == pytest.approx(mean, abs=1e-12)
        assert result.difference.standard_error == pytest.approx(error, abs=1e-12)
        assert result.p_permutation == oracle.sign_flip([Fraction(sum(g), 8) for g in groups])
        # The interval and the t-test are two views of one decision.
        if error > 1e-9 and abs(result.p_t - 0.05) > 1e-9:
            assert (result.is_better or result.is_worse) == (result.p_t < 0.05)
            assert not (result.is_better and mean > 0)

    def test_a_lower_nll_is_better(self):
        ours = [answer(f"p{i}", "k", 1.0 + 0.01 * i) for i in range(4)]
        theirs = [answer(f"p{i}", "k", 2.0) for i in range(4)]
        assert paired_difference(ours, theirs).is_better
        assert paired_difference(theirs, ours).is_worse
        assert not paired_difference(theirs, ours).is_better

    def test_one_answer_a_cluster_is_the_textbook_t_test(self):
        """One-sample t of 1, 2, 3, 4: t = 3.873, two-sided p = 0.0305 with 3 degrees of freedom."""
        ours = [answer(f"p{i}", "k", float(i + 1)) for i in range(4)]
        result = paired_difference(ours, [answer(a.prompt, "k", 0.0) for a in ours])
        assert result.p_t == pytest.approx(2 * (1 - oracle.t_cdf(2.5 / (math.sqrt(5 / 3) / 2), 3)), abs=1e-9)
        assert result.p_permutation == 2 / 16

    def test_a_run_against_itself_differs_in_nothing(self):
        ours = [answer(f"p{i}", "k", float(i)) for i in range(5)]
        result = paired_difference(ours, ours)
        assert (result.difference.low, result.difference.high) == (0, 0)
        assert (result.p_t, result.p_permutation) == (1.0, 1.0)
        assert not result.is_better
        assert not result.is_worse

    def test_past_sixteen_clusters_only_the_t_test(self):
        ours = [answer(f"p{i}", "k", float(i % 3)) for i in range(17)]
        assert paired_difference(ours, ours).p_permutation is None
        assert paired_difference(ours[:16], ours[:16]).p_permutation is not None

    def test_one_answer_decides_nothing(self):
        result = paired_difference([answer("p", "k", 0.0)], [answer("p", "k", 9.0)])
        assert not result.is_better
        assert result.p_t == 1.0

    def test_other_questions_are_refused(self):
        ours = [answer("p0", "Oslo"), answer("p1", "Oslo")]
        with pytest.raises(ArgumentError, match=r"baseline='p1 Oslo'"):
            paired_difference(ours, ours[:1])
        with pytest.raises(ArgumentError, match=r"answers='p1 Oslo'"):
            paired_difference(ours[:1], ours)
        with pytest.raises(ArgumentError, match="twice"):
            paired_difference([*ours, ours[0]], ours)
        with pytest.raises(ArgumentError, match="another answer"):
            paired_difference(ours, [ours[0], answer("p1", "Oslo", expected="8")])


class TestPairedExact:
    @pytest.mark.parametrize(("won", "lost"), list(itertools.product(range(5), range(5))))
    def test_counts_outcomes(self, won, lost):
        changes = [(True, False)] * won + [(False, True)] * lost + [(True, True), (False, False)]
        ours = [answer(f"p{i}", "k", is_exact=a) for i, (a, _) in enumerate(changes)]
        theirs = [answer(f"p{i}", "k", is_exact=b) for i, (_, b) in enumerate(changes)]
        result = paired_exact(ours, theirs)
        assert (result.won, result.lost) == (won, lost)
        assert result.p == pytest.approx(oracle.mcnemar(won, lost))


class TestHolm:
    def test_worked_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), max_size=8))
    def test_is_the_step_down_procedure(self, p_values):
        assert holm(p_values) == pytest.approx(oracle.holm(p_values), abs=1e-9)

    def test_bad_value(self):
        with pytest.raises(ArgumentError, match="p_values"):
            holm([0.1, 1.5])


class TestAnswer:
    def test_round_trip(self):
        one = answer("p", "k", 0.25, True)
        assert Answer.from_dict(json.loads(json.dumps(one.to_dict()))) == one

    def test_wrong_fields_are_named(self):
        data = answer("p", "k").to_dict()
        with pytest.raises(ArgumentError, match="speed"):
            Answer.from_dict(data | {"speed": 1})
        del data["nll"]
        with pytest.raises(ArgumentError, match="nll"):
            Answer.from_dict(data)


class TestShareDifference:
    @given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 60))
    def test_is_wald_s_of_half_a_question_more_everywhere(self, won, lost, kept):
        n = won + lost + kept
        result = share_difference(won, lost, n)
        outcomes = [1.0] * won + [-1.0] * lost + [0.0] * kept
        weights = [1.0] * n + [0.5] * 4
        outcomes += [1.0, -1.0, 0.0, 0.0]
        mean = sum(map(math.prod, zip(outcomes, weights, strict=True))) / (n + 2)
        spread = sum(w * (o - mean) ** 2 for o, w in zip(outcomes, weights, strict=True)) / (n + 2)
        reach = 1.959963984540054 * math.sqrt(spread / (n + 2))
        assert result.mean == pytest.approx((won - lost) / n)
        assert result.low == pytest.approx(max(-1.0, min(result.mean, mean - reach)), abs=1e-9)
        assert result.high == pytest.approx(min(1.0, max(result.mean, mean + reach)), abs=1e-9)

    @pytest.mark.parametrize("n", [1, 20, 500])
    def test_no_change_isn_t_certain(self, n):
        result = share_difference(0, 0, n)
        assert result.low == -result.high < 0 < result.high < 5 / n and result.mean == 0.0

    def test_it_covers_as_often_as_it_says(self):
        rng, inside = random.Random(3), 0
        for _ in range(2000):
            drawn = [rng.choices((1, -1, 0), (0.1, 0.04, 0.86))[0] for _ in range(60)]
            result = share_difference(drawn.count(1), drawn.count(-1), 60)
            inside += result.low <= 0.06 <= result.high
        assert 0.94 <= inside / 2000 <= 0.975
