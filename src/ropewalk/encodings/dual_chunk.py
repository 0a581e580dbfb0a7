"""Dual chunk attention: positions that start anew in each chunk (An et al., arXiv 2402.17463)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.remap import Remap, RemapModule, RemapPart
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_length


@dataclasses.dataclass(frozen=True)
class DualChunk(Remap):
    """RoPE over chunks of s positions, without training (arXiv 2402.17463, section 3).

    A key at m stands at m mod s. A query at n stands, with local window w and c = s + w:

    - at n mod s for keys of its own chunk (intra-chunk);
    - at min(n mod s + s, c - 1) for keys of the chunk before (successive-chunk): its nearest w keys keep their
      true distances there;
    - at c - 1 for all keys before that (inter-chunk).

    No relative position is over c - 1, so c is to be at most the training length. Chunks are those of the given
    positions, n // s, whatever part of the tokens is at hand. For causal attention; scores of keys in later chunks
    are finite but mean nothing.

    The paper's c, the pretraining window, is `chunk_size + local_size` here. The authors' code, vLLM and Qwen's
    configs call c - or a number near it - chunk_size, and cut chunks of chunk_size - local_size.

    Args:
        rope: the model's RoPE, with its length rule; a `PerLayer` of them where layers differ.
        chunk_size: s, in tokens; the paper takes three quarters of the training length.
        local_size: w, in tokens, at most s; a third of s when None, so that s is three quarters of c.
    """

    kind: ClassVar[str] = "dual_chunk"
    summary: ClassVar[str] = "a trained RoPE whose positions start anew in each chunk (arXiv 2402.17463)"

    chunk_size: int
    local_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length("chunk_size", self.chunk_size)
        if self.local_size is None:
            object.__setattr__(self, "local_size", max(self.chunk_size // 3, 1))
        check_length("local_size", self.local_size)
        if self._window > self.chunk_size:
            raise ArgumentError("local_size", self.local_size, f"give at most chunk_size, {self.chunk_size}")

    @property
    def _window(self) -> int:
        assert self.local_size is not None  # __post_init__ fills it in
        return self.local_size

    @property
    def last_position(self) -> int:
        """c - 1, where a query stands for keys at least two chunks back."""
        return self.chunk_size + self._window - 1

    @property
    def sizes(self) -> str:
        return f"{self.chunk_size}/{self.local_size}"

    @property
    def near(self) -> tuple[str, int]:
        return "chunk_size", self.chunk_size

    def largest_distance(self, length: int) -> int:
        """The largest relative position in `length` tokens: c - 1 once they fill c."""
        check_length("length", length)
        return min(length - 1, self.last_position)

    def module(self) -> DualChunkModule:
        """The module, whose scores attention asks for block by block."""
        return DualChunkModule(self)


class DualChunkModule(RemapModule):
    """Dual chunk attention with its RoPE's frequencies at hand; `keys` gives the keys rotated once."""

    key_of_piece = (0, 0, 0)
    cached_key = 0

    def __init__(self, encoding: DualChunk):
        super().__init__(encoding.single_rope())
        self.encoding = encoding

    def key_positions(self, of_keys: Tensor) -> tuple[Tensor, ...]:
        return (of_keys % self.encoding.chunk_size,)

    def query_positions(self, of_queries: Tensor) -> tuple[Tensor, ...]:
        size, last = self.encoding.chunk_size, self.encoding.last_position
        inside = of_queries % size
        return inside, (inside + size).clamp(max=last), torch.full_like(of_queries, last)

    def piece_of_pair(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        size = self.encoding.chunk_size
        chunks_back = (of_queries // size)[:, :, None] - (of_keys // size)[:, None, :]
        return chunks_back.clamp(0, 2).to(torch.int8)

    def parts(self, queries: range, keys: range) -> list[RemapPart]:
        size, found = self.encoding.chunk_size, []
        for chunk in range(queries.start // size, (queries.stop - 1) // size + 1):
            inside = max(chunk * size, queries.start), min((chunk + 1) * size, queries.stop)
            rows = inside[0] - queries.start, inside[1] - queries.start
            # Where this chunk and the one before begin, among the keys at hand.
            own, before = (min(max(start - keys.start, 0), len(keys)) for start in (chunk * size, (chunk - 1) * size))
            found.append(RemapPart(0, rows, (own, min(inside[1] - keys.start, len(keys))), 0, None))
            found.append(RemapPart(1, rows, (before, own), None, None))
            found.append(RemapPart(2, rows, (0, before), None, None))
        return [part for part in found if part.keys[0] < part.keys[1]]
