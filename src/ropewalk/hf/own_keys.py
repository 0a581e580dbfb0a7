"""Attention for query heads that read a key of their own under grouped keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.encodings.base import RotaryModule

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


class OwnKeyAttention:
    """Stands for transformers' registry of attention functions inside one layer.

    A layer with own keys hands over G + E key heads and G value heads. The model's own function runs on the first G
    for all query heads; then it runs once more for the few heads with own keys, and their rows replace the first
    ones. So every attention implementation, mask and window keeps working, at a cost of E / H of one attention.
    """

    def __init__(self, registry: Any, module: RotaryModule):
        self._registry = registry
        self._module = module

    def get_interface(self, name: str, default: AttentionFunction) -> AttentionFunction:
        """The registry's function of that name, wrapped."""
        return self._wrapped(self._registry.get_interface(name, default))

    def __getitem__(self, name: str) -> AttentionFunction:
        return self._wrapped(self._registry[name])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def _wrapped(self, attention: AttentionFunction) -> AttentionFunction:
        def attend(
            layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            groups = value.shape[1]
            if key.shape[1] == groups:
                return attention(layer, query, key, value, mask, *args, **kwargs)
            output, weights = attention(layer, query, key[:, :groups], value, mask, *args, **kwargs)
            num_heads = query.shape[1]
            readers = self._module.own_keys(num_heads, groups)
            heads = torch.tensor([head for head, _ in readers], device=query.device)
            own = key[:, [groups + index for _, index in readers]]
            values = value[:, [head // (num_heads // groups) for head, _ in readers]]
            part, part_weights = attention(
                _FewHeads(layer, heads, num_heads),
                query[:, heads],
                own,
                values,
                _of_heads(mask, heads, num_heads),
                *args,
                **{name: _of_heads(held, heads, num_heads) for name, held in kwargs.items()},
            )
            output = output.index_copy(2, heads, part)
            if weights is not None and part_weights is not None:
                weights = weights.index_copy(1, heads, part_weights)
            return output, weights

        return attend


class _FewHeads:
    """The attention layer as seen by a call for some of its heads: no grouping, per-head parameters cut to them."""

    num_key_value_groups = 1

    def __init__(self, layer: nn.Module, heads: Tensor, num_heads: int):
        self._layer, self._heads, self._num_heads = layer, heads, num_heads

    def __getattr__(self, name: str) -> Any:
        return _of_heads(getattr(self._layer, name), self._heads, self._num_heads)


def _of_heads(held: Any, heads: Tensor, num_heads: int) -> Any:
    """A per-head tensor cut to some heads: one number a head, or (B, H, N, M); anything else as it is."""
    if not isinstance(held, Tensor):
        return held
    if held.dim() == 1 and held.shape[0] == num_heads:
        return held[heads]
    if held.dim() == 4 and held.shape[1] == num_heads:
        return held[:, heads]
    return held
