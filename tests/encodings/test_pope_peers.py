"""PoPE beside two other libraries: equal scores where they follow the paper and Hugging Face, and where they don't."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ropewalk.attention import attend
from ropewalk.encodings.pope import PoPE, PoPEModule

D, TOKENS = 32, 12


def content(heads: int, groups: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, heads, TOKENS, D), torch.randn(batch, groups, TOKENS, D)


def scores(module: PoPEModule, q: torch.Tensor, k: torch.Tensor, positions: Any) -> torch.Tensor:
    q2, k2 = module(q, k, positions)
    return q2 @ k2.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)  # scores of 30 and more


def set_delta(ours: PoPEModule, theirs: torch.nn.Parameter) -> None:
    """A delta that reaches past the clamp's edges, the same in both."""
    with torch.no_grad():
        assert ours.delta is not None
        torch.nn.init.uniform_(ours.delta, -8.0, 2.0)
        theirs.copy_(ours.delta.reshape(theirs.shape))


class TestPoPEPyTorch:
    """Its encoded channels stand in another order, so scores are compared."""

    def pair(self, groups: int) -> tuple[PoPEModule, Any, Any]:
        peer = pytest.importorskip("PoPE_pytorch")
        ours, theirs = PoPE(D, groups, bound="clamp").module(), peer.PoPE(D, heads=groups)
        set_delta(ours, theirs.bias)
        return ours, theirs, peer

    def test_scores(self) -> None:
        ours, theirs, peer = self.pair(4)
        q, k = content(4, 4)
        close(scores(ours, q, k, torch.arange(TOKENS)), peer.compute_attn_similarity(q, k, theirs(TOKENS)))

    def test_partial_and_offset(self) -> None:
        peer = pytest.importorskip("PoPE_pytorch")
        ours, theirs = PoPE(D, 2, bound="clamp", rotary_dim=8).module(), peer.PoPE(8, heads=2)
        set_delta(ours, theirs.bias)
        q, k = content(2, 2)
        close(
            scores(ours, q, k, torch.arange(TOKENS) + 40),
            peer.compute_attn_similarity(q, k, theirs(TOKENS, offset=40)),
        )

    def test_gradients_inside_the_clamp(self) -> None:
        ours, theirs, peer = self.pair(2)
        with torch.no_grad():
            assert ours.delta is not None
            theirs.bias.copy_(ours.delta.uniform_(-6.0, -0.1))
        q, k = content(2, 2)
        weights = torch.randn(2, 2, TOKENS, TOKENS)
        (scores(ours, q, k, torch.arange(TOKENS)) * weights).sum().backward()
        (peer.compute_attn_similarity(q, k, theirs(TOKENS)) * weights).sum().backward()
        torch.testing.assert_close(ours.delta.grad, theirs.bias.grad, rtol=1e-4, atol=1e-3)

    def test_it_orders_grouped_heads_unlike_hugging_face(self) -> None:
        """Query head h reads key head h % G there, and h // (H // G) in `repeat_kv`: right with G = 1 or H alone."""
        ours, _, peer = self.pair(2)
        q, k = content(4, 2)
        whole = peer.PoPE(D, heads=4)
        with torch.no_grad():
            assert ours.delta is not None
            whole.bias.copy_(ours.delta[[0, 1, 0, 1]])
        theirs = peer.compute_attn_similarity(q, k, whole(TOKENS))
        mine = scores(ours, q, k, torch.arange(TOKENS))
        assert not torch.allclose(theirs, mine, rtol=0.1, atol=0.1)
        # With heads 1 and 2 changing places at both ends, its order is ours.
        swapped = scores(ours, q[:, [0, 2, 1, 3]], k, torch.arange(TOKENS))[:, [0, 2, 1, 3]]
        close(swapped, theirs)

    def test_it_takes_a_delta_for_query_heads_only(self) -> None:
        """Keys are repeated before delta is added, so one delta a key head, as the paper has it, doesn't fit."""
        _, theirs, peer = self.pair(2)
        q, k = content(4, 2)
        with pytest.raises(RuntimeError):
            peer.compute_attn_similarity(q, k, theirs(TOKENS))

    def test_it_masks_chunked_prefill_from_the_wrong_corner(self) -> None:
        """A later chunk's first query sees key 0 alone there: torch's is_causal counts from the upper left."""
        ours, theirs, peer = self.pair(2)
        q, k = content(2, 2)
        v = torch.randn(2, 2, TOKENS, D)
        whole = attend(q, k, v, ours)
        close(peer.flash_attn_with_pope(q, k, v, theirs(TOKENS), causal=True, fused=False), whole)
        chunk = q[:, :, -4:]
        positions = torch.arange(TOKENS - 4, TOKENS), torch.arange(TOKENS)
        close(attend(chunk, k, v, ours, positions), whole[:, :, -4:])
        wrong = peer.flash_attn_with_pope(chunk, k, v, theirs(TOKENS), causal=True, fused=False)
        assert not torch.allclose(wrong, whole[:, :, -4:], rtol=0.1, atol=0.1)
        torch.testing.assert_close(wrong[:, :, 0], v[:, :, 0])
        order = torch.ones(4, TOKENS, dtype=torch.bool).tril(TOKENS - 4)
        close(peer.flash_attn_with_pope(chunk, k, v, theirs(TOKENS), mask=order, fused=False), whole[:, :, -4:])

    def test_its_clamp_keeps_a_delta_that_got_out(self) -> None:
        _, theirs, _ = self.pair(1)
        with torch.no_grad():
            theirs.bias.fill_(0.3)
        theirs(TOKENS).bias.sum().backward()
        assert theirs.bias.grad.eq(0).all()
        module = PoPE(D, 1).module()
        with torch.no_grad():
            assert module.delta is not None
            module.delta.fill_(0.3)
        phase = module.phase()
        assert phase is not None
        phase.sum().backward()
        assert module.delta.grad is not None and module.delta.grad.eq(1).all()


