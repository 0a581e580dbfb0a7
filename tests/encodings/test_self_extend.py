"""Self-Extend: plain RoPE where nothing is grouped, and the paper's distances spelled out."""

from __future__ import annotations

import pytest
import torch
from tests.reference import remap as reference

from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend


def both(encoding: SelfExtend, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-Extend's scores and plain RoPE's, of the same random content."""
    tokens = len(positions)
    q, k, module = torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8), encoding.module()
    found = module.scores(q, module.keys(k, positions[None]), positions[None], positions[None], None, 0.5)
    q2, k2 = encoding.single_rope()(q, k, positions)
    return found, q2 @ k2.mT * 0.5


def test_within_the_window_it_is_rope_bit_by_bit() -> None:
    found, plain = both(SelfExtend(RoPE(8), window=20, group=4), torch.arange(20) + 100)
    assert torch.equal(found, plain)


def test_near_pairs_of_a_long_text_are_ropes() -> None:
    positions = torch.arange(50)
    found, plain = both(SelfExtend(RoPE(8), window=7, group=4), positions)
    near = positions[:, None] - positions[None, :] < 7
    torch.testing.assert_close(found[..., near], plain[..., near], rtol=1e-5, atol=1e-5)
    assert (found - plain)[..., ~near].abs().max() > 0.1


def test_groups_of_one_are_rope_everywhere() -> None:
    found, plain = both(SelfExtend(RoPE(8), window=7, group=1), torch.arange(50))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_distances_spelled_out() -> None:
    """Ten tokens, window 4, groups of 2: what a model trained on 7 reaches. The last token's distances."""
    assert [reference.self_extend(9, m, 4, 2) for m in range(10)] == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]
    assert SelfExtend(RoPE(8), 4, 2).largest_distance(10) == 6


@pytest.mark.parametrize(("trained", "window", "group"), [(4096, 1024, 4), (64, 16, 8)])
def test_how_far_a_model_reaches(trained: int, window: int, group: int) -> None:
    reach = (trained - window) * group + window
    encoding = SelfExtend(RoPE(8), window, group)
    assert encoding.largest_distance(reach) == trained - 1
    assert encoding.largest_distance(reach + group) == trained
