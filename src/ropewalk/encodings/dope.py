"""DoPE: RoPE with the rotation of some heads removed in part, removed in whole, or replaced by noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import Encoding, EncodingModule, RotaryModule, Tables
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rope import RoPE, RoPEModule, rotate, spread
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.heads import HeadSelection
from ropewalk.validation import check_length, check_positive

_MASK = 0xFFFFFFFF
_STEP = 0x9E3779B9


def gaussian(seed: int, stream: int, layer: int, heads: Sequence[int], positions: Tensor, channels: int) -> Tensor:
    """Standard normal draws of shape (*positions.shape[:-1], len(heads), N, channels), float32.

    Each draw depends on (seed, stream, layer, head, position, channel) and on nothing else: not on the
    batch, not on how the sequence was cut, not on the state of any generator. A 32-bit counter hash gives
    two uniform numbers, the Box-Muller transform one normal number; its largest magnitude is sqrt(2 ln
    2^25), about 5.9.

    Args:
        positions: integers, shape (N,) or (B, N).
    """
    device = positions.device
    start = 0
    for part in (seed & _MASK, (seed >> 32) & _MASK, stream, layer):
        start = _mix_int((start + _STEP) ^ _mix_int(part + _STEP))
    keys = torch.tensor([_mix_int((start + _STEP) ^ _mix_int(h + _STEP)) for h in heads], device=device)
    at = _mix(positions.to(torch.int64) + _STEP).unsqueeze(-2)  # (..., 1, N)
    keys = _mix((keys.unsqueeze(-1) + _STEP) ^ at)  # (..., heads, N)
    channel = _mix(torch.arange(channels, device=device) + _STEP)
    first = _mix((keys.unsqueeze(-1) + _STEP) ^ channel)  # (..., heads, N, channels)
    second = _mix(first + _STEP)
    radius = torch.sqrt(-2.0 * torch.log(_uniform(first)))
    return radius * torch.cos(2.0 * math.pi * _uniform(second))


def _uniform(bits: Tensor) -> Tensor:
    """32 random bits -> the middle of one of 2^24 equal cells of (0, 1), float32."""
    return ((bits >> 8).to(torch.float32) + 0.5) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (in int64): each input bit moves about half of the output bits."""
    x = x & _MASK
    x = _times(x ^ (x >> 16), 0x85EBCA6B)
    x = _times(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)


def _mix_int(x: int) -> int:
    x &= _MASK
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _MASK
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _MASK
    return x ^ (x >> 16)


def _times(x: Tensor, factor: int) -> Tensor:
    """x * factor mod 2^32 in two halves: the whole product would overflow a signed 64-bit integer."""
    low = (x & 0xFFFF) * factor
    high = ((x >> 16) * factor & 0xFFFF) << 16
    return (low + high) & _MASK


READINGS: dict[str, tuple[str, ...]] = {
    "parts": ("unrotated", "drop"),
    "all": ("nope", "zero"),
    "gaussian": ("rotation", "replace", "multiply"),
}
# Readings that change a head's vectors themselves, not its rotation: they need all channels of the head.
WHOLE_VECTOR = ("zero", "replace", "multiply")
SCOPES = ("query_head", "kv_group")
SIDES = ("both", "query", "key")
VIEWS = ("both", "near", "far")
_ROTATION, _QUERY, _KEY = 0, 1, 2


