"""Kernels for encoded vectors: which one serves a case, blocks of masks, padding to one size, dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attention.cases import close, gradients
from tests.reference import attention as reference

from ropewalk.attention import sdpa as vectors
from ropewalk.attention.mask import Visible
from ropewalk.attention.sdpa import attend_vectors


def content(queries: int, keys: int, wide: int = 6, size: int = 6) -> list[torch.Tensor]:
    shapes = (2, 4, queries, wide), (2, 2, keys, wide), (2, 2, keys, size)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def naive(qkv: list[torch.Tensor], visible: Visible) -> torch.Tensor:
    q, k, v = qkv
    return reference.attention(reference.products(q, k, 0.7), v, visible.causal, visible.window, visible.mask)


def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch's attention is called with, from now on."""
    calls: list[dict[str, Any]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def recorded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
        calls.append({"q": q.shape, "k": k.shape, "v": v.shape, **how})
        return real(q, k, v, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    return calls


@pytest.mark.parametrize(
    ("visible", "causal"),
    [
        (Visible(5, 5), True),
        (Visible(5, 5, window=5), True),
        (Visible(1, 5), False),
        (Visible(5, 5, causal=False), False),
        (Visible(3, 5, causal=False), False),
    ],
)
def test_without_a_mask_where_order_is_all_there_is(
    visible: Visible, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = kernel_calls(monkeypatch)
    qkv = content(visible.queries, visible.keys)
    close(attend_vectors(*qkv, visible, 0.7), naive(qkv, visible), 1e-9)
    assert [(call["is_causal"], call.get("attn_mask")) for call in calls] == [(causal, None)]


def test_later_queries_see_what_comes_before_them() -> None:
    """torch's own causal order counts from the upper left: the last 3 of 5 tokens need a mask."""
    qkv = content(3, 5)
    close(attend_vectors(*qkv, Visible(3, 5), 0.7), naive(qkv, Visible(3, 5)), 1e-9)


def test_masks_are_made_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """(N, M) with a window: no mask holds more than a block of queries and the keys they may see."""
    monkeypatch.setattr(vectors, "BLOCK", 8)
    calls = kernel_calls(monkeypatch)
    qkv, visible = content(40, 50), Visible(40, 50, window=7)
    ours, expected = attend_vectors(*qkv, visible, 0.7), naive(qkv, visible)
    close(ours, expected, 1e-9)
    for found, wanted in zip(gradients(ours, qkv), gradients(expected, qkv), strict=True):
        close(found, wanted, 1e-9)
    assert len(calls) == 5
    for call in calls:
        assert call["attn_mask"].shape == (8, 14) and call["k"][2] == 14


@pytest.mark.parametrize(("wide", "size"), [(8, 4), (4, 8)])
def test_sizes_are_made_equal_with_zeros(wide: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernel_calls(monkeypatch)
    qkv = content(5, 5, wide, size)
    ours, expected = attend_vectors(*qkv, Visible(5, 5), 0.7), naive(qkv, Visible(5, 5))
    assert ours.shape == (2, 4, 5, size) and calls[0]["v"][-1] == calls[0]["q"][-1] == 8
    close(ours, expected, 1e-9)
    for found, wanted in zip(gradients(ours, qkv), gradients(expected, qkv), strict=True):
        close(found, wanted, 1e-9)


def test_a_mask_that_learns() -> None:
    """Also where its gradient must not turn into NaN: a row of it that hides everything."""
    mask = torch.randn(1, 4, 6, 9, dtype=torch.float64)
    mask[:, 1, 2] = -torch.inf
    mask[:, 0, 3, 4] = -torch.inf
    mask.requires_grad_()
    qkv, visible = content(6, 9, 6, 3), Visible(6, 9, mask=mask)
    ours, expected = attend_vectors(*qkv, visible, 0.7), naive(qkv, visible)
    close(ours, expected, 1e-9)
    for found, wanted in zip(gradients(ours, [*qkv, mask]), gradients(expected, [*qkv, mask]), strict=True):
        close(found, wanted, 1e-9)


def test_masks_of_numbers_are_cast() -> None:
    q, k, v = (x.detach().bfloat16() for x in content(5, 5))
    mask = torch.randn(1, 1, 5, 5)
    visible = Visible(5, 5, causal=False, mask=mask)
    close(attend_vectors(q, k, v, visible, 0.7), naive([q, k, v], visible), 0.03)


@pytest.mark.parametrize("visible", [Visible(64, 64), Visible(64, 64, window=30), Visible(64, 64, causal=False)])
def test_dropout_keeps_the_expected_sum(visible: Visible) -> None:
    q, k, v = (x.detach() for x in content(64, 64, 8, 4))
    v = torch.ones_like(v)
    out = torch.stack([attend_vectors(q, k, v, visible, 0.7, dropout=0.25) for _ in range(20)])
    assert out.mean().item() == pytest.approx(1.0, abs=0.03) and out.std() > 0.1
    assert torch.allclose(attend_vectors(q, k, v, visible, 0.7), torch.ones_like(out[0]))
