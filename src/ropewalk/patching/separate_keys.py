"""Attention for query heads that read a key of their own under grouped keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.encodings.base import RotaryModule

ATTENTION = "ALL_ATTENTION_FUNCTIONS"
AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
# Arguments of attention functions that hold one number a query head: attention sinks.
_PER_HEAD = ("s_aux", "sinks")


class AttentionRegistry:
    """Stands for transformers' registry of attention functions inside one layer."""

    def __init__(self, registry: Any):
        self._registry = registry

    def get_interface(self, name: str, default: AttentionFunction) -> AttentionFunction:
        """The registry's function of that name, wrapped."""
        return self.wrapped(self._registry.get_interface(name, default), name)

    def __getitem__(self, name: str) -> AttentionFunction:
        return self.wrapped(self._registry[name], name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def wrapped(self, attention: AttentionFunction, name: str) -> AttentionFunction:
        """What the layer calls in place of `attention`, which goes by this name."""
        raise NotImplementedError


class OwnKeyAttention(AttentionRegistry):
    """Attention in a layer with own keys, which hands over G + E key heads and G value heads.

    The model's own function runs on the first G for all query heads; then it runs once more for the few
    heads with own keys, and their rows replace the first ones. So every attention implementation, mask and
    window keeps working, at a cost of E / H of one attention.
    """

    def __init__(self, registry: Any, module: RotaryModule):
        super().__init__(registry)
        self._module = module

    def wrapped(self, attention: AttentionFunction, name: str) -> AttentionFunction:
        def attend(
            layer: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> tuple[Tensor, Tensor | None]:
            groups, num_heads = value.shape[1], query.shape[1]
            if key.shape[1] == groups:
                return attention(layer, query, key, value, attention_mask, *args, **kwargs)
            output, weights = attention(layer, query, key[:, :groups], value, attention_mask, *args, **kwargs)
            readers = self._module.own_keys(num_heads, groups)
            heads = torch.tensor([head for head, _ in readers], device=query.device)
            own = key[:, [groups + index for _, index in readers]]
            values = value[:, [head // (num_heads // groups) for head, _ in readers]]
            few = _FewHeads(layer, heads, num_heads)
            mask = _of_heads(attention_mask, heads, num_heads)
            cut = {
                name: _of_heads(held, heads, num_heads, is_per_head=name in _PER_HEAD) for name, held in kwargs.items()
            }
            part, part_weights = attention(few, query[:, heads], own, values, mask, *args, **cut)
            output = output.index_copy(2, heads, part.to(output.dtype))
            if weights is not None and part_weights is not None:
                weights = weights.index_copy(1, heads, part_weights)
            return output, weights

        return attend


class OwnKeyForward:
    """A layer's forward whose preallocated cache gets room for G + E key heads beside G value heads."""

    def __init__(self, forward: Callable[..., Any], index: int):
        self._forward, self._index = forward, index

    @property
    def __func__(self) -> Any:
        """The function beneath, as a method has it: who reads the layer's code finds it here too."""
        return getattr(self._forward, "__func__", self._forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's forward, unchanged but for what `_make_room` does to its cache first."""
        cache = kwargs.get("past_key_values")
        layers = getattr(cache, "layers", None)
        if layers is not None and self._index < len(layers):
            _make_room(layers[self._index])
        return self._forward(*args, **kwargs)


class _RoomForOwnKeys:
    """A static cache layer's `lazy_initialization` that gives values as many heads as values have."""

    def __init__(self, layer: Any):
        self._layer = layer

    def __call__(self, key_states: Tensor, value_states: Tensor) -> None:
        type(self._layer).lazy_initialization(self._layer, key_states, value_states)
        values = self._layer.values
        if values.dim() == 4 and values.shape[1] != value_states.shape[1]:
            size = (values.shape[0], value_states.shape[1], *values.shape[2:])
            self._layer.values = values.new_zeros(size)
            if not torch.compiler.is_compiling():
                torch._dynamo.mark_static_address(self._layer.values)


def _make_room(layer: Any) -> None:
    """Let a static cache layer, still empty, hold more key heads than value heads; others can already."""
    is_static = hasattr(layer, "max_cache_len") and hasattr(layer, "lazy_initialization")
    if is_static and not layer.is_initialized and "lazy_initialization" not in layer.__dict__:
        layer.lazy_initialization = _RoomForOwnKeys(layer)


class _FewHeads:
    """The layer as seen by a call for some of its heads: no grouping, per-head parameters cut to them."""

    num_key_value_groups = 1

    def __init__(self, layer: nn.Module, heads: Tensor, num_heads: int):
        self._layer, self._heads, self._num_heads = layer, heads, num_heads

    def __getattr__(self, name: str) -> Any:
        return _of_heads(getattr(self._layer, name), self._heads, self._num_heads, is_per_head=name in _PER_HEAD)


def _of_heads(held: Any, heads: Tensor, num_heads: int, is_per_head: bool = False) -> Any:
    """A per-head tensor cut to some heads: one number a head, or (B, H, N, M); anything else as it is."""
    if not isinstance(held, Tensor):
        return held
    if is_per_head and held.dim() == 1:
        return held[heads]
    if held.dim() == 4 and held.shape[1] == num_heads and num_heads > 1:
        return held[:, heads]
    return held
