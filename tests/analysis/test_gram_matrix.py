from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ropewalk.analysis import gram_matrix as gram_module
from ropewalk.analysis.gram_matrix import GramAccumulator
from ropewalk.errors import ArgumentError


def oracle(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of outer products over real tokens in float64, one token at a time."""
    total = torch.zeros(x.shape[1], x.shape[3], x.shape[3], dtype=torch.float64)
    for b in range(x.shape[0]):
        for n in range(x.shape[2]):
            if mask is None or mask[b, n]:
                row = x[b, :, n].double()
                total += row[:, :, None] * row[:, None, :]
    return total


def accumulate(x: Tensor, mask: Tensor | None = None, **options: int) -> GramAccumulator:
    accumulator = GramAccumulator(x.shape[1], x.shape[3], **options)
    accumulator.add(x, mask)
    return accumulator


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(0, 10**6),
)
def test_equals_the_oracle(batch: int, tokens: int, chunk: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, 2, tokens, 6).to(dtype)
    mask = torch.rand(batch, tokens) > 0.4
    result = accumulate(x, mask, chunk_tokens=chunk)
    torch.testing.assert_close(result.gram, oracle(x, mask), rtol=1e-5, atol=1e-5)
    assert result.count == int(mask.sum())


def test_calls_batches_and_merging_all_add_up() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 50, 8)
    expected = oracle(x)
    whole, single, halves, other = accumulate(x), *(GramAccumulator(2, 8) for _ in range(3))
    for row in x:
        single.add(row[None])
    halves.add(x[:, :, :23])
    other.add(x[:, :, 23:])
    halves.merge(other)
    for result in (whole, single, halves):
        torch.testing.assert_close(result.gram, expected, rtol=1e-5, atol=1e-5)
        assert result.count == 150
    assert other.count == 81


def test_strided_views_as_models_make_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 30, 3, 8).transpose(1, 2)
    torch.testing.assert_close(accumulate(x, chunk_tokens=7).gram, oracle(x), rtol=1e-5, atol=1e-5)


def test_padding_is_left_out_whatever_it_holds() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 10, 4)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, :4] = False
    expected = oracle(x, mask)
    x[0, :, :4] = float("nan")
    result = accumulate(x, mask)
    torch.testing.assert_close(result.gram, expected, rtol=1e-5, atol=1e-5)
    assert result.count == 16


def test_autocast_and_gradients_stay_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 64, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = accumulate(x)
    torch.testing.assert_close(result.gram, oracle(x.detach()), rtol=1e-5, atol=1e-5)
    assert not result.gram.requires_grad


def test_a_long_sum_keeps_the_digits_of_a_head_with_a_sink() -> None:
    """A float32 sum over chunks fails this: it rounds away what is left beside the first eigenvalue."""
    torch.manual_seed(0)
    sink = 10 * torch.randn(1, 1, 1, 16)
    accumulator, exact = GramAccumulator(1, 16, chunk_tokens=64), torch.zeros(1, 16, 16, dtype=torch.float64)
    for _ in range(40):
        x = sink + 0.01 * torch.randn(1, 1, 2048, 16)
        accumulator.add(x)
        exact += x[0].double().mT @ x[0].double()
    values, expected = torch.linalg.eigvalsh(accumulator.gram[0]), torch.linalg.eigvalsh(exact[0])
    outside, wanted = values[:-1].sum() / values.sum(), expected[:-1].sum() / expected.sum()
    assert wanted < 1e-5
    assert abs(outside / wanted - 1) < 3e-3
    assert (accumulator.gram - exact).norm() / exact.norm() < 1e-6


def test_no_temporary_is_longer_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    matmul = torch.matmul

    def watched(a: Tensor, b: Tensor) -> Tensor:
        seen.append(b.shape[-2])
        return matmul(a, b)

    monkeypatch.setattr(gram_module.torch, "matmul", watched)
    accumulate(torch.randn(1, 1, 2500, 4))
    assert seen == [1024, 1024, 452]


def test_the_gram_is_a_copy() -> None:
    accumulator = accumulate(torch.ones(1, 1, 2, 2))
    before = accumulator.gram
    accumulator.add(torch.ones(1, 1, 2, 2))
    assert before[0, 0, 0] == 2 and accumulator.gram[0, 0, 0] == 4


@pytest.mark.parametrize(
    ("x", "mask", "argument"),
    [
        (torch.ones(1, 3, 5, 4), None, "x"),
        (torch.ones(1, 2, 5, 3), None, "x"),
        (torch.ones(2, 5, 4), None, "x"),
        (torch.ones(1, 2, 5, 4, dtype=torch.int64), None, "x"),
        (torch.ones(1, 2, 5, 4), torch.ones(1, 5), "mask"),
        (torch.ones(1, 2, 5, 4), torch.ones(1, 4, dtype=torch.bool), "mask"),
    ],
)
def test_wrong_input_is_named_and_adds_nothing(x: Tensor, mask: Tensor | None, argument: str) -> None:
    accumulator = GramAccumulator(2, 4)
    with pytest.raises(ArgumentError) as caught:
        accumulator.add(x, mask)
    assert caught.value.argument == argument
    assert accumulator.count == 0 and not accumulator.gram.any()


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ArgumentError, match="head_dim=0"):
        GramAccumulator(2, 0)
    with pytest.raises(ArgumentError, match="other="):
        GramAccumulator(2, 4).merge(GramAccumulator(1, 4))
