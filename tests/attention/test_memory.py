"""No matrix of all scores: the largest tensor that 4096 tokens make, and what is kept between the passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attention.cases import Largest

from ropewalk.attention import attend
from ropewalk.attention import blockwise as scored
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dape import DAPE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE

TOKENS, D = 4096, 8


def measured(encoding: Encoding | None, heads: int, grad: bool = True, **options: Any) -> tuple[int, int]:
    """(largest tensor, all that is kept for the backward pass), in numbers."""
    module = None if encoding is None else encoding.module()
    q, k, v = (torch.randn(1, heads, TOKENS, D, requires_grad=grad) for _ in range(3))
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // x.element_size()
        return x

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = attend(q, k, v, module, **options)
        if grad:
            out.sum().backward()
    assert not grad or (q.grad is not None and q.grad.isfinite().all())
    return largest.numbers, sum(kept.values())


@pytest.mark.parametrize("options", [{}, {"window": 512}], ids=["causal", "window"])
@pytest.mark.parametrize("encoding", [RoPE(D), PoPE(D, 2)], ids=lambda encoding: encoding.kind)
def test_vectors(encoding: Encoding, options: dict[str, Any]) -> None:
    largest, kept = measured(encoding, 2, **options)
    assert largest <= TOKENS * TOKENS / 16
    assert kept <= TOKENS * TOKENS / 4


@pytest.mark.parametrize(
    ("encoding", "maps"),
    [(ALiBi(2), 1), (KERPLE(2), 1), (DAPE(1, ALiBi(1), hidden=2), 2)],
    ids=["alibi", "kerple", "dape"],
)
def test_scores_a_block_at_a_time(encoding: Encoding, maps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's scores, and for DAPE its maps of products and biases, are the most there is."""
    monkeypatch.setattr(scored, "BLOCK_SCORES", 2**20)
    largest, kept = measured(encoding, encoding.num_heads)  # type: ignore[attr-defined]
    assert largest <= maps * 2**20 * 1.1
    assert kept <= TOKENS * TOKENS / 16


def test_a_block_is_32_megabytes() -> None:
    assert scored.BLOCK_SCORES * 4 == 2**25


def test_reading_alone_needs_less() -> None:
    with torch.no_grad():
        assert measured(PoPE(D, 1), 1, grad=False, mask=torch.ones(TOKENS, dtype=torch.bool))[0] <= TOKENS * TOKENS / 8


def test_the_measure_sees_a_matrix_of_all_scores() -> None:
    q = torch.randn(1, 1, TOKENS, D)
    with Largest() as largest:
        q @ q.transpose(2, 3)
    assert largest.numbers == TOKENS * TOKENS
