"""Linear attention with rotary positions (RoFormer, arXiv 2104.09864, eq. 19)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ropewalk.encodings.base import Positions, of_queries_and_keys
from ropewalk.encodings.rope import RoPE, RoPEModule
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_length

FeatureMap = Callable[[Tensor], Tensor]


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, positive everywhere (Katharopoulos et al., arXiv 2006.16236, eq. 7)."""
    return torch.nn.functional.elu(x) + 1


def rotary_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: RoPE | RoPEModule,
    positions: Positions,
    causal: bool = True,
    feature_map: FeatureMap = elu_plus_one,
    block_size: int = 128,
) -> Tensor:
    """Attention without softmax, (B, H, N, d_v) in v's dtype, in time and memory linear in the tokens.

    out_m = sum_n (R_m phi(q_m)) . (R_n phi(k_n)) v_n / sum_n phi(q_m) . phi(k_n): the numerator is rotated,
    and the denominator isn't, so it stays positive (RoFormer eq. 19).

    q is (B, H, N, d), k (B, G, M, d), v (B, G, M, d_v), H a multiple of G; positions are integers, (N,) or
    (B, N), or a pair (of queries, of keys). With `causal` the N queries belong to the last N of the M keys
    and see no later one. `feature_map` must give positive numbers of the same shape. Sums are float32 or
    better; no matrix exceeds block_size x block_size tokens. Leaves out padding masks and the kernelised
    softmax's other feature maps; a length rule's attention scale multiplies the numerator alone.

    Raises ArgumentError for shapes that don't agree, and for more queries than keys with `causal`.
    """
    check_length("block_size", block_size)
    module = rope.module() if isinstance(rope, RoPE) else rope
    _check_shapes(q, k, v, module.head_dim)
    if causal and q.shape[-2] > k.shape[-2]:
        raise ArgumentError("causal", causal, f"{q.shape[-2]} queries can't follow {k.shape[-2]} keys")
    of_queries, of_keys = of_queries_and_keys(positions, q, k)
    dtype = torch.promote_types(v.dtype, torch.float32)
    plain_q, plain_k = feature_map(q.to(dtype)), feature_map(k.to(dtype))
    turned_q = module.rotate(plain_q, *module.tables(of_queries, dtype))
    turned_k = module.rotate(plain_k, *module.tables(of_keys, dtype))
    grouped = (k.shape[0], k.shape[1], -1, *q.shape[2:])  # (B, G, H / G, N, d)
    turned_q, plain_q = turned_q.reshape(grouped), plain_q.reshape(grouped)
    turned_k, plain_k, values = (x.unsqueeze(2) for x in (turned_k, plain_k, v.to(dtype)))
    ones = torch.ones_like(values[..., :1])
    if causal:
        numerator = _causal_sums(turned_q, turned_k, values, block_size)
        denominator = _causal_sums(plain_q, plain_k, ones, block_size)
    else:
        numerator = turned_q @ (turned_k.mT @ values)
        denominator = plain_q @ (plain_k.mT @ ones)
    return (numerator / denominator).flatten(1, 2).to(v.dtype)


def _causal_sums(q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    """sum over n <= m of (q_m . k_n) v_n, (..., N, d_v), for q (..., N, d), k (..., M, d), v (..., M, d_v).

    Query m stands at key m + M - N. All earlier blocks are summed up in one (d, d_v) matrix.
    """
    ahead = k.shape[-2] - q.shape[-2]
    state = k[..., :ahead, :].mT @ v[..., :ahead, :]
    sums = []
    for start in range(0, q.shape[-2], block_size):
        queries = q[..., start : start + block_size, :]
        keys = k[..., ahead + start : ahead + start + block_size, :]
        values = v[..., ahead + start : ahead + start + block_size, :]
        within = (queries @ keys.mT).tril()
        sums.append(queries @ state + within @ values)
        state = state + keys.mT @ values
    return torch.cat(sums, dim=-2)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> None:
    for argument, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or x.shape[-2] == 0:
            remedy = "give (batch, heads, tokens, channels) with at least one token"
            raise ArgumentError(f"{argument}.shape", tuple(x.shape), remedy)
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or q.shape[1] % k.shape[1]:
        remedy = f"q is {tuple(q.shape)}: match its batch and head size, and divide its heads"
        raise ArgumentError("k.shape", tuple(k.shape), remedy)
    if q.shape[-1] != head_dim:
        raise ArgumentError("q.shape", tuple(q.shape), f"the encoding has head_dim={head_dim}")
    if v.shape[:3] != k.shape[:3]:
        raise ArgumentError("v.shape", tuple(v.shape), f"match the first three of k, {tuple(k.shape)}")
