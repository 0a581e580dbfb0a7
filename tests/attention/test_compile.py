"""torch.compile takes `attend` whole, forward and backward, also in several blocks."""

from __future__ import annotations

import pytest
import torch
from tests.attention.cases import case, close, small_blocks

from ropewalk.attention import attend


@pytest.mark.parametrize("kind", ["pope", "kerple"])
def test_whole(kind: str) -> None:
    made = case(kind, 3, 5, v_size=3, grad=True)

    def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, made.module)

    torch._dynamo.reset()
    with small_blocks():
        found = torch.compile(attended, fullgraph=True, backend="aot_eager")(made.q, made.k, made.v)
        expected = attended(made.q, made.k, made.v)
    close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(x.pow(2).sum(), made.q) for x in (found, expected)), strict=True):
        close(ours, theirs)
