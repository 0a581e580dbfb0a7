"""`attend`: attention of any encoding, each by the kernel that suits it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ropewalk.attention.blockwise import attend_biased, attend_scored
from ropewalk.attention.mask import Visible, check_mask
from ropewalk.attention.remapped import attend_remapped
from ropewalk.attention.sdpa import attend_vectors
from ropewalk.encodings.base import (
    BiasModule,
    Encoding,
    EncodingModule,
    Positions,
    RotaryModule,
    ScoreModule,
    is_run,
    of_queries_and_keys,
)
from ropewalk.encodings.remap import RemapModule
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_flag, is_finite_number


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoding: Encoding | EncodingModule | None = None,
    positions: Positions | None = None,
    causal: bool = True,
    bias: Tensor | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention with a positional encoding: (B, H, N, E) for q (B, H, N, d), k (B, G, M, d), v (B, G, M, E).

    No matrix of all N x M scores is kept in memory, forward or backward; kinds that need every score get them a block
    of queries at a time.

    Args:
        q, k, v: queries, keys and values; G divides H, and query head h reads key head h // (H // G). E may differ
            from d.
        encoding: a config or its module; None: no encoding. Give the module to train its parameters.
        positions: integers (N,) or (B, N), or a pair (of queries, of keys); by default 0..M-1 for the keys, of which
            the queries are the last N.
        causal: the queries are the last N of the M tokens, and each sees itself and what comes before.
        bias: numbers added to the scores, broadcastable to (B, H, N, M).
        scale: of the dot products; d^(-1/2) when None.
        mask: bool (True: may be seen) or numbers added to the scores, broadcastable to (B, H, N, M). A query that may
            see no key gets zeros.
        window: with `causal`, each query sees the last `window` keys alone, itself among them.
        dropout: probability with which a weight becomes 0; for training.

    Raises:
        ArgumentError: shapes, positions or a mask that don't fit, or an encoding that acts elsewhere than in attention.
    """
    _check_shapes(q, k, v)
    _check_options(q, k, causal, scale, window, dropout)
    both = _one_mask(mask, bias, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
    visible = Visible(q.shape[2], k.shape[2], causal, window, both)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    module = _module(encoding)
    pair = _positions(positions, q, k, causal)
    if module is None:
        return attend_vectors(q, k, v, visible, scale, dropout)
    if isinstance(module, RotaryModule):
        encoded_q, encoded_k = module(q, k, pair)
        if encoded_k.shape[1] != k.shape[1]:
            encoded_k, v = _with_own_keys(module, encoded_k, v, q.shape[1])
        return attend_vectors(encoded_q, encoded_k, v, visible, scale, dropout)
    of_queries, of_keys = (p if p.dim() == 2 else p[None] for p in pair)
    if isinstance(module, BiasModule):
        if module.num_heads != q.shape[1]:
            raise ArgumentError("num_heads", module.num_heads, f"the queries have {q.shape[1]} heads")
        counts_up = positions is None or is_run(of_queries, of_keys)
        return attend_biased(module, q, k, v, (of_queries, of_keys), visible, scale, dropout, counts_up)
    if isinstance(module, ScoreModule):
        attend_module: Any = attend_remapped if isinstance(module, RemapModule) else attend_scored
        return cast(Tensor, attend_module(module, q, k, v, (of_queries, of_keys), visible, scale, dropout))
    remedy = "it is added to the token vectors, not used in attention: add module.embed(positions) to those"
    raise ArgumentError("encoding", type(module).__name__, remedy)


def _module(encoding: Any) -> EncodingModule | None:
    made = encoding.module() if isinstance(encoding, Encoding) else encoding
    if made is not None and not isinstance(made, EncodingModule):
        raise ArgumentError("encoding", type(made).__name__, "give an encoding such as PoPE(...), its module, or None")
    return made


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.dim() != 4:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(f"{name}.shape", shape, "give (batch, heads, tokens, channels)")
        # Autocast brings them to one dtype itself.
        if not x.is_floating_point() or (x.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type)):
            raise ArgumentError(f"{name}.dtype", x.dtype, "give q, k and v in the same floating-point dtype")
    if q.shape[-1] == 0:
        raise ArgumentError("q.shape", tuple(q.shape), "give at least one channel")
    if k.shape[0] != q.shape[0] or k.shape[-1] != q.shape[-1]:
        raise ArgumentError("k.shape", tuple(k.shape), f"batch and channels must be those of q, {tuple(q.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ArgumentError("v.shape", tuple(v.shape), f"batch, heads and tokens must be those of k, {tuple(k.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ArgumentError("k.shape[1]", k.shape[1], f"key heads must divide the {q.shape[1]} query heads")


def _check_options(q: Tensor, k: Tensor, causal: bool, scale: float | None, window: int | None, dropout: float) -> None:
    check_flag("causal", causal)
    if causal and q.shape[2] > k.shape[2]:
        remedy = f"with causal=True the queries are the last of the tokens, but there are only {k.shape[2]} keys"
        raise ArgumentError("q.shape[2]", q.shape[2], remedy)
    if scale is not None and not is_finite_number(scale):
        raise ArgumentError("scale", scale, "give a finite number, or None for d^(-1/2)")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1 or not causal):
        raise ArgumentError("window", window, "give a positive number of keys, with causal=True")
    if not is_finite_number(dropout) or not 0.0 <= dropout < 1.0:
        raise ArgumentError("dropout", dropout, "give a probability from 0 to below 1")


def _one_mask(mask: Any, bias: Any, shape: tuple[int, int, int, int]) -> Tensor | None:
    """Mask and bias, checked, as one mask."""
    seen, added = check_mask("mask", mask, shape), check_mask("bias", bias, shape)
    if added is not None and added.dtype == torch.bool:
        raise ArgumentError("bias", added.dtype, "give numbers that are added to the scores; a mask may be bool")
    if seen is None or added is None:
        return added if seen is None else seen
    return added.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else added + seen


def _positions(positions: Positions | None, q: Tensor, k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The positions of queries and keys, checked."""
    if positions is None:
        of_keys = torch.arange(k.shape[2], device=k.device)
        first = k.shape[2] - q.shape[2] if causal or q.shape[2] <= k.shape[2] else 0
        return torch.arange(first, first + q.shape[2], device=q.device), of_keys
    return of_queries_and_keys(positions, q, k)


def _with_own_keys(module: RotaryModule, encoded: Tensor, v: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """One key and one value a query head, where some query heads have keys of their own after the shared ones."""
    groups = v.shape[1]
    readers = dict(module.own_keys(num_heads, groups))
    size = num_heads // groups
    of_key = [groups + readers[head] if head in readers else head // size for head in range(num_heads)]
    return encoded[:, of_key], v.repeat_interleave(size, dim=1)
