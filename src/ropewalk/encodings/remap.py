"""What remaps of a trained RoPE's positions share: scores picked, pair by pair, among several rotations."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import Encoding, ScoreModule
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.products import grouped_products
from ropewalk.encodings.rope import RoPE, RoPEModule
from ropewalk.errors import ArgumentError


@dataclasses.dataclass(frozen=True)
class Remap(Encoding):
    """A RoPE whose tokens stand, for some pairs of query and key, at other positions than their own.

    `rope` is the model's RoPE with any length rule, or a `PerLayer` of them where layers differ; a layer without
    rotation keeps what it has.
    """

    nested: ClassVar[tuple[str, ...]] = ("rope",)
    rope: RoPE | PerLayer

    def __post_init__(self) -> None:
        if not isinstance(self.rope, RoPE | PerLayer):
            raise ArgumentError("rope", self.rope, "give a RoPE, for example RoPE.from_model(model)")

    def at(self, layer: int) -> Encoding:
        """This remap of the layer's own RoPE; the layer's own encoding where that is no RoPE."""
        rope = self.rope.at(layer)
        if rope is self.rope:
            return self
        return dataclasses.replace(self, rope=rope) if isinstance(rope, RoPE) else rope

    def largest_distance(self, length: int) -> float:
        """The largest relative position that queries meet in `length` tokens; keep it under the training length."""
        raise NotImplementedError

    def single_rope(self) -> RoPE:
        """The RoPE; an error that names `at` when layers differ."""
        if isinstance(self.rope, PerLayer):
            raise ArgumentError("rope", self.rope.kind, "layers differ: take one with .at(layer)")
        return self.rope


class RemapModule(ScoreModule):
    """The module of a remap, without parameters.

    A subclass says at which positions keys and queries are rotated for each piece of the scores, and which piece each
    pair of query and key takes. Every piece carries the length rule's attention scale, as both of its sides are
    rotated by the RoPE's own tables. Scores have q's dtype, angles are float32.
    """

    # For each piece, which of the tensors from `keys` it reads.
    key_of_piece: ClassVar[tuple[int, ...]]

    def __init__(self, rope: RoPE):
        super().__init__()
        self.rope = RoPEModule(rope)
        self.head_dim = rope.head_dim

    def key_positions(self, of_keys: Tensor) -> tuple[Tensor, ...]:
        """The positions of each tensor that `keys` gives, each (B, M), for int64 positions (B, M)."""
        raise NotImplementedError

    def query_positions(self, of_queries: Tensor) -> tuple[Tensor, ...]:
        """The queries' positions in each piece, each (B, N), for int64 positions (B, N)."""
        raise NotImplementedError

    def piece_of_pair(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """The number of the piece that each pair takes, (B, N, M), for int64 positions (B, N) and (B, M)."""
        raise NotImplementedError

    def keys(self, k: Tensor, of_keys: Tensor) -> tuple[Tensor, ...]:
        """The keys k (B, G, M, d) at positions (1, M) or (B, M), once for each rotation they need."""
        return tuple(self._rotated(k, positions) for positions in self.key_positions(of_keys.long()))

    def scores(
        self,
        q: Tensor,
        keys: tuple[Tensor, ...],
        of_queries: Tensor,
        of_keys: Tensor,
        visible: Tensor | None,
        scale: float,
    ) -> Tensor:
        """The scores (B, H, N, M) of queries q (B, H, N, d); see `ScoreModule.scores`.

        On the CPU a piece is worked out only for the keys from the first to the last that any query takes it for. On
        an accelerator that isn't read, as it would wait for the device.
        """
        of_queries, of_keys = of_queries.long(), of_keys.long()
        pieces = self.piece_of_pair(of_queries, of_keys)
        shape = (q.shape[0], q.shape[1], q.shape[2], of_keys.shape[-1])
        found: Tensor | None = None
        for number, positions in enumerate(self.query_positions(of_queries)):
            taken = pieces == number
            first, last = _columns(taken)
            if first == last:
                continue
            key = keys[self.key_of_piece[number]][:, :, first:last]
            piece = grouped_products(self._rotated(q, positions), key) * scale
            if found is None and last - first == shape[-1]:
                found = piece  # pairs of other pieces are overwritten below
                continue
            found = q.new_zeros(shape) if found is None else found
            old = found[..., first:last]
            found[..., first:last] = torch.where(taken[:, None, :, first:last], piece, old)
        return q.new_zeros(shape) if found is None else found

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.rope.rotate(x, *self.rope.tables(positions, x.dtype))


def _columns(taken: Tensor) -> tuple[int, int]:
    """From which key to which, end excluded, any pair of (B, N, M) is taken; all where reading would wait."""
    if taken.device.type != "cpu" or torch.compiler.is_compiling():
        return 0, taken.shape[-1]
    columns = taken.flatten(0, 1).any(dim=0).nonzero()
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
