"""RoPE++: some query heads attend by the imaginary part of RoPE's complex score (Liu et al., arXiv 2512.07525)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import Encoding, RotaryModule, Tables
from ropewalk.encodings.rope import RoPE, RoPEModule
from ropewalk.errors import ArgumentError, unknown_name

ORDERS = ("half", "alternate")


@dataclasses.dataclass(frozen=True)
class RoPEPlusPlus(Encoding):
    """RoPE with imaginary heads: real ones score by the real part of z, imaginary ones by its imaginary part.

    z = sum_c q_c conj(k_c) exp(i (n - m) theta_c) for query n and key m, pairs of channels taken as complex numbers;
    the paper writes its conjugate, hence its minus sign (section 3). In each pair RoPE gives (q . k) cos + (q x k) sin
    and an imaginary head (q . k) sin - (q x k) cos: RoPE with the query turned back by a further right angle. Keys and
    values are the same for all heads, so nothing is added to a cache. Channels that `rope` doesn't turn count the
    same in all heads. A model must be trained with it.

    `rope` is the RoPE, with its length rule. `imaginary` says which query heads are imaginary:

    - "half": in each key head's group of S query heads the last S // 2, so that both kinds read the same keys; where
      each key head has a single query head, the last half of all heads;
    - "alternate": the odd heads, the order in the authors' code;
    - a tuple of query heads.

    The paper's models give each projected query to two heads, a real and an imaginary one. Here that is
    `q.repeat_interleave(2, dim=1)` with "alternate", or a projection whose rows are repeated in this way (rows that are
    repeated but not tied can learn more than the paper's). From a RoPE model with H query and G key heads of size d,

    - equal heads (EH) has H / 2 projected queries, repeated to H heads, and G / 2 key heads: half the cache. A model
      of H query and G / 2 key heads has its shape;
    - equal cache (EC) has H projected queries, repeated to 2 H heads, and G key heads: the same cache, an output
      projection of 2 H d inputs. A model of 2 H query and G key heads with head_dim = d has its shape.

    Raises ArgumentError when `rope` isn't a RoPE, for an unknown order, or heads that aren't distinct integers from 0.
    """

    kind: ClassVar[str] = "rope_plus_plus"
    summary: ClassVar[str] = "RoPE with half of the query heads on the imaginary part of the complex score"
    nested: ClassVar[tuple[str, ...]] = ("rope",)
    rope: RoPE
    imaginary: str | tuple[int, ...] = "half"

    def __post_init__(self) -> None:
        if not isinstance(self.rope, RoPE):
            raise ArgumentError("rope", self.rope, "give a RoPE; where layers differ, a PerLayer of RoPEPlusPlus")
        if isinstance(self.imaginary, str):
            if self.imaginary not in ORDERS:
                raise unknown_name("imaginary", self.imaginary, ORDERS)
            return
        remedy = "give 'half', 'alternate' or the query heads, such as (1, 3)"
        if not isinstance(self.imaginary, tuple | list) or not self.imaginary:
            raise ArgumentError("imaginary", self.imaginary, remedy)
        for head in self.imaginary:
            if not isinstance(head, int) or isinstance(head, bool) or head < 0:
                raise ArgumentError("imaginary", self.imaginary, remedy)
        if len(set(self.imaginary)) < len(self.imaginary):
            raise ArgumentError("imaginary", self.imaginary, "give each head once")
        object.__setattr__(self, "imaginary", tuple(sorted(self.imaginary)))

    def imaginary_heads(self, num_heads: int, num_kv_heads: int) -> tuple[int, ...]:
        """The imaginary query heads of a layer with these sizes, in order."""
        if isinstance(self.imaginary, tuple):
            if self.imaginary[-1] >= num_heads:
                raise ArgumentError("imaginary", self.imaginary, f"the layer has query heads 0 to {num_heads - 1}")
            return self.imaginary
        if num_heads < 2:
            raise ArgumentError("imaginary", self.imaginary, "the layer has one query head; give (0,) or use RoPE")
        if self.imaginary == "alternate":
            return tuple(range(1, num_heads, 2))
        size = num_heads if num_heads == num_kv_heads else num_heads // num_kv_heads
        return tuple(head for head in range(num_heads) if head % size >= size - size // 2)

    def module(self) -> RoPEPlusPlusModule:
        """The module, called as `module(q, k, positions) -> (q2, k2)`."""
        return RoPEPlusPlusModule(self)


class RoPEPlusPlusModule(RotaryModule):
    """RoPE++ on RoPE's own module `rope`, whose tables it shares."""

    def __init__(self, encoding: RoPEPlusPlus):
        super().__init__()
        self.encoding = encoding
        self.head_dim = encoding.rope.head_dim
        self.rope = RoPEModule(encoding.rope)

    @property
    def table_key(self) -> RoPE:
        """The tables are those of the RoPE."""
        return self.encoding.rope

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        """RoPE's cos and sin, each (N, width) or (B, N, width) of `dtype`."""
        return self.rope.tables(positions, dtype)

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, N, d), imaginary heads a right angle further back, and k (B, G, M, d) as RoPE; shapes are kept."""
        cos, sin = tables[0]
        imaginary = list(self.encoding.imaginary_heads(q.shape[1], k.shape[1]))
        q2 = self.rope.rotate(q, cos, sin)
        # cos(a - pi/2) = sin(a) and sin(a - pi/2) = -cos(a)
        q2[:, imaginary] = self.rope.rotate(q[:, imaginary], sin, -cos)
        return q2, self.rope.rotate(k, *tables[1])

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)
