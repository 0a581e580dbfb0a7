"""Which keys each query may see: causal order, a window and a mask, asked for block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError


@dataclass(frozen=True)
class Visible:
    """Of N queries and M keys, the queries being the last N of the M tokens when `causal`.

    Args:
        queries, keys: N and M.
        causal: query n sees keys up to n + M - N.
        window: with `causal`, only the last so many of those; None: all.
        mask: bool (True: may be seen) or a number added to the score, broadcastable to (B, H, N, M); or None.
    """

    queries: int
    keys: int
    causal: bool = True
    window: int | None = None
    mask: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether causal order is all there is to hide keys, or nothing is hidden."""
        return self.mask is None and (not self.causal or self.window is None or self.window >= self.keys)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The range of keys that queries first..last-1 may see at all, by order and window; at least one key."""
        if not self.causal:
            return 0, self.keys
        offset = self.keys - self.queries
        begin = 0 if self.window is None else max(0, first + offset - self.window + 1)
        return begin, max(begin + 1, last + offset)

    def hidden(self, first: int, last: int, begin: int, end: int, device: torch.device) -> Tensor | None:
        """True where queries first..last-1 may not see keys begin..end-1, by order and window: (n, m), or None."""
        if not self.causal:
            return None
        of_queries = torch.arange(first, last, device=device)[:, None] + (self.keys - self.queries)
        of_keys = torch.arange(begin, end, device=device)
        later = of_keys > of_queries
        return later if self.window is None else later | (of_keys <= of_queries - self.window)

    def mask_part(self, first: int, last: int, begin: int, end: int) -> Tensor | None:
        """The mask of some queries and keys; axes of size 1 stay so."""
        if self.mask is None:
            return None
        part = self.mask if self.mask.shape[-2] == 1 else self.mask[..., first:last, :]
        return part if part.shape[-1] == 1 else part[..., begin:end]


def hiding(mask: Tensor) -> Tensor:
    """A mask of numbers in which -inf hides: transformers' masks hide with the dtype's lowest number."""
    if mask.dtype == torch.bool:
        return mask
    return mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -math.inf)


def check_mask(argument: str, mask: Any, shape: tuple[int, int, int, int]) -> Tensor | None:
    """A mask with four axes, each 1 or as in `shape` (B, H, N, M); refused otherwise."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentError(argument, kind, "give bool (True: may be seen) or floats that are added to the scores")
    found = mask[(None,) * (4 - mask.dim())] if mask.dim() < 4 else mask
    if found.dim() != 4 or any(have not in (1, want) for have, want in zip(found.shape, shape, strict=True)):
        raise ArgumentError(f"{argument}.shape", tuple(mask.shape), f"it must be broadcastable to {shape}")
    return found
