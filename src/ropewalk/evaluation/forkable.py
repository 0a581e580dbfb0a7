"""A key/value cache that many questions can continue from, one after the other, without copying it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class ForkableLayer(DynamicLayer):
    """A growing layer with room kept free behind its tokens: appending writes in place, going back moves a number.

    Args:
        room: tokens of free space made beyond what a call needs.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room = room
        self.length = 0
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys (B, G, n, d) and values (B, G', n, d'); returns all of both."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self._key_room = self._with_room(self._key_room, key_states, end)
        self._value_room = self._with_room(self._value_room, value_states, end)
        self._key_room[:, :, self.length : end] = key_states
        self._value_room[:, :, self.length : end] = value_states
        self.go_to(end)
        return self.keys, self.values

    def go_to(self, length: int) -> None:
        """Make the first `length` tokens the cached ones; those behind are forgotten."""
        self.length = length
        if self._key_room is not None and self._value_room is not None:
            self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]

    def _with_room(self, held: Tensor | None, new: Tensor, end: int) -> Tensor:
        if held is not None and held.shape[2] >= end:
            return held
        grown = new.new_empty(*new.shape[:2], end + self.room, new.shape[-1])
        if held is not None:
            grown[:, :, : self.length] = held[:, :, : self.length]
        return grown


def forkable_cache(config: Any, room: int = 256) -> DynamicCache:
    """An empty cache for a model of this config whose full-attention layers can be forked for free."""
    cache = DynamicCache(config=config)
    cache.layers = [ForkableLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@contextmanager
def fork(cache: DynamicCache) -> Iterator[DynamicCache]:
    """The cache to continue from; on exit it is as it was. One fork at a time."""
    kept: list[Any] = []
    for layer in cache.layers:
        # Layers of other kinds (windows, recurrent states) are small: copied whole.
        kept.append(layer.length if isinstance(layer, ForkableLayer) else copy.deepcopy(layer))
    try:
        yield cache
    finally:
        for index, (layer, before) in enumerate(zip(cache.layers, kept, strict=True)):
            if isinstance(layer, ForkableLayer):
                layer.go_to(before)
            else:
                cache.layers[index] = before


def cached_bytes(cache: DynamicCache) -> int:
    """Bytes that the cached keys and values take, free room left out."""
    tensors = (t for layer in cache.layers for t in (layer.keys, layer.values) if isinstance(t, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)
