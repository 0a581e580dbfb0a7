from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import head_scores as reference
from torch import Tensor

from ropewalk.analysis import head_scores as s
from ropewalk.errors import ArgumentError

D = 8
SPECTRAL: list[Callable[[Tensor], Tensor]] = [
    s.matrix_entropy,
    s.spectral_norm,
    *(lambda g, r=r: s.truncated_effective_rank(g, r) for r in (1, 2, 5, D)),
    *(lambda g, r=r: s.truncated_entropy(g, r) for r in (1, 2, 5, D)),
]
ALL = [*SPECTRAL, s.band_entropy]


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """X, (N, d) float64, from nearly rank one to flat, also with fewer rows than channels."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(draw(st.integers(1, 30)), D, dtype=torch.float64, generator=generator)
    spike = torch.randn(D, dtype=torch.float64, generator=generator)
    return x * draw(st.sampled_from([1e-3, 1.0, 1e3])) + draw(st.sampled_from([0.0, 1.0, 30.0])) * spike


def gram(x: Tensor) -> Tensor:
    return x.mT @ x


def close(a: Tensor, b: Tensor | float) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(matrices(), st.sampled_from(s.LAYOUTS), st.sampled_from([2, 6, 8]), st.integers(1, D))
def test_equal_the_formulas(x: Tensor, layout: str, rotary_dim: int, r: int) -> None:
    rows, g = x.numpy(), gram(x)
    close(s.band_entropy(g, layout, rotary_dim), reference.band_entropy(rows, layout, rotary_dim))
    close(s.matrix_entropy(g), reference.matrix_entropy(rows))
    close(s.truncated_effective_rank(g, r), reference.truncated_effective_rank(rows, r))
    close(s.truncated_entropy(g, r), reference.truncated_entropy(rows, r))
    close(s.spectral_norm(g), reference.spectral_norm(rows))


@settings(deadline=None)
@given(matrices(), st.integers(2, D))
def test_bounds(x: Tensor, r: int) -> None:
    g = gram(x)
    assert 0 <= s.band_entropy(g) <= math.log(2)
    assert 0 <= s.matrix_entropy(g) <= math.log(D) + 1e-12
    assert 1 <= s.truncated_effective_rank(g, r) <= r
    assert 0 <= s.truncated_entropy(g, r) <= 1 / math.e
    assert 1 / D - 1e-12 <= s.spectral_norm(g) <= 1 + 1e-12
    assert 0 <= s.truncated_entropy(g, 1) <= 1 - 1 / D + 1e-12


@settings(deadline=None)
@given(matrices(), st.floats(1e-4, 1e4), st.integers(0, 2**31))
def test_scaling_and_row_order_change_nothing(x: Tensor, factor: float, seed: int) -> None:
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    for score in ALL:
        close(score(gram(factor * shuffled)), score(gram(x)))


@settings(deadline=None)
@given(matrices(), st.integers(0, 2**31))
def test_eigenvalue_scores_do_not_see_the_basis(x: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=generator))
    for score in SPECTRAL:
        close(score(gram(x @ basis)), score(gram(x)))


@settings(deadline=None)
@given(matrices(), st.sampled_from(s.LAYOUTS))
def test_rotating_a_pair_by_one_angle_leaves_its_entropy(x: Tensor, layout: str) -> None:
    first, second = s.band_channels(D, layout)
    turned, angle = x.clone(), torch.linspace(0.3, 2.8, D // 2, dtype=torch.float64)
    turned[:, first] = x[:, first] * angle.cos() - x[:, second] * angle.sin()
    turned[:, second] = x[:, first] * angle.sin() + x[:, second] * angle.cos()
    close(s.band_entropy(gram(turned), layout), s.band_entropy(gram(x), layout))


@settings(deadline=None)
@given(matrices(), st.sampled_from(s.LAYOUTS))
def test_rope_keeps_every_band_trace(x: Tensor, layout: str) -> None:
    first, second = s.band_channels(D, layout)
    frequencies = 10000.0 ** (-torch.arange(D // 2, dtype=torch.float64) * 2 / D)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * frequencies
    rotated = torch.empty_like(x)
    rotated[:, first] = x[:, first] * angles.cos() - x[:, second] * angles.sin()
    rotated[:, second] = x[:, first] * angles.sin() + x[:, second] * angles.cos()
    before, after = gram(x).diagonal(), gram(rotated).diagonal()
    close(after[first] + after[second], before[first] + before[second])


@settings(deadline=None)
@given(matrices(), st.floats(0.5, 50.0))
def test_more_in_the_top_direction_lowers_the_effective_rank(x: Tensor, extra: float) -> None:
    g = gram(x)
    values, vectors = torch.linalg.eigh(g)
    spiked = g + extra * values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])
    for r in (1, 2, 5, D):
        before, after = s.truncated_effective_rank(g, r), s.truncated_effective_rank(spiked, r)
        assert after < before or before < (1 + 1e-9 if r > 1 else 1e-9)
    assert s.matrix_entropy(spiked) <= s.matrix_entropy(g) + 1e-12
    assert s.spectral_norm(spiked) >= s.spectral_norm(g) - 1e-12


def test_truncated_entropy_can_rise_with_a_moderate_spike() -> None:
    """Not a wish but what eq. 11 says; the docstring warns of it."""
    flat = torch.eye(64)
    moderate, strong = flat.clone(), flat.clone()
    moderate[0, 0], strong[0, 0] = 27.0, 1e6
    low, middle, high = (s.truncated_entropy(g, 8) for g in (strong, flat, moderate))
    assert low < middle < high


def test_known_values() -> None:
    g = torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0]))
    close(s.spectral_norm(g), 0.6)
    close(s.truncated_effective_rank(g, 1), 0.4)
    close(s.truncated_entropy(g, 1), 0.4)
    close(s.truncated_effective_rank(g, 2), math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))
    close(s.truncated_entropy(g, 2), -(0.6 * math.log(0.6) + 0.3 * math.log(0.3)) / 2)
    # half: bands (6, 1) and (3, 0); interleaved: (6, 3) and (1, 0).
    close(s.band_entropy(g), -(6 / 7 * math.log(6 / 7) + 1 / 7 * math.log(1 / 7)) / 2)
    close(s.band_entropy(g, "interleaved"), -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / 2)
    close(s.band_entropy(g, "half", 2), -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    close(s.truncated_effective_rank(torch.eye(6), 4), 4.0)


def test_a_zero_matrix_has_no_direction() -> None:
    zero = torch.zeros(D, D)
    for score in ALL:
        close(score(zero), score(torch.eye(D)))
    close(s.band_entropy(zero), math.log(2))
    close(s.spectral_norm(zero), 1 / D)


def test_trunc_1_keeps_its_digits_near_zero() -> None:
    close_to_one = torch.diag(torch.tensor([1.0, 3e-18, 1e-18, 0.0], dtype=torch.float64))
    assert float(s.truncated_entropy(close_to_one, 1)) == pytest.approx(4e-18, rel=1e-9, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_single(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    g = gram(torch.randn(2, 3, 20, D, dtype=dtype))
    for score in ALL:
        batched = score(g)
        assert batched.shape == (2, 3) and batched.dtype == torch.float64
        for i in range(2):
            for j in range(3):
                close(batched[i, j], score(g[i, j]))


@pytest.mark.parametrize("r", [0, -1, D + 1, 2.0, True, None])
@pytest.mark.parametrize("score", [s.truncated_effective_rank, s.truncated_entropy])
def test_a_wrong_r_is_named(score: Callable[[Tensor, object], Tensor], r: object) -> None:
    with pytest.raises(ArgumentError, match="r="):
        score(torch.eye(D), r)


def test_wrong_matrices_are_named() -> None:
    for bad in (torch.ones(3), torch.ones(3, 4), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(ArgumentError, match="gram="):
            s.matrix_entropy(bad)
    broken = torch.eye(4).repeat(2, 3, 1, 1)
    broken[1, 2, 0, 0] = float("nan")
    for score in (s.matrix_entropy, s.band_entropy):
        with pytest.raises(ArgumentError, match=r"gram\[1\]\[2\]='not finite'"):
            score(broken)
    for rotary_dim in (0, 3, D + 2):
        with pytest.raises(ArgumentError, match="rotary_dim="):
            s.band_entropy(torch.eye(D), rotary_dim=rotary_dim)
    with pytest.raises(ArgumentError, match="did you mean half"):
        s.band_entropy(torch.eye(D), "halves")


def test_the_registry_serves_the_functions() -> None:
    torch.manual_seed(0)
    g = gram(torch.randn(20, D))
    shares = s.eigenvalue_shares(g)
    assert set(s.scores()) == {
        "band_entropy",
        "matrix_entropy",
        "truncated_effective_rank",
        "truncated_entropy",
        "spectral_norm",
    }
    for name, score in s.scores().items():
        assert score.function is getattr(s, name) and score.summary and score.order in s.ORDERS
        r = 3 if score.needs_r else None
        if score.from_shares is not None:
            close(score.from_shares(shares, r), score.function(g, r) if score.needs_r else score.function(g))
    with pytest.raises(ArgumentError, match="did you mean matrix_entropy"):
        s.find_score("matrix_entrop")
