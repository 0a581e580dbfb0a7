"""ReRoPE: plain RoPE within the window, one distance past it, or a slow one with a leak."""

from __future__ import annotations

import torch

from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.scaling import YaRN


def both(encoding: ReRoPE, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ReRoPE's scores and plain RoPE's, of the same random content."""
    tokens = len(positions)
    q, k, module = torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8), encoding.module()
    found = module.scores(q, module.keys(k, positions[None]), positions[None], positions[None], None, 0.5)
    q2, k2 = encoding.single_rope()(q, k, positions)
    return found, q2 @ k2.mT * 0.5


def test_within_the_window_it_is_rope_bit_by_bit() -> None:
    for leak in (None, 0.125):
        found, plain = both(ReRoPE(RoPE(8, rule=YaRN(4.0, 64)), 20, leak), torch.arange(20) + 100)
        assert torch.equal(found, plain)


def test_a_leak_of_one_is_rope_everywhere() -> None:
    found, plain = both(ReRoPE(RoPE(8), 7, leak=1.0), torch.arange(50))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_past_the_window_distance_no_longer_matters() -> None:
    encoding = ReRoPE(RoPE(8, rule=YaRN(4.0, 64)), 7)
    q, key, module = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8), encoding.module()
    k, query = key.expand(1, 1, 30, 8), torch.tensor([[10_000]])
    positions = torch.arange(30)[None] * 300
    found = module.scores(q, module.keys(k, positions), query, positions, None, 1.0)
    torch.testing.assert_close(found, found[..., :1].expand_as(found))
    q2, k2 = encoding.single_rope()(q, key, (torch.tensor([7]), torch.tensor([0])))
    torch.testing.assert_close(found[..., :1], q2 @ k2.mT)


def test_the_largest_distance() -> None:
    assert ReRoPE(RoPE(8), 100).largest_distance(1_000_000) == 100
    assert ReRoPE(RoPE(8), 100).largest_distance(50) == 49
    assert ReRoPE(RoPE(8), 100, leak=0.0625).largest_distance(1701) == 200
