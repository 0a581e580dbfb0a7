"""What remaps of a trained RoPE's positions share: scores picked, pair by pair, among several rotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ropewalk.encodings.base import Encoding, ScoreModule, Tables, grouped_products
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE, RoPEModule
from ropewalk.errors import ArgumentError

# Tables kept: those of each piece and side, for the lengths at hand and some rows of a batch.
_MOST_TURNS = 32


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

    @property
    def sizes(self) -> str:
        """Its sizes in tokens, as names of candidates have them."""
        raise NotImplementedError

    @property
    def near(self) -> tuple[str, int]:
        """The argument that says up to which distance positions are exact, and its value in tokens."""
        raise NotImplementedError

    def single_rope(self) -> RoPE:
        """The RoPE; an error that names `at` when layers differ."""
        if isinstance(self.rope, PerLayer):
            raise ArgumentError("rope", self.rope.kind, "layers differ: take one with .at(layer)")
        return self.rope


class RemapPart(NamedTuple):
    """Pairs of query and key that take one piece of a remap's scores, among queries and keys that count up by one.

    Those of queries first..last-1 and keys begin..end-1 (indices) whose distance, the query's position minus the
    key's, is at least `nearest` and under `furthest`; None is no limit.
    """

    piece: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    nearest: int | None
    furthest: int | None


class Turn(NamedTuple):
    """Where tokens stand for a piece: positions (1 or B, N), and the RoPE's (cos, sin) there."""

    positions: Tensor
    tables: Tables


