from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import inspection as oracle
from torch import Tensor

from ropewalk.analysis import frequency_bands as bands
from ropewalk.analysis.head_scores import cosines, leading_eigenvectors
from ropewalk.encodings.rope import LAYOUTS, RoPE, rotate


def gram(x: Tensor) -> Tensor:
    return x.double().mT @ x.double()


def rotated(tokens: int, layout: str, width: int, shift: float, seed: int = 0) -> Tensor:
    """Content around a common vector, turned by RoPE: (2, tokens, 10)."""
    generator = torch.Generator().manual_seed(seed)
    content = shift * torch.randn(2, 1, 10, generator=generator) + torch.randn(2, tokens, 10, generator=generator)
    tables = RoPE(10, base=1e6, layout=layout, rotary_dim=width).tables(torch.arange(tokens))
    return rotate(content, *tables, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("width", "shift"), [(10, 0.0), (6, 8.0)])
def test_usage_and_cone_of_each_band(layout: str, width: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "CHUNK_TOKENS", 17)
    x = rotated(60, layout, width, shift)
    used, cone = bands.usage(x, layout, width), bands.cone(x, gram(x), layout, width)
    assert used.shape == cone["gamma"].shape == (2, width // 2)
    rows = x.double().numpy()
    for head in range(2):
        for f in range(width // 2):
            assert float(used[head, f]) == pytest.approx(oracle.usage(rows[head], f, layout, width), rel=1e-5)
            gamma, bound, measured = oracle.cone(rows[head], f, layout, width)
            assert float(cone["gamma"][head, f]) == pytest.approx(gamma, abs=2e-3)
            assert float(cone["bound"][head, f]) == pytest.approx(bound, rel=1e-3, abs=1e-9)
            assert float(cone["measured"][head, f]) == pytest.approx(measured, rel=1e-6)


@given(seed=st.integers(0, 999), tokens=st.integers(1, 80), shift=st.floats(0, 20), width=st.sampled_from([2, 6, 10]))
def test_the_bound_is_below_what_is_measured(seed: int, tokens: int, shift: float, width: int) -> None:
    x = rotated(tokens, "half", width, shift, seed)
    cone = bands.cone(x, gram(x), "half", width)
    assert (cone["bound"] <= cone["measured"] * (1 + 1e-5)).all()
    assert cone["bound"][cone["gamma"] > math.pi / 2].eq(0).all()


def test_the_premise_holds_in_slow_bands_of_one_content_and_the_bound_is_met_without_rotation() -> None:
    content = torch.randn(1, 1, 10).expand(1, 500, 10)
    tables = RoPE(10, base=1e8).tables(torch.arange(500))
    cone = bands.cone(rotate(content, *tables, "half"), gram(rotate(content, *tables, "half")), "half", 10)
    # Over 500 tokens the bands turn by 500, 12.6, 0.32, 0.008 and 0.0002: the last three stay in a cone, and the axis
    # is in its middle.
    holds = cone["gamma"][0] < math.pi / 2
    assert holds.tolist() == [False, False, True, True, True]
    assert cone["gamma"][0, 2] == pytest.approx(499 * 1e8**-0.4 / 2, rel=0.02)
    assert (cone["bound"][0, 2:] > 0.95 * cone["measured"][0, 2:]).all()
    still = bands.cone(content, gram(content), "half", 10)
    torch.testing.assert_close(still["bound"], still["measured"], rtol=1e-4, atol=0)


def test_a_zero_vector_makes_the_bound_zero_and_nothing_else() -> None:
    x = torch.ones(1, 5, 2)
    x[0, 2] = 0
    cone = bands.cone(x, gram(x), "half", 2)
    assert float(cone["gamma"]) < 1e-3 and float(cone["bound"]) == 0 and float(cone["measured"]) == pytest.approx(8)
    empty = bands.cone(torch.zeros(1, 3, 2), torch.zeros(1, 2, 2), "half", 2)
    assert all(value.isfinite().all() for value in empty.values())


def test_cosines_with_eigenvectors_are_those_with_singular_vectors() -> None:
    x = torch.randn(2, 50, 8) * torch.arange(1, 9)
    found = cosines(x[:, [0, 7, 49]], leading_eigenvectors(gram(x), 3))
    for head in range(2):
        expected = oracle.squared_cosines(x[head].double().numpy(), [0, 7, 49], 3)
        torch.testing.assert_close(found[head].square(), torch.tensor(expected), rtol=1e-5, atol=1e-8)
    everything = cosines(x, leading_eigenvectors(gram(x), 8))
    torch.testing.assert_close(everything.square().sum(-1), torch.ones(2, 50, dtype=torch.float64))
    assert (x.double() @ leading_eigenvectors(gram(x), 8)).sum(1).abs().gt(0).all()
    weighted = (everything * x.double().norm(dim=-1, keepdim=True)).sum(1)
    assert (weighted >= 0).all()
    assert cosines(torch.zeros(1, 2, 8), leading_eigenvectors(gram(x)[:1], 2)).eq(0).all()
