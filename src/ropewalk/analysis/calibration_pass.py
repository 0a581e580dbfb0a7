"""One calibration pass: every head's Gram matrices while a model reads a text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ropewalk.analysis.gram_matrix import GramAccumulator
from ropewalk.analysis.head_statistics import STAGES, Statistics
from ropewalk.encodings.base import Encoding, RotaryModule, Tables
from ropewalk.encodings.model_rotation import model_config, rotary_layers
from ropewalk.encodings.remap import Remap, RemapModule, Turn, WrappedRemapModule
from ropewalk.encodings.rope import RoPE, RoPEModule
from ropewalk.errors import ArgumentError, UnsupportedModelError, unknown_name
from ropewalk.patching import installed
from ropewalk.patching.input_limits import check_vocabulary

CHUNK_TOKENS = 1024


def measure(
    model: nn.Module,
    input_ids: Tensor,
    stages: Sequence[str] = ("post_ntk",),
    rope: Encoding | None = None,
    attention_mask: Tensor | None = None,
) -> Statistics:
    """Read `input_ids` once and keep a Gram matrix X^T X of each head's queries and keys at each stage.

    Beyond what the model needs for the pass itself, this keeps d x d numbers a head and stage, and works on chunks
    of 1024 tokens: memory doesn't grow with the text.

    Args:
        input_ids: (B, N) tokens; text of the target length, as heads chosen at another length do worse (v2).
        stages: of `pre_ntk` (before any rotation), `post_rope` (rotated by the model's own frequencies) and
            `post_ntk` (rotated by `rope`).
        rope: the rotation in force during the pass, with its length rule; the model's own when None. Under a remap of
            positions `post_ntk` is its far view: queries and keys that are further apart than its window, turned to
            the positions at which those are compared; the other stages and padding can't be had.
        attention_mask: (B, N), 1 for real tokens; all when None. Positions count real tokens alone.

    Raises:
        ArgumentError: an unknown stage, a wrong shape, or a `rope` that isn't one or doesn't fit the model.
        UnsupportedModelError: no rotary attention, or layers whose heads differ in number or size.
    """
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES)
    if not stages:
        raise ArgumentError("stages", stages, f"give at least one of {', '.join(STAGES)}")
    if input_ids.dim() != 2 or input_ids.shape[1] < 1:
        raise ArgumentError("input_ids.shape", tuple(input_ids.shape), "give tokens of shape (batch, tokens)")
    layers = rotary_layers(model)
    check_vocabulary(model, input_ids.flatten().tolist())
    own = {layer.index: layer.rope for layer in layers}
    rope = rope or RoPE.from_model(model)
    for layer in layers:
        config = rope.at(layer.index)
        if isinstance(config, Remap) and input_ids.shape[1] <= config.near[1]:
            remedy = f"no token is past the remap's {config.near[0]} of {config.near[1]:,}; give more tokens"
            raise ArgumentError("input_ids.shape", tuple(input_ids.shape), remedy)
    mask, positions = _mask_and_positions(input_ids, attention_mask)
    tapped = _Tapped(rope, own, tuple(dict.fromkeys(stages)), mask)
    whole: Any = model
    reader = whole.get_decoder() if hasattr(model, "get_decoder") else whole
    with torch.no_grad(), installed(model, tapped):
        reader(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions)
    taps = {index: tap for index, tap in tapped.taps.items() if tap.is_heard}
    return _statistics(model, input_ids, taps, tapped.stages)


def _mask_and_positions(ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The mask as bool, and the model's argument for positions: padding on the left shifts nobody's position."""
    if attention_mask is None:
        return None, {}
    if attention_mask.shape != ids.shape:
        remedy = f"give the shape of input_ids, {tuple(ids.shape)}"
        raise ArgumentError("attention_mask.shape", tuple(attention_mask.shape), remedy)
    mask = attention_mask.bool()
    return mask, {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}


def _statistics(
    model: nn.Module, input_ids: Tensor, taps: dict[int, _TapModule | _TapRemapModule], stages: tuple[str, ...]
) -> Statistics:
    indices = tuple(sorted(taps))
    inner = taps[indices[0]].inner
    rope = inner.rope.encoding if isinstance(inner, RemapModule) else inner.encoding
    shapes = {tuple(pair[s].gram.shape for s in (0, 1)) for i in indices for pair in [taps[i].sums[stages[0]]]}
    if len(shapes) != 1:
        raise UnsupportedModelError(f"{type(model).__name__} has layers whose heads differ in number or size")
    num_tokens = taps[indices[0]].sums[stages[0]][0].count
    grams = {}
    for stage in stages:
        # Let go of a stage's sums once they are stacked, so that no more than one stage is there twice.
        pairs = [taps[i].sums.pop(stage) for i in indices]
        grams[stage] = torch.stack([pair[0].gram for pair in pairs]), torch.stack([pair[1].gram for pair in pairs])
    config = model_config(model)
    return Statistics(
        grams=grams,
        num_tokens=num_tokens,
        layers=indices,
        layout=rope.layout,
        rotary_dim=min(rope.width, grams[stages[0]][0].shape[-1]),
        model=str(getattr(config, "_name_or_path", "") or type(model).__name__),
        text_fingerprint=hashlib.sha256(input_ids.cpu().numpy().tobytes()).hexdigest(),
    )


@dataclass(frozen=True, eq=False)
class _Tapped(Encoding):
    """`rope` with an ear at each layer. Not a registered kind: it lives for one pass."""

    kind: ClassVar[str] = ""

    rope: Encoding
    own: dict[int, RoPE]
    stages: tuple[str, ...]
    mask: Tensor | None

    taps: dict[int, _TapModule | _TapRemapModule] = field(default_factory=dict)

    def at(self, layer: int) -> Encoding:
        return _LayerTap(self, layer)


@dataclass(frozen=True)
class _LayerTap(Encoding):
    tapped: _Tapped
    layer: int

    def module(self) -> RotaryModule | RemapModule:
        inner = self.tapped.rope.at(self.layer).module()
        if isinstance(inner, RemapModule):
            self._check_remap()
            listening = _TapRemapModule(inner)
            self.tapped.taps[self.layer] = listening
            return listening
        if not isinstance(inner, RoPEModule):
            raise ArgumentError("rope", self.tapped.rope, "measure needs a RoPE in each layer")
        own = self.tapped.own[self.layer]
        if (inner.head_dim, inner.encoding.width) != (own.head_dim, own.width):
            remedy = f"layer {self.layer} has heads of {own.head_dim} channels of which {own.width} turn"
            raise ArgumentError("rope", inner.encoding, remedy)
        tap = _TapModule(inner, own.module(), self.tapped)
        self.tapped.taps[self.layer] = tap
        return tap

    def _check_remap(self) -> None:
        if self.tapped.stages != ("post_ntk",):
            raise ArgumentError("stages", self.tapped.stages, "under a remap of positions give post_ntk alone")
        mask = self.tapped.mask
        if mask is not None and not bool(mask.all()):
            raise ArgumentError("attention_mask", tuple(mask.shape), "under a remap of positions give no padding")


class _TapModule(RotaryModule):
    """Rotates as `inner` does and sums Gram matrices on the way."""

    def __init__(self, inner: RoPEModule, own: RoPEModule, tapped: _Tapped):
        super().__init__()
        self.inner, self.own, self.stages, self.mask = inner, own, tapped.stages, tapped.mask
        self.head_dim = inner.head_dim
        self.sums: dict[str, tuple[GramAccumulator, GramAccumulator]] = {}
        self._taps = tapped.taps
        self._sizes: tuple[int, int, int] | None = None

    @property
    def is_heard(self) -> bool:
        """Whether any token went through this layer's rotation."""
        return any(pair[0].count for pair in self.sums.values())

    @property
    def table_key(self) -> Any:
        return self.inner.table_key

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        return self.inner.tables(positions, dtype)

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        q2, k2 = self.inner.encode(q, k, positions, tables)
        for stage in self.stages:
            queries, keys = self._sums(stage, q, k)
            if stage == "post_rope" and self.own.table_key != self.inner.table_key:
                self._add_turned(queries, q, positions[0])
                self._add_turned(keys, k, positions[1])
            else:
                queries.add(q if stage == "pre_ntk" else q2, self.mask)
                keys.add(k if stage == "pre_ntk" else k2, self.mask)
        return q2, k2

    def _sums(self, stage: str, q: Tensor, k: Tensor) -> tuple[GramAccumulator, GramAccumulator]:
        if (q.shape[1], k.shape[1], q.shape[3]) != self._sizes:
            # For all layers at once: made one by one, each would be carved out of the room that a layer's vectors have
            # just left, the next layer's wouldn't fit there any more, and the heap would grow by a layer's vectors.
            for tap in self._taps.values():
                if isinstance(tap, _TapModule) and (tap._sizes is None or tap is self):
                    tap._make_sums(q, k)
        return self.sums[stage]

    def _make_sums(self, q: Tensor, k: Tensor) -> None:
        self._sizes = q.shape[1], k.shape[1], q.shape[3]
        for stage in self.stages:
            first, second = (GramAccumulator(x.shape[1], x.shape[3], x.device, CHUNK_TOKENS) for x in (q, k))
            self.sums[stage] = first, second

    def _add_turned(self, into: GramAccumulator, x: Tensor, positions: Tensor) -> None:
        """Add x turned by the model's own frequencies, a chunk at a time: the pass itself never turns it so."""
        for start in range(0, x.shape[2], CHUNK_TOKENS):
            tokens = slice(start, start + CHUNK_TOKENS)
            tables = self.own.tables(positions[:, tokens], x.dtype)
            into.add(self.own.rotate(x[:, :, tokens], *tables), None if self.mask is None else self.mask[:, tokens])


class _TapRemapModule(WrappedRemapModule):
    """Compares as the remap `inner` does and sums Gram matrices of its far view: queries and keys as turned."""

    def __init__(self, inner: RemapModule):
        super().__init__(inner)
        self.sums: dict[str, tuple[GramAccumulator, GramAccumulator]] = {}

    @property
    def is_heard(self) -> bool:
        """Whether any token was further from another than the remap's window."""
        return any(pair[0].count for pair in self.sums.values())

    def turned_query(self, q: Tensor, piece: int, turn: Turn, num_kv_heads: int) -> Tensor:
        turned = super().turned_query(q, piece, turn, num_kv_heads)
        if piece > 0:
            self._summed(q.shape[1], num_kv_heads, q)[0].add(turned, None)
        return turned

    def turned_key(self, k: Tensor, index: int, turn: Turn, num_heads: int) -> Tensor:
        turned = super().turned_key(k, index, turn, num_heads)
        if index == self.key_of_piece[-1]:
            self._summed(num_heads, k.shape[1], k)[1].add(turned, None)
        return turned

    def _summed(self, num_heads: int, num_kv_heads: int, x: Tensor) -> tuple[GramAccumulator, GramAccumulator]:
        if "post_ntk" not in self.sums:
            first, second = (
                GramAccumulator(heads, x.shape[3], x.device, CHUNK_TOKENS) for heads in (num_heads, num_kv_heads)
            )
            self.sums["post_ntk"] = first, second
        return self.sums["post_ntk"]