class TestXTransformers:
    def pair(self, heads: int) -> tuple[PoPEModule, Any, Any]:
        peer = pytest.importorskip("x_transformers.x_transformers")
        ours, theirs = PoPE(D, heads, bound="clamp").module(), peer.PolarEmbedding(D, heads)
        set_delta(ours, theirs.learned_bias)
        return ours, theirs, peer

    def theirs_scores(self, peer: Any, theirs: Any, q: torch.Tensor, k: torch.Tensor, positions: Any) -> torch.Tensor:
        freqs, bias = theirs(positions)
        q2, k2 = peer.apply_polar_pos_emb(q, freqs), peer.apply_polar_pos_emb(k, freqs + bias)
        return q2 @ k2.transpose(-1, -2)

    def test_scores_and_encoded_vectors(self) -> None:
        ours, theirs, peer = self.pair(4)
        q, k, positions = *content(4, 4), torch.arange(TOKENS) + 7
        close(scores(ours, q, k, positions), self.theirs_scores(peer, theirs, q, k, positions))
        freqs, bias = theirs(positions)
        q2, k2 = ours(q, k, positions)
        torch.testing.assert_close(q2, peer.apply_polar_pos_emb(q, freqs), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(k2, peer.apply_polar_pos_emb(k, freqs + bias), rtol=1e-5, atol=1e-5)

    def test_it_takes_the_rows_of_batched_positions_for_heads(self) -> None:
        """Its angles (B, N, d) meet tensors (B, H, N, d) from the right: with B = H, row b's positions go to head b."""
        ours, theirs, peer = self.pair(2)
        q, k = content(2, 2)
        positions = torch.stack((torch.arange(TOKENS), 3 * torch.arange(TOKENS)))
        found = self.theirs_scores(peer, theirs, q, k, positions)
        assert not torch.allclose(found, scores(ours, q, k, positions), rtol=0.1, atol=0.1)
        for head, row in enumerate(positions):
            close(found[:, head], scores(ours, q, k, row)[:, head])
