"""Positions as every encoding takes them: an integer tensor, or a pair for queries and keys."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError

Positions: TypeAlias = Tensor | tuple[Tensor, Tensor]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def of_queries_and_keys(positions: Positions, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of the queries q (B, H, N, d) and of the keys k (B, G, M, d), checked.

    `positions` is (N,) or (B, N), or a pair of such. One tensor for both comes back twice, as the same
    object. Raises ArgumentError for a wrong type, dtype or shape, and for negative positions on the CPU; on
    an accelerator the values aren't read, because that would wait for the device at each call.
    """
    given: Any = positions
    if isinstance(given, (tuple, list)) and len(given) == 2:
        of_queries, of_keys = given
        check_positions("positions[0]", of_queries, q)
        check_positions("positions[1]", of_keys, k)
        return of_queries, of_keys
    if not isinstance(given, Tensor):
        remedy = "give an integer tensor (N,) or (B, N), or a pair (of queries, of keys)"
        raise ArgumentError("positions", given, remedy)
    check_positions("positions", given, q)
    if k.shape[-2] != q.shape[-2]:
        remedy = f"{q.shape[-2]} queries and {k.shape[-2]} keys need a pair (of queries, of keys)"
        raise ArgumentError("positions.shape", tuple(given.shape), remedy)
    return given, given


def check_positions(argument: str, positions: Any, x: Tensor) -> None:
    """Refuse all but non-negative integers of shape (N,), (1, N) or (B, N) for x (B, H, N, d)."""
    if not isinstance(positions, Tensor):
        raise ArgumentError(argument, positions, "give an integer tensor (N,) or (B, N)")
    if positions.dtype not in _INTEGERS:
        raise ArgumentError(f"{argument}.dtype", positions.dtype, "give integers, such as torch.arange(N)")
    batch, tokens = x.shape[0], x.shape[-2]
    shape = tuple(positions.shape)
    if shape not in ((tokens,), (batch, tokens), (1, tokens)):
        raise ArgumentError(f"{argument}.shape", shape, f"give ({tokens},) or ({batch}, {tokens})")
    is_readable = positions.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_readable and positions.numel() and int(positions.min()) < 0:
        raise ArgumentError(f"min({argument})", int(positions.min()), "give positions of 0 or more")


def is_run(of_queries: Tensor, of_keys: Tensor) -> bool:
    """Whether positions (1 or B, N) and (1 or B, M) count up by one, at the same distance in each row.

    Asked on the CPU alone: elsewhere reading the values would wait for the device, and the answer is False, which is
    always safe.
    """
    if of_queries.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # In int64: uint8 positions would count up from 255 to 0.
    counts = all(bool((p.long().diff(dim=-1) == 1).all()) for p in (of_queries, of_keys))
    ahead = of_queries[:, :1].long() - of_keys[:, :1].long()
    return counts and bool((ahead == ahead[:1]).all())
