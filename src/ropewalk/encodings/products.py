"""Dot products of queries and keys under grouped keys."""

from __future__ import annotations

from torch import Tensor


def grouped_products(q: Tensor, k: Tensor) -> Tensor:
    """Dot products (B, H, N, M) of q (B, H, N, d) and k (B, G, M, d); query head h reads key head h // (H // G)."""
    batch, heads, tokens, width = q.shape
    # The group's queries stand below one another, so that no key is copied.
    stacked = q.reshape(batch, k.shape[1], heads // k.shape[1] * tokens, width)
    return (stacked @ k.transpose(-1, -2)).reshape(batch, heads, tokens, k.shape[2])
