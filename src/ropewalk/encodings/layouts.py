"""Weights moved between RoPE's two channel layouts: a projection's rows reordered, with the same scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError
from ropewalk.validation import check_rotary_dim


def to_interleaved(weight: Tensor, num_heads: int, rotary_dim: int | None = None) -> Tensor:
    """A half-split query or key projection reordered for the interleaved layout, same shape.

    `weight` is (num_heads * head_dim, ...): a projection's weight, its bias, or (with num_heads=1) a norm's
    weight over one head. Row c becomes row 2c and row c + r/2 becomes row 2c + 1 within each head's first r =
    `rotary_dim` rows (all, when None); the others stay. Convert queries and keys alike (num_heads is the key
    heads' number for keys), and never values. Raises ArgumentError for sizes that don't divide.
    """
    pairs, rest = _split(weight, num_heads, rotary_dim)
    return _joined(_transposed(pairs, 2), rest)


def to_half(weight: Tensor, num_heads: int, rotary_dim: int | None = None) -> Tensor:
    """An interleaved query or key projection reordered for the half-split layout, same shape.

    The inverse of `to_interleaved`, with the same arguments and errors: row 2c becomes row c and row 2c + 1
    becomes row c + r/2.
    """
    pairs, rest = _split(weight, num_heads, rotary_dim)
    return _joined(_transposed(pairs, pairs.shape[1] // 2), rest)


def _split(weight: Tensor, num_heads: Any, rotary_dim: int | None) -> tuple[Tensor, Tensor]:
    """The rows that turn, (num_heads, r, ...), and those that don't, (num_heads, head_dim - r, ...)."""
    if not isinstance(num_heads, int) or isinstance(num_heads, bool) or num_heads < 1:
        raise ArgumentError("num_heads", num_heads, "give a positive integer")
    if weight.dim() == 0 or weight.shape[0] % num_heads:
        remedy = f"the first size must be a multiple of num_heads, {num_heads}"
        raise ArgumentError("weight.shape", tuple(weight.shape), remedy)
    head_dim = weight.shape[0] // num_heads
    width = head_dim if rotary_dim is None else rotary_dim
    check_rotary_dim("head_dim" if rotary_dim is None else "rotary_dim", width)
    if width > head_dim:
        raise ArgumentError("rotary_dim", rotary_dim, f"give at most the head size, {head_dim}")
    heads = weight.reshape(num_heads, head_dim, *weight.shape[1:])
    return heads[:, :width], heads[:, width:]


def _transposed(pairs: Tensor, rows: int) -> Tensor:
    """The second axis of (num_heads, r, ...) read as a table of that many rows, rewritten by columns."""
    table = pairs.reshape(pairs.shape[0], rows, pairs.shape[1] // rows, *pairs.shape[2:])
    return table.transpose(1, 2).flatten(1, 2)


def _joined(pairs: Tensor, rest: Tensor) -> Tensor:
    return torch.cat((pairs, rest), dim=1).flatten(0, 1)
