"""A key/value cache that many questions can continue from, one after the other, without copying it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer


class ForkableLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A growing layer with room kept free behind its tokens: appending writes in place, going back moves a number.

    Args:
        room: tokens of free space made beyond what a call needs.
    """

    def __init__(self, room: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys (B, G, n, d) and values (B, G', n, d'); returns all of both."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._key_room, self.keys = self._appended(self._key_room, self.keys, key_states)
        self._value_room, self.values = self._appended(self._value_room, self.values, value_states)
        return self.keys, self.values

    def go_to(self, length: int) -> None:
        """Make the first `length` tokens the cached ones; those behind are forgotten."""
        if self.keys is not None and self.values is not None and self.get_seq_length() > 0:
            self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]

    def reset(self) -> None:
        """Forget all tokens and give the room back."""
        self._key_room = self._value_room = None
        super().reset()

    def _appended(self, room: Tensor | None, held: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """(room, its filled part): `held`, the first tokens of the room, and then `new`."""
        length = held.shape[2] if held is not None and held.dim() == 4 else 0
        end = length + new.shape[2]
        # Whoever reorders or moves a cache replaces `held` by tensors that aren't in the room any more.
        in_place = room is not None and (length == 0 or held is None or held.data_ptr() == room.data_ptr())
        if room is None or not in_place or room.shape[0] != new.shape[0] or room.shape[2] < end:
            grown = new.new_empty(*new.shape[:2], end + self.room, new.shape[-1])
            if held is not None and length:
                grown[:, :, :length] = held
            room = grown
        room[:, :, length:end] = new
        return room, room[:, :, :end]


def forkable_cache(config: Any, room: int = 256) -> DynamicCache:
    """An empty cache for a model of this config whose full-attention layers can be forked for free."""
    cache = DynamicCache(config=config)
    cache.layers = [ForkableLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@torch.no_grad()
def cache_after(model: nn.Module, ids: Tensor) -> DynamicCache:
    """A forkable cache after one pass of a model over tokens (B, N)."""
    config: Any = model.config
    cache = forkable_cache(config)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@contextmanager
def fork(cache: DynamicCache) -> Iterator[DynamicCache]:
    """The cache to continue from; on exit it is as it was. One fork at a time."""
    kept = list(cache.layers)
    lengths = [layer.get_seq_length() if isinstance(layer, ForkableLayer) else 0 for layer in kept]
    # Layers of other kinds (windows, recurrent states) are small: the fork gets copies of them. The layers themselves
    # may be in another cache too and stay as they are.
    cache.layers = [layer if isinstance(layer, ForkableLayer) else copy.deepcopy(layer) for layer in kept]
    try:
        yield cache
    finally:
        cache.layers = kept
        for layer, length in zip(kept, lengths, strict=True):
            if isinstance(layer, ForkableLayer):
                layer.go_to(length)
