"""What an encoding is: a small frozen config that builds a module, and the registry that finds it by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError, unknown_name

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


def grouped_products(q: Tensor, k: Tensor) -> Tensor:
    """Dot products (B, H, N, M) of q (B, H, N, d) and k (B, G, M, d); query head h reads key head h // (H // G)."""
    batch, heads, tokens, width = q.shape
    # The group's queries stand below one another, so that no key is copied.
    stacked = q.reshape(batch, k.shape[1], heads // k.shape[1] * tokens, width)
    return (stacked @ k.transpose(-1, -2)).reshape(batch, heads, tokens, k.shape[2])


Tables = tuple[Tensor, Tensor]

_REGISTRY: dict[str, type[Encoding]] = {}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A positional encoding as a value: equal configs mean equal encodings.

    A subclass is a frozen dataclass that sets `kind` and `summary` and overrides `module`. Rotary kinds are
    called as `encoding(q, k, positions)`, bias kinds as `encoding.bias(of_queries, of_keys)`; `module()` builds the
    same thing once, for repeated use and for training.
    """

    kind: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    # Fields that hold another encoding: `from_dict` reads them too.
    nested: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("kind"):
            _REGISTRY[cls.kind] = cls

    def at(self, layer: int) -> Encoding:
        """The encoding of one layer; itself unless the encoding differs from layer to layer."""
        return self

    def module(self) -> torch.nn.Module:
        """An EncodingModule, called as `module(q, k, positions) -> (q2, k2)`; learnable parts are its parameters.

        Shapes: q (B, H, N, d), k (B, G, M, d), positions (N,) or (B, N) or a pair (of queries, of keys),
        integers.
        """
        raise NotImplementedError

    def __call__(self, q: Tensor, k: Tensor, positions: Any) -> tuple[Tensor, Tensor]:
        """Encode queries (B, H, N, d) and keys (B, G, M, d) at integer positions; see `module`."""
        encoded: tuple[Tensor, Tensor] = self.module()(q, k, positions)
        return encoded

    def bias(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """What a bias kind adds to the scores, as its untrained module gives it; see `BiasModule.bias`."""
        made = self.module()
        if not isinstance(made, BiasModule):
            raise ArgumentError("encoding", self.kind, "this kind adds no bias to the scores")
        return made.bias(of_queries, of_keys)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict with the key `kind`; `from_dict` reads it back."""
        return {"kind": self.kind} | {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Encoding:
        """The encoding that `to_dict` wrote; an unknown kind or key, or a missing one, is refused by name."""
        if not isinstance(data, dict):
            raise ArgumentError("encoding", data, "give a dict with the key 'kind'")
        kind = data.get("kind", "")
        if not isinstance(kind, str) or kind not in _REGISTRY:
            raise unknown_name("kind", kind, _REGISTRY)
        target = _REGISTRY[kind]
        return target._from_fields({k: v for k, v in data.items() if k != "kind"})

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Encoding:
        """Build from plain fields; subclasses with other nested values than encodings override and call back."""
        inner = {name: cls.from_dict(fields[name]) for name in cls.nested if isinstance(fields.get(name), dict)}
        fields = fields | inner
        known = {f.name for f in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise ArgumentError(
                    name, fields[name], f"{cls.kind} has no such field; it has {', '.join(sorted(known))}"
                )
        for field in dataclasses.fields(cls):
            if field.name not in fields and field.default is dataclasses.MISSING:
                raise ArgumentError(field.name, None, f"{cls.kind} needs this field")
        return cls(**fields)


class EncodingModule(torch.nn.Module):
    """The root of all encodings' modules: RotaryModule, BiasModule, ScoreModule and AbsoluteModule say what each does.

    `forward(q, k, positions)` gives queries (B, H, N, ·) and keys (B, G, M, ·) as attention compares them; kinds that
    act elsewhere give back the very tensors.
    """

    def constants(self) -> dict[str, Tensor]:
        """Buffers by name that the config gives: no cast to half and no empty meta copy spoils them."""
        return {}

    def forward(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """The very q (B, H, N, d) and k (B, G, M, d) given; their positions are checked."""
        of_queries_and_keys(positions, q, k)
        return q, k

    def _apply(self, fn: Any, recurse: bool = True) -> EncodingModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self.constants().items():
            device = getattr(self, name).device
            if device.type != "meta":
                setattr(self, name, value.to(device))
        return self


class RotaryModule(EncodingModule):
    """The module of a rotary kind, in two steps so that layers with the same schedule can share their tables.

    `tables` depends on positions alone and may be made once for many layers whose `table_key` is equal;
    `encode` applies them. `forward` does both and checks its arguments.
    """

    head_dim: int

    @property
    def table_key(self) -> Hashable:
        """Equal keys mean equal tables."""
        raise NotImplementedError

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        """(cos, sin), each (..., N, r) of `dtype`, for integer positions (N,) or (B, N)."""
        raise NotImplementedError

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, N, d) and k (B, G, M, d) encoded; pairs are (of queries, of keys). Nothing is checked."""
        raise NotImplementedError

    def own_keys(self, num_heads: int, num_kv_heads: int) -> tuple[tuple[int, int], ...]:
        """Pairs (query head, index) of heads with own keys, which `encode` puts after the G keys."""
        return ()

    def forward(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """q (B, H, N, head_dim) and k (B, G, M, head_dim) encoded at their positions; dtypes are kept.

        `positions` are integers, (N,) or (B, N), or a pair (of queries, of keys). Raises ArgumentError for
        shapes that don't agree, and for positions that aren't integers or, on the CPU, negative.
        """
        for argument, x in (("q", q), ("k", k)):
            if x.dim() != 4 or x.shape[-1] != self.head_dim:
                remedy = f"give (batch, heads, tokens, head_dim={self.head_dim})"
                raise ArgumentError(f"{argument}.shape", tuple(x.shape), remedy)
        of_queries, of_keys = of_queries_and_keys(positions, q, k)
        is_shared = of_keys is of_queries and k.dtype == q.dtype
        of_queries = of_queries if of_queries.dim() == 2 else of_queries[None]
        tables = self.tables(of_queries, q.dtype)
        if is_shared:
            return self.encode(q, k, (of_queries, of_queries), (tables, tables))
        of_keys = of_keys if of_keys.dim() == 2 else of_keys[None]
        return self.encode(q, k, (of_queries, of_keys), (tables, self.tables(of_keys, k.dtype)))


class BiasModule(EncodingModule):
    """The module of a kind that adds a number to each score, before the softmax.

    Most depend on the distance alone: those override `by_distance`. One that depends on the positions themselves sets
    `is_relative` to False and overrides `bias`.
    """

    is_relative: ClassVar[bool] = True

    @property
    def num_heads(self) -> int:
        """Query heads H."""
        raise NotImplementedError

    def by_distance(self, distances: Tensor) -> Tensor:
        """The bias (H, *) float32 at integer distances (*), each the query's position minus the key's."""
        raise NotImplementedError

    def bias(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """The bias (H, N, M), or (B, H, N, M) when either has a batch, for positions (N,) or (B, N) and (M,) or (B, M).

        float32, whatever the model's dtype.
        """
        # In int64: a difference of uint8 positions would wrap.
        found = self.by_distance(of_queries.long()[..., :, None] - of_keys.long()[..., None, :])
        return found if found.dim() == 3 else found.movedim(0, 1)


class ScoreModule(EncodingModule):
    """The module of a kind that needs the scores themselves, or several of them: attention asks it block by block.

    mixes_keys: whether a score depends on the keys beside its own too, so that their order in memory counts.
    """

    mixes_keys: bool = False

    def keys(self, k: Tensor, of_keys: Tensor, num_heads: int | None = None) -> tuple[Tensor, ...]:
        """What `scores` needs of the keys k (B, G, M, d) at positions (1, M) or (B, M); each (B, G or H, M, ·).

        `num_heads`: H, of the queries; as many as k has when None.
        """
        return (k,)

    def scores(
        self,
        q: Tensor,
        keys: tuple[Tensor, ...],
        of_queries: Tensor,
        of_keys: Tensor,
        visible: Tensor | None,
        scale: float,
    ) -> Tensor:
        """The scores (B, H, N, M) before mask and softmax of some queries q (B, H, N, d).

        Args:
            keys: what `keys` gave, perhaps cut to fewer keys.
            of_queries, of_keys: positions (1, N) or (B, N), and (1, M) or (B, M).
            visible: which keys each query may see, bool, broadcastable to (B, H, N, M); None: all. The caller masks.
            scale: what the dot products are multiplied by.
        """
        raise NotImplementedError


class AbsoluteModule(EncodingModule):
    """The module of a kind that is added to the token vectors, before the first layer."""

    def embed(self, positions: Tensor) -> Tensor:
        """(..., N, width) for integer positions (..., N)."""
        raise NotImplementedError


def encodings() -> dict[str, type[Encoding]]:
    """The registry: every encoding's class by its name."""
    return dict(_REGISTRY)


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value
