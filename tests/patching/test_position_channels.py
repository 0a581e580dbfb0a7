"""Positions as channels: whole numbers come back as they went in, in every dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.errors import RopewalkError
from ropewalk.patching.position_channels import channels, with_positions, without_positions

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_position_to_100_000_is_exact(dtype):
    positions = torch.arange(100_001)[None]
    joined = with_positions(torch.zeros(1, 1, 100_001, 2, dtype=dtype), positions)
    assert joined.dtype == dtype and joined.shape[-1] == 2 + channels(dtype)
    assert torch.equal(without_positions(joined, 2)[1], positions)


@given(st.data())
def test_what_is_joined_comes_apart(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    batch, heads, tokens = (data.draw(st.integers(1, 3)) for _ in range(3))
    rows = data.draw(st.sampled_from([1, batch]))
    most = 2**22 - 1 if dtype == torch.float16 else 2**24 - 1
    numbers = data.draw(st.lists(st.integers(0, most), min_size=rows * tokens, max_size=rows * tokens))
    positions = torch.tensor(numbers).view(rows, tokens)
    first, width, after = data.draw(st.tuples(st.just(0), st.integers(1, 4), st.integers(0, 3)))
    x = torch.randn(batch, heads, tokens, width).to(dtype)
    joined = with_positions(x, positions)
    # A layer that hands over part of its channels joins the others after ours; a cache may change the memory's order.
    rest = torch.randn(batch, heads, tokens, after).to(dtype)
    cached = torch.cat([joined, rest], dim=-1).transpose(1, 2).contiguous().transpose(1, 2)
    content, found = without_positions(cached, width)
    assert torch.equal(content, torch.cat([x, rest], dim=-1)[..., first:])
    assert torch.equal(found, positions.expand(batch, -1)) and found.dtype == torch.int64


def test_gradients_pass_to_the_content_alone():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    content, positions = without_positions(with_positions(x, torch.arange(4)[None]), 5)
    (content * 2).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0)) and not positions.requires_grad


def test_rounded_positions_are_refused() -> None:
    carried = with_positions(torch.zeros(1, 2, 3, 4), torch.tensor([[7, 8, 9]]))
    with pytest.raises(RopewalkError, match="lost their positions"):
        without_positions(carried * 1.01, 4)
