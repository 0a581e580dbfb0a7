"""What stands in a model during its probing: parts that watch, and own keys that should change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.encodings.base import RotaryModule, Tables
from ropewalk.patching.rotary_patch import LayerEncoder, StepTables
from ropewalk.patching.separate_keys import AttentionFunction, AttentionRegistry


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """What a layer hands its rotation, how many key heads it hands its attention, and which unusual options."""

    num_heads: int
    num_kv_heads: int
    channels: int
    attended_kv_heads: int | None = None
    options: tuple[str, ...] = ()

    @property
    def is_regrouped(self) -> bool:
        """Whether the layer deals its key heads out to query heads itself, in an order of its own."""
        return self.num_kv_heads > 1 and self.attended_kv_heads not in (None, self.num_kv_heads)


class WatchingEncoder(LayerEncoder):
    """Rotates as the model does and notes the shapes that it is given."""

    def __init__(self, own: RotaryModule, index: int, seen: dict[int, LayerShape]):
        super().__init__(own, own)
        self._index, self._seen = index, seen

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor,
        step: StepTables,
        *_: Any,
        unsqueeze_dim: int = 1,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """As LayerEncoder."""
        encoded = super().__call__(q, k, positions, step, unsqueeze_dim=unsqueeze_dim)
        heads = unsqueeze_dim  # 1 or 2: the axis that transformers names to its function
        self._seen[self._index] = LayerShape(q.shape[heads], k.shape[heads], q.shape[-1])
        return encoded


class WatchingAttention(AttentionRegistry):
    """Attends as the model does and notes how many key heads attention gets, and whether scores are capped or sunk."""

    def __init__(self, registry: Any, index: int, seen: dict[int, LayerShape]):
        super().__init__(registry)
        self._index, self._seen = index, seen

    def wrapped(self, attention: AttentionFunction, name: str) -> AttentionFunction:
        def attend(
            layer: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            if self._index in self._seen:
                options = tuple(name for name in ("softcap", "s_aux") if kwargs.get(name) is not None)
                shape = self._seen[self._index]
                self._seen[self._index] = dataclasses.replace(shape, attended_kv_heads=key.shape[1], options=options)
            return attention(layer, query, key, *args, **kwargs)

        return attend


class EchoModule(RotaryModule):
    """The model's own rotation, with own keys that equal the key that their readers share with others."""

    def __init__(self, own: RotaryModule, module: RotaryModule):
        super().__init__()
        self.own, self.module = own, module

    @property
    def table_key(self) -> Hashable:
        return self.own.table_key

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        return self.own.tables(positions, dtype)

    def own_keys(self, num_heads: int, num_kv_heads: int) -> tuple[tuple[int, int], ...]:
        return self.module.own_keys(num_heads, num_kv_heads)

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        q2, k2 = self.own.encode(q, k, positions, tables)
        size = q.shape[1] // k.shape[1]
        group_of = {index: head // size for head, index in self.own_keys(q.shape[1], k.shape[1])}
        return q2, torch.cat([k2, k2[:, [group_of[index] for index in sorted(group_of)]]], dim=1)