class RemapModule(ScoreModule):
    """The module of a remap, without parameters.

    A subclass says at which positions keys and queries are rotated for each piece of the scores, and which piece each
    pair of query and key takes: pair by pair (`piece_of_pair`), and for causal attention over positions that count up
    by one as ranges of distances (`parts`). Every piece carries the length rule's attention scale, as both of its
    sides are rotated by the RoPE's own tables. Scores have q's dtype, angles are float32.
    """

    # For each piece, which of the tensors from `keys` it reads.
    key_of_piece: tuple[int, ...]
    # Which of those a key/value cache keeps, the others being made of it; None: it keeps content.
    cached_key: int | None

    def __init__(self, rope: RoPE):
        super().__init__()
        self.rope = RoPEModule(rope)
        self.head_dim = rope.head_dim
        self._turns: dict[Hashable, Turn] = {}

    def key_positions(self, of_keys: Tensor) -> tuple[Tensor, ...]:
        """The positions of each tensor that `keys` gives, each (B, M), for int64 positions (B, M)."""
        raise NotImplementedError

    def query_positions(self, of_queries: Tensor) -> tuple[Tensor, ...]:
        """The queries' positions in each piece, each (B, N), for int64 positions (B, N)."""
        raise NotImplementedError

    def piece_of_pair(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """The number of the piece that each pair takes, (B, N, M), for int64 positions (B, N) and (B, M)."""
        raise NotImplementedError

    def parts(self, queries: range, keys: range) -> list[RemapPart]:
        """The pieces of causal attention between queries and keys at consecutive positions, each pair once."""
        raise NotImplementedError

    def query_turn(self, piece: int, of_queries: Tensor, dtype: torch.dtype) -> Turn:
        """Where queries at int64 positions (1 or B, N) stand in a piece."""
        own = self.query_positions(of_queries)[piece]
        return Turn(own, self.rope.tables(own, dtype))

    def key_turn(self, index: int, of_keys: Tensor, dtype: torch.dtype) -> Turn:
        """Where keys at int64 positions (1 or B, M) stand in tensor `index` of `keys`."""
        own = self.key_positions(of_keys)[index]
        return Turn(own, self.rope.tables(own, dtype))

    def turned_query(self, q: Tensor, piece: int, turn: Turn, num_kv_heads: int) -> Tensor:
        """Queries (B, H, N, d) as a piece compares them with G key heads, or H of them where heads have their own."""
        return self.rope.rotate(q, *turn.tables)

    def turned_key(self, k: Tensor, index: int, turn: Turn, num_heads: int) -> Tensor:
        """Keys (B, G, M, d) as tensor `index` of `keys` holds them for H query heads: (B, G or H, M, d)."""
        return self.rope.rotate(k, *turn.tables)

    def keys(self, k: Tensor, of_keys: Tensor, num_heads: int | None = None) -> tuple[Tensor, ...]:
        """The keys k (B, G, M, d) at positions (1, M) or (B, M), once for each rotation they need."""
        of_keys, heads = of_keys.long(), k.shape[1] if num_heads is None else num_heads
        return tuple(
            self.turned_key(k, index, self.key_turn(index, of_keys, k.dtype), heads)
            for index in range(max(self.key_of_piece) + 1)
        )

    def stored(self, k: Tensor, of_keys: Tensor) -> Tensor:
        """What a cache keeps of content k (B, G, M, d) at positions (1 or B, M): one rotation of it, or itself."""
        if self.cached_key is None:
            return k
        return self.rope.rotate(k, *self.key_turn(self.cached_key, of_keys.long(), k.dtype).tables)

    def key_run(self, k: Tensor, index: int, first: int, is_stored: bool, num_heads: int) -> Tensor:
        """Tensor `index` of `keys` for k (B, G, M, d) at positions first, first + 1 ... and H query heads.

        `is_stored`: k is what `stored` gave. Tables are made once for all layers that share the module.
        """
        if not is_stored or self.cached_key is None:
            turn = self._kept("key", index, first, k, lambda p: self.key_turn(index, p, k.dtype))
            return self.turned_key(k, index, turn, num_heads)
        if index == self.cached_key:
            return k
        turn = self._kept("between", index, first, k, lambda p: self._between(index, p, k.dtype))
        return _turned_on(k, *turn.tables, self.rope.encoding.layout)

    def query_run(self, q: Tensor, piece: int, first: int, num_kv_heads: int) -> Tensor:
        """Queries (B, H, N, d) at positions first, first + 1 ... as a piece compares them with G key heads."""
        turn = self._kept("query", piece, first, q, lambda p: self.query_turn(piece, p, q.dtype))
        return self.turned_query(q, piece, turn, num_kv_heads)

    def _kept(self, what: str, number: int, first: int, x: Tensor, make: Callable[[Tensor], Turn]) -> Turn:
        key = what, number, first, x.shape[2], x.dtype, x.device
        found = self._turns.get(key)  # once: another thread may run the same module
        if found is None:
            # Tables made under inference_mode couldn't be trained with afterwards; these are kept.
            with torch.inference_mode(False), torch.no_grad():
                positions = torch.arange(first, first + x.shape[2], device=x.device)[None]
                found = make(positions)
            if len(self._turns) >= _MOST_TURNS:
                self._turns = {}
            self._turns[key] = found
        return found

    def _between(self, index: int, of_keys: Tensor, dtype: torch.dtype) -> Turn:
        """From the cached rotation to another one, tables of a number a pair (1, M, width / 2).

        Angles add up, so what turns is their difference, without the length rule's scale. The difference of the
        float32 angles is taken in float64: so the sum is the other rotation to the last bits.
        """
        assert self.cached_key is not None
        own = self.key_positions(of_keys)
        there, here = (own[i][..., None].float() * self.rope.frequencies for i in (index, self.cached_key))
        wide = (x.cpu().double() if x.device.type == "mps" else x.double() for x in (there, here))
        angles = next(wide) - next(wide)
        cos, sin = (x.to(dtype).to(of_keys.device) for x in (angles.cos(), angles.sin()))
        return Turn(own[index], (cos, sin))

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
        for number in range(len(self.key_of_piece)):
            taken = pieces == number
            first, last = _columns(taken)
            if first == last:
                continue
            key = keys[self.key_of_piece[number]][:, :, first:last]
            query = self.turned_query(q, number, self.query_turn(number, of_queries, q.dtype), key.shape[1])
            piece = grouped_products(query, key) * scale
            if found is None and last - first == shape[-1]:
                found = piece  # pairs of other pieces are overwritten below
                continue
            found = q.new_zeros(shape) if found is None else found
            old = found[..., first:last]
            found[..., first:last] = torch.where(taken[:, None, :, first:last], piece, old)
        return q.new_zeros(shape) if found is None else found


class WrappedRemapModule(RemapModule):
    """A remap with the positions of `inner` that turns or watches tokens in its own way; a cache holds content."""

    cached_key = None

    def __init__(self, inner: RemapModule):
        super().__init__(inner.rope.encoding)
        self.inner, self.key_of_piece = inner, inner.key_of_piece

    def key_positions(self, of_keys: Tensor) -> tuple[Tensor, ...]:
        return self.inner.key_positions(of_keys)

    def query_positions(self, of_queries: Tensor) -> tuple[Tensor, ...]:
        return self.inner.query_positions(of_queries)

    def piece_of_pair(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        return self.inner.piece_of_pair(of_queries, of_keys)

    def parts(self, queries: range, keys: range) -> list[RemapPart]:
        return self.inner.parts(queries, keys)


def _turned_on(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    """x (B, G, M, d) turned by tables (1, M, width / 2); in fewer passes over memory than `rotate` takes.

    A decoding step turns all keys of its window.
    """
    width, cos, sin = 2 * cos.shape[-1], cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = (
        (slice(0, width // 2), slice(width // 2, width))
        if layout == "half"
        else (
            slice(0, width, 2),
            slice(1, width, 2),
        )
    )
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    a, b = x[..., first], x[..., second]
    torch.mul(a, cos, out=out[..., first]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out[..., second]).addcmul_(a, sin)
    out[..., width:] = x[..., width:]
    return out


def near_and_far(window: int, queries: range, keys: range) -> list[RemapPart]:
    """Two pieces: distances under the window, and from it on."""
    everything = (0, len(queries)), (0, len(keys))
    return [RemapPart(0, *everything, 0, window), RemapPart(1, *everything, window, None)]


def _columns(taken: Tensor) -> tuple[int, int]:
    """From which key to which, end excluded, any pair of (B, N, M) is taken; all where reading would wait."""
    if taken.device.type != "cpu" or torch.compiler.is_compiling():
        return 0, taken.shape[-1]
    columns = taken.flatten(0, 1).any(dim=0).nonzero()
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
