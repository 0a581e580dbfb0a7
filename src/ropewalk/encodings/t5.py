"""T5's relative bias: a learned number per head and bucket of distances (Raffel et al., arXiv 1910.10683)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import BiasModule, Encoding
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_count, check_flag


@dataclasses.dataclass(frozen=True)
class T5Bias(Encoding):
    """Bucketed bias: the score of query m and key n gets table[bucket(m - n), h] added (section 2.1).

    The nearer half of the buckets holds one distance each, the others grow logarithmically up to `max_distance`; all
    that lie further share the last. Causal, keys after the query share the bucket of distance 0; with
    `bidirectional` the second half of the buckets is theirs. Biases are (H, N, M) or (B, H, N, M), float32.

    Args:
        num_heads: query heads H.
        num_buckets: rows of the table, 2 or more; even and 4 or more with `bidirectional`.
        max_distance: in tokens, more than the distances that have a bucket each.
        bidirectional: whether keys after the query are told apart from those before it, as in an encoder.
    """

    kind: ClassVar[str] = "t5"
    summary: ClassVar[str] = "a learned bias per head and bucket of distances"
    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False

    def __post_init__(self) -> None:
        check_count("num_heads", self.num_heads)
        check_flag("bidirectional", self.bidirectional)
        check_count("num_buckets", self.num_buckets, 4 if self.bidirectional else 2)
        if self.bidirectional and self.num_buckets % 2:
            raise ArgumentError("num_buckets", self.num_buckets, "give an even integer: each direction takes half")
        check_count("max_distance", self.max_distance, self._exact + 1)

    @property
    def _one_way(self) -> int:
        """How many buckets a direction has."""
        return self.num_buckets // 2 if self.bidirectional else self.num_buckets

    @property
    def _exact(self) -> int:
        """How many of them hold one distance each."""
        return self._one_way // 2

    def buckets(self, distances: Tensor) -> Tensor:
        """The bucket, int64 (*), of integer distances (*), each the query's position minus the key's.

        Bucket e + floor(log(d / e) / log(max_distance / e) * (b - e)), at most b - 1, from distance e up: b buckets a
        direction, e = b // 2 exact ones. In float32 and in transformers' order of operations, because a distance that
        falls on the edge between buckets must fall to the same side as it did in training.
        """
        distances = distances.long()
        count, exact = self._one_way, self._exact
        far = distances.abs() if self.bidirectional else distances.clamp(min=0)
        logs = torch.log(far.clamp(min=exact).float() / exact) / math.log(self.max_distance / exact)
        rough = (exact + (logs * (count - exact)).long()).clamp(max=count - 1)
        found = torch.where(far < exact, far, rough)
        return found + count * (distances < 0) if self.bidirectional else found

    def module(self) -> T5BiasModule:
        """The module; `module().bias(of_queries, of_keys)` gives what is added to the scores."""
        return T5BiasModule(self)


class T5BiasModule(BiasModule):
    """T5's bias with its learnable `table` (num_buckets, H) float32, the layout of T5's own weights.

    It starts at zero, which is no encoding at all: the paper names no start, that of transformers depends on the
    model's width, which isn't known here, and each entry gets its own gradient from the first step on.
    """

    def __init__(self, encoding: T5Bias):
        super().__init__()
        self.encoding = encoding
        self.table = torch.nn.Parameter(torch.empty(encoding.num_buckets, encoding.num_heads, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the start: zeros."""
        torch.nn.init.zeros_(self.table)

    @property
    def num_heads(self) -> int:
        """Query heads H."""
        return self.encoding.num_heads

    def by_distance(self, distances: Tensor) -> Tensor:
        """The table's entry of each distance's bucket, (H, *) float32, at integer distances (*)."""
        buckets = self.encoding.buckets(distances)
        # laid out head by head, as attention kernels read it; an embedding look-up leaves heads innermost
        found = self.table.float().t().index_select(1, buckets.flatten())
        return found.view(self.num_heads, *distances.shape)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)
