"""FlexAttention, by its slow form without compilation, against the blocks that a CPU takes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from ropewalk import KERPLE, ALiBi, attend
from ropewalk.attention.blockwise import Distances
from ropewalk.attention.flex import attend_flex, takes
from ropewalk.attention.mask import Visible


def content(queries: int, keys: int, heads: int = 4, groups: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(2, heads, queries, 16), torch.randn(2, groups, keys, 16), torch.randn(2, groups, keys, 24)


@pytest.mark.parametrize(("queries", "keys"), [(7, 24), (1, 24)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("bias", [None, ALiBi(4), KERPLE(4)], ids=["none", "alibi", "kerple"])
def test_equals_attend(queries: int, keys: int, window: int | None, bias: ALiBi | KERPLE | None) -> None:
    q, k, v = content(queries, keys)
    module = None if bias is None else bias.module()
    positions = torch.arange(keys - queries, keys)[None], torch.arange(keys)[None]
    falling = None if module is None else Distances(module, *positions).falling
    visible = Visible(queries, keys, window=window)
    found = attend_flex(q, k, v, visible, 0.3, falling, kernel=flex_attention)
    assert torch.allclose(found, attend(q, k, v, module, scale=0.3, window=window), atol=1e-5)


def test_all_keys_are_seen_without_causal_order() -> None:
    q, k, v = content(6, 9)
    found = attend_flex(q, k, v, Visible(6, 9, causal=False), 0.3, kernel=flex_attention)
    assert torch.allclose(found, attend(q, k, v, causal=False, scale=0.3), atol=1e-5)


def test_the_bias_learns() -> None:
    q, k, v = content(12, 12)
    module = KERPLE(4).module()
    positions = (torch.arange(12)[None],) * 2
    found = []
    for out in (
        attend_flex(q, k, v, Visible(12, 12), 0.3, Distances(module, *positions).falling, kernel=flex_attention),
        attend(q, k, v, module, scale=0.3),
    ):
        found.append(torch.autograd.grad(out.square().sum(), list(module.parameters())))
    for here, there in zip(*found, strict=True):
        assert here.abs().sum() > 0 and torch.allclose(here, there, rtol=1e-4, atol=1e-5)


def test_a_cpu_keeps_to_blocks() -> None:
    q, _, _ = content(4, 4)
    assert not takes(q, Visible(4, 4, window=2), 0.0)
