"""Dual chunk attention: plain RoPE in one chunk, distances spelled out, chunks by position."""

from __future__ import annotations

import torch
from tests.reference import remap as reference

from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.rope import RoPE


def both(encoding: DualChunk, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dual chunk scores and plain RoPE's, of the same random content."""
    tokens = len(positions)
    q, k, module = torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8), encoding.module()
    found = module.scores(q, module.keys(k, positions[None]), positions[None], positions[None], None, 0.5)
    q2, k2 = encoding.single_rope()(q, k, positions)
    return found, q2 @ k2.mT * 0.5


def test_in_the_first_chunk_it_is_rope_bit_by_bit() -> None:
    found, plain = both(DualChunk(RoPE(8), 20, 5), torch.arange(20))
    assert torch.equal(found, plain)


def test_within_any_chunk_and_near_its_start_distances_are_true() -> None:
    positions = torch.arange(60)
    found, plain = both(DualChunk(RoPE(8), 20, 5), positions)
    back = positions[:, None] // 20 - positions[None, :] // 20
    gap = positions[:, None] - positions[None, :]
    true = (gap >= 0) & ((back == 0) | ((back == 1) & (positions[:, None] % 20 < 5)))
    # every key within the local window of its query is among them
    assert true[(gap >= 0) & (gap < 5)].all()
    torch.testing.assert_close(found[..., true], plain[..., true], rtol=1e-5, atol=1e-5)
    assert (found - plain)[..., (gap >= 0) & ~true].abs().max() > 0.1


def test_distances_spelled_out() -> None:
    """The sizes of the paper's figure 2, s = 6, c = 10, w = 4: some rows of the matrix of relative positions."""
    rows = {
        5: [5, 4, 3, 2, 1, 0],
        6: [6, 5, 4, 3, 2, 1, 0],
        9: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        11: [9, 8, 7, 6, 5, 4, 5, 4, 3, 2, 1, 0],
    }
    for n, row in rows.items():
        assert [reference.dual_chunk(n, m, 6, 4) for m in range(n + 1)] == row
    assert reference.dual_chunk(12, 0, 6, 4) == 9
    assert DualChunk(RoPE(8), 6, 4).last_position == 9


def test_the_local_window_completes_the_training_length() -> None:
    encoding = DualChunk(RoPE(8), 3072)
    assert encoding.local_size == 1024 and encoding.last_position == 4095
    assert encoding.largest_distance(100_000) == 4095 and encoding.largest_distance(100) == 99
    assert DualChunk(RoPE(8), 1).local_size == 1


def test_chunks_follow_positions_not_the_tensors_index() -> None:
    """A part of the tokens, or a text that starts late, has the chunks of its positions."""
    encoding, positions = DualChunk(RoPE(8), 8, 4), torch.arange(30)
    q, k, module = torch.randn(1, 1, 30, 8), torch.randn(1, 1, 30, 8), encoding.module()
    whole = module.scores(q, module.keys(k, positions[None]), positions[None], positions[None], None, 1.0)
    kept = torch.tensor([3, 7, 8, 19, 26])
    part = module.scores(q[:, :, kept], module.keys(k[:, :, kept], kept[None]), kept[None], kept[None], None, 1.0)
    torch.testing.assert_close(part, whole[:, :, kept][..., kept], rtol=1e-5, atol=1e-5)