@dataclass(frozen=True)
class DoPE(Encoding):
    """Denoising rotary position embedding (Xiong et al., arXiv 2511.09146), a training-free repair of a RoPE
    model.

    The selected heads lose their rotation; all other heads keep `rope`. Modes and their readings (the first
    is the
    default):

    - `parts`: bands with theta_f <= 2 pi / original_length are not rotated, cos = 1 and sin = 0
    (`unrotated`, figure
      1), or those channels become 0 in q and k (`drop`, v1 eq. 34). theta_f is the model's own band, before
      any rule.
    - `all`: the head is not rotated at all (`nope`), or its q and k become 0 so that it attends evenly
      (`zero`, v1 eq. 35 taken literally).
    - `gaussian`: (cos, sin) of each band are replaced by draws of standard deviation `sigma` (`rotation`,
      v2 figure 1), q and k become such draws (`replace`, v1 eq. 36-37), or the unrotated q and k are
      multiplied by them elementwise (`multiply`, v2 eq. 17). A draw is a fixed function of seed, layer,
      head, position and channel.

    A rule's attention scale stays on what is not rotated, as it is a temperature and not a rotation; draws
    replace it together with (cos, sin).

    Args:
        rope: the RoPE, with its length rule, that all other heads keep, or a remap of positions; a `PerLayer` of
            them where layers differ.
        heads: the selected (layer, query head) pairs.
        original_length: the training length in tokens.
        scope: `query_head` (exact: under grouped keys a selected head gets a key of its own) or
            `kv_group` (whole groups are selected, their shared key changes, nothing is added).
        apply_to: `both`, `query` or `key`: which side loses its rotation.
        view: under a remap, where heads lose it: for keys `near` the query (whose positions are exact), for those
            `far` from it, or for `both`.
    """

    kind: ClassVar[str] = "dope"
    summary: ClassVar[str] = "RoPE whose selected heads lose their rotation or get noise for it (arXiv 2511.09146)"

    nested: ClassVar[tuple[str, ...]] = ("rope",)

    rope: RoPE | Remap | PerLayer
    heads: HeadSelection
    mode: str = "all"
    reading: str | None = None
    original_length: int = 8192
    seed: int = 42
    sigma: float = 1.0
    scope: str = "query_head"
    apply_to: str = "both"
    view: str = "both"

    def __post_init__(self) -> None:
        if not isinstance(self.rope, RoPE | Remap | PerLayer):
            raise ArgumentError("rope", self.rope, "give a RoPE, for example RoPE.from_model(model)")
        if not isinstance(self.heads, HeadSelection):
            raise ArgumentError("heads", self.heads, "give a HeadSelection([(layer, head), ...])")
        if not isinstance(self.mode, str) or self.mode not in READINGS:
            raise unknown_name("mode", self.mode, READINGS)
        if self.reading is None:
            object.__setattr__(self, "reading", READINGS[self.mode][0])
        for name, known in (("reading", READINGS[self.mode]), ("scope", SCOPES), ("apply_to", SIDES), ("view", VIEWS)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        check_length("original_length", self.original_length)
        check_positive("sigma", self.sigma)
        if self.view != "both" and not _has_remap(self.rope):
            raise ArgumentError("view", self.view, "a RoPE has one view: give 'both', or put DoPE on a remap")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ArgumentError("seed", self.seed, "give an integer from 0 to 2**64 - 1")

    def at(self, layer: int) -> Encoding:
        """The layer's encoding: plain RoPE where no head of the layer is selected."""
        rope = self.rope.at(layer)
        if not self.heads.in_layer(layer):
            return rope
        if not isinstance(rope, RoPE | Remap):
            raise ArgumentError("heads", self.heads, f"layer {layer} has no RoPE, so nothing can be removed from it")
        return _LayerDoPE(self, layer, rope)

    def module(self) -> EncodingModule:
        """The module of the only layer with selected heads; with several layers use `at(layer).module()`."""
        if len(self.heads.layers) > 1:
            raise ArgumentError("heads", self.heads, "more than one layer: take one with .at(layer)")
        layer = self.heads.layers[0] if self.heads.layers else 0
        made = self.at(layer).module()
        assert isinstance(made, EncodingModule)
        return made

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict() | {"heads": self.heads.to_list()}
        if self.view == "both":  # as in plans and records made before there were views
            del fields["view"]
        return fields

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Encoding:
        nested = dict(fields)
        if isinstance(nested.get("heads"), list):
            nested["heads"] = HeadSelection(nested["heads"])
        return super()._from_fields(nested)


@dataclass(frozen=True)
class _LayerDoPE(Encoding):
    dope: DoPE
    layer: int
    rope: RoPE | Remap

    def module(self) -> EncodingModule:
        if isinstance(self.rope, RoPE):
            return DoPEModule(self.dope, self.layer, self.rope)
        from ropewalk.encodings.dope_remap import DoPERemapModule  # it imports this module

        return DoPERemapModule(self.dope, self.layer, self.rope)


def _has_remap(rope: Encoding) -> bool:
    if isinstance(rope, PerLayer):
        return any(isinstance(entry, Remap) for _, entry in rope.layers)
    return isinstance(rope, Remap)


class DoPEModule(RotaryModule):
    """DoPE in one layer.

    `encode` returns keys of shape (B, G + E, M, d): the G keys that everybody else sees, then E keys of
    their own for the selected heads that share a group with heads that are not selected. `own_keys` says who
    reads which.
    """

    slow_channels: Tensor

    def __init__(self, dope: DoPE, layer: int, rope: RoPE):
        super().__init__()
        self.dope, self.layer, self.config = dope, layer, rope
        self.head_dim = rope.head_dim
        self.rope = RoPEModule(rope)
        bands = RoPE(rope.head_dim, rope.base, rotary_dim=rope.rotary_dim).schedule().frequencies
        slow = bands <= 2.0 * math.pi / dope.original_length
        self.register_buffer("slow_channels", spread(slow, rope.layout), persistent=False)

    @property
    def table_key(self) -> RoPE:
        return self.config

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        return self.rope.tables(positions, dtype)

    def own_keys(self, num_heads: int, num_kv_heads: int) -> tuple[tuple[int, int], ...]:
        """Pairs (query head, index among the E own keys) for a layer of these sizes."""
        _, _, added = self._units(num_heads, num_kv_heads)
        return tuple((reader, index) for index, (_, _, readers) in enumerate(added) for reader in readers)

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, N, d), k (B, G, M, d) -> (B, H, N, d), (B, G + E, M, d)."""
        queries = self.encode_queries(q, k.shape[1], positions[0], tables[0])
        return queries, self.encode_keys(k, q.shape[1], positions[1], tables[1])

    def encode_queries(self, q: Tensor, num_kv_heads: int, positions: Tensor, tables: Tables) -> Tensor:
        """q (B, H, N, d) with the selected heads changed, same shape."""
        self._check_channels(q.shape[-1])
        q2 = self.rope.rotate(q, *tables)
        if self.dope.apply_to != "key":
            selected, _, _ = self._units(q.shape[1], num_kv_heads)
            chosen = [head for head, _ in selected]
            q2[:, chosen] = self._changed(q[:, chosen], [head for _, head in selected], positions, tables, _QUERY)
        return q2

    def encode_keys(self, k: Tensor, num_heads: int, positions: Tensor, tables: Tables) -> Tensor:
        """k (B, G, M, d) with those of whole groups changed, then E keys of selected heads' own: (B, G + E, M, d)."""
        self._check_channels(k.shape[-1])
        k2 = self.rope.rotate(k, *tables)
        _, replaced, added = self._units(num_heads, k.shape[1])
        if self.dope.apply_to == "query":
            return k2
        if replaced:
            chosen = [group for group, _, _ in replaced]
            k2[:, chosen] = self._changed(k[:, chosen], [u[1] for u in replaced], positions, tables, _KEY)
        if added:
            own = self._changed(k[:, [u[0] for u in added]], [u[1] for u in added], positions, tables, _KEY)
            k2 = torch.cat([k2, own], dim=1)
        return k2

    def _check_channels(self, channels: int) -> None:
        whole = self.config.head_dim
        if self.dope.reading in WHOLE_VECTOR and channels < whole:
            use = READINGS[self.dope.mode][0] if self.dope.mode != "all" else "nope"
            remedy = f"this model hands over {channels} of {whole} channels; use {use}"
            raise ArgumentError("reading", self.dope.reading, remedy)

    def _units(self, num_heads: int, num_kv_heads: int) -> tuple[list[tuple[int, int]], list[Any], list[Any]]:
        """What changes: [(query head, noise head)], then keys as [(group, noise head, readers)], replaced
        and added.

        A group's key is replaced when all of its query heads want the same new key; else a key is added
        beside it.
        """
        size = num_heads // num_kv_heads
        heads = self.dope.heads
        if self.dope.scope == "kv_group":
            heads = heads.kv_groups(num_heads, num_kv_heads)
        mine = heads.in_layer(self.layer)
        if mine and max(mine) >= num_heads:
            raise ArgumentError("heads", (self.layer, max(mine)), f"the layer has query heads 0 to {num_heads - 1}")
        by_group: dict[int, list[int]] = {}
        for head in mine:
            by_group.setdefault(head // size, []).append(head)
        replaced, added = [], []
        is_shared = self.dope.scope == "kv_group"
        selected = [(head, head // size * size if is_shared else head) for head in mine]
        for group, readers in by_group.items():
            if len(readers) == size and (is_shared or self.dope.mode != "gaussian" or size == 1):
                replaced.append((group, readers[0], readers))
            elif self.dope.mode == "gaussian":
                added += [(group, reader, [reader]) for reader in readers]
            else:
                added.append((group, readers[0], readers))
        if self.dope.apply_to == "query":
            added = []
        return selected, replaced, added

    def _changed(self, x: Tensor, heads: Sequence[int], positions: Tensor, tables: Tables, side: int) -> Tensor:
        """What the selected heads get for x (B, S, N, d), before any rotation; `heads` name their noise."""
        cos, sin = tables
        scale = self.rope.attention_scale
        layout = self.config.layout
        match self.dope.reading:
            case "unrotated":
                return rotate(
                    x,
                    cos.masked_fill(self.slow_channels, scale),
                    sin.masked_fill(self.slow_channels, 0.0),
                    layout,
                )
            case "drop":
                return rotate(
                    x,
                    cos.masked_fill(self.slow_channels, 0.0),
                    sin.masked_fill(self.slow_channels, 0.0),
                    layout,
                )
            case "nope":
                return x if scale == 1.0 else rotate(x, torch.full_like(cos, scale), torch.zeros_like(sin), layout)
            case "zero":
                return torch.zeros_like(x)
            case "rotation":
                bands = cos.shape[-1] // 2
                drawn = spread(self._noise(_ROTATION, heads, positions, 2 * bands).unflatten(-1, (2, bands)), layout)
                return rotate(x, drawn[..., 0, :].to(x.dtype), drawn[..., 1, :].to(x.dtype), layout)
            case "replace":
                return self._noise(side, heads, positions, x.shape[-1]).to(x.dtype).expand_as(x).contiguous()
            case _:
                return x * self._noise(side, heads, positions, x.shape[-1]).to(x.dtype)

    def _noise(self, stream: int, heads: Sequence[int], positions: Tensor, channels: int) -> Tensor:
        return self.dope.sigma * gaussian(self.dope.seed, stream, self.layer, heads, positions, channels)
