"""ReRoPE: relative positions that stop growing at a window (Su, 2023, kexue.fm/archives/9708)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.remap import Remap, RemapModule, RemapPart, near_and_far
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_length, check_positive


@dataclasses.dataclass(frozen=True)
class ReRoPE(Remap):
    """Rectified RoPE, and with `leak` its leaky form, without training (J. Su, kexue.fm/archives/9708, in Chinese).

    The relative position of a query at n and a key at m, with window w and leak s:

    - n - m when that is under w, as in RoPE;
    - w from there on, or w + s (n - m - w) with a leak (the article's 1/k): 1 is RoPE again, 0 would be no leak.

    The article's factor log(n + 1) / log(training length) on queries is an addition of its own and left out. Meant
    for causal attention: later keys are taken for near ones.

    Args:
        rope: the model's RoPE, with its length rule; a `PerLayer` of them where layers differ.
        window: w, in tokens.
        leak: how far a token past the window still moves the position, over 0 and at most 1; None: not at all.
    """

    kind: ClassVar[str] = "rerope"
    summary: ClassVar[str] = "a trained RoPE whose distances stop growing, or nearly, at a window"

    window: int = 1024
    leak: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length("window", self.window)
        if self.leak is not None:
            check_positive("leak", self.leak)
            if self.leak > 1:
                raise ArgumentError("leak", self.leak, "give at most 1, which is RoPE, or None")

    @property
    def sizes(self) -> str:
        return f"{self.window}" if self.leak is None else f"{self.window}/{self.leak:g}"

    @property
    def near(self) -> tuple[str, int]:
        return "window", self.window

    def largest_distance(self, length: int) -> float:
        """The largest relative position in `length` tokens."""
        check_length("length", length)
        return min(length - 1, self.window) + (self.leak or 0) * max(length - 1 - self.window, 0)

    def module(self) -> ReRoPEModule:
        """The module, whose scores attention asks for block by block."""
        return ReRoPEModule(self)


class ReRoPEModule(RemapModule):
    """ReRoPE with its RoPE's frequencies at hand; `keys` gives the keys at their own and at far positions."""

    key_of_piece = (0, 1)
    cached_key = 1

    def __init__(self, encoding: ReRoPE):
        super().__init__(encoding.single_rope())
        self.encoding = encoding

    def key_positions(self, of_keys: Tensor) -> tuple[Tensor, ...]:
        leak = self.encoding.leak
        # At position 0 nothing turns, but the attention scale still comes in.
        return of_keys, torch.zeros_like(of_keys) if leak is None else of_keys.float() * leak

    def query_positions(self, of_queries: Tensor) -> tuple[Tensor, ...]:
        window, leak = self.encoding.window, self.encoding.leak
        if leak is None:
            return of_queries, torch.full_like(of_queries, window)
        return of_queries, of_queries.float() * leak + window * (1 - leak)

    def piece_of_pair(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        return (of_queries[:, :, None] - of_keys[:, None, :] >= self.encoding.window).to(torch.int8)

    def parts(self, queries: range, keys: range) -> list[RemapPart]:
        return near_and_far(self.encoding.window, queries, keys)
