"""FlexAttention for accelerators: windows and biases by distance without a mask or a bias of all pairs in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ropewalk.attention.mask import Visible


def takes(q: Tensor, visible: Visible, dropout: float) -> bool:
    """Whether FlexAttention is the kernel: on an accelerator, with nothing that only a mask can say."""
    return q.device.type == "cuda" and visible.mask is None and dropout == 0.0


def attend_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Visible,
    scale: float,
    falling: Tensor | None = None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v for q (B, H, N, D), k (B, G, M, D), v (B, G, M, E): (B, H, N, E).

    Args:
        falling: the bias (H, N + M - 1) from the furthest distance downwards (`Distances.falling`); None: no bias.
        kernel: in place of torch's compiled `flex_attention`.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    queries, keys = visible.queries, visible.keys
    offset, window = keys - queries, visible.window

    def is_seen(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        near = j <= i + offset
        return near if window is None else near & (j > i + offset - window)

    def biased(score: Tensor, _b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert falling is not None
        return score + falling[h, queries - 1 - i + j]

    blocks = create_block_mask(is_seen, None, None, queries, keys, device=str(q.device)) if visible.causal else None
    attend = _compiled() if kernel is None else kernel
    out: Tensor = attend(
        q,
        k,
        v,
        score_mod=None if falling is None else biased,
        block_mask=blocks,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Without compilation FlexAttention keeps all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
