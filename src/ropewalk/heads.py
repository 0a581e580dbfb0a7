"""A set of (layer, query head) pairs as a value: what a repair of single heads is applied to."""

from __future__ import annotations

import dataclasses
import json
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

from ropewalk.errors import ArgumentError, DamagedFileError


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class HeadSelection:
    """An immutable set of (layer, query head) pairs, counted from 0 and iterated in sorted order.

    Args:
        pairs: any iterable of (layer, head) tuples or lists; duplicates collapse.

    Raises:
        ArgumentError: an entry isn't a pair of non-negative integers (a bool isn't an integer here).
    """

    pairs: tuple[tuple[int, int], ...]

    def __init__(self, pairs: Iterable[Iterable[int]] = ()) -> None:
        object.__setattr__(self, "pairs", _sorted_pairs(pairs))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __contains__(self, pair: object) -> bool:
        return isinstance(pair, (tuple, list)) and tuple(pair) in self.pairs

    def __repr__(self) -> str:
        return f"HeadSelection({list(self.pairs)})"

    def __or__(self, other: object) -> HeadSelection:
        if not isinstance(other, HeadSelection):
            return NotImplemented
        return HeadSelection(self.pairs + other.pairs)

    def __and__(self, other: object) -> HeadSelection:
        if not isinstance(other, HeadSelection):
            return NotImplemented
        return HeadSelection(set(self.pairs) & set(other.pairs))

    def __sub__(self, other: object) -> HeadSelection:
        if not isinstance(other, HeadSelection):
            return NotImplemented
        return HeadSelection(set(self.pairs) - set(other.pairs))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a selected head, ascending."""
        return tuple(sorted({layer for layer, _ in self.pairs}))

    @property
    def first_layer(self) -> int | None:
        """The lowest layer that has a selected head; None when nothing is selected.

        Everything below it is the same with and without the selection.
        """
        return self.pairs[0][0] if self.pairs else None

    def in_layer(self, layer: int) -> tuple[int, ...]:
        """The selected query heads of one layer, ascending; empty when it has none."""
        return tuple(head for at, head in self.pairs if at == layer)

    def check(self, num_layers: int, num_heads: int) -> None:
        """Raise ArgumentError unless every pair exists in a model of this many layers and query heads."""
        for layer, head in self.pairs:
            if layer >= num_layers:
                remedy = f"the model has {num_layers} layers, 0 to {num_layers - 1}"
                raise ArgumentError("layer", layer, remedy)
            _check_head(layer, head, num_heads)

    def kv_groups(self, num_heads: int, num_kv_heads: int) -> HeadSelection:
        """The selection widened to whole groups: all query heads that share a key head with a selected one.

        Query head h reads key head h // (num_heads // num_kv_heads), as in `repeat_kv`.

        Raises:
            ArgumentError: num_heads isn't a multiple of num_kv_heads, or a selected head is out of range.
        """
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ArgumentError("num_kv_heads", num_kv_heads, f"must divide num_heads={num_heads}")
        size = num_heads // num_kv_heads
        for layer, head in self.pairs:
            _check_head(layer, head, num_heads)
        starts = {(layer, head - head % size) for layer, head in self.pairs}
        return HeadSelection((layer, start + i) for layer, start in starts for i in range(size))

    def to_list(self) -> list[list[int]]:
        """The pairs as sorted lists, ready for JSON; `HeadSelection(...)` reads them back."""
        return [list(pair) for pair in self.pairs]

    def to_json(self) -> str:
        """The pairs as one line of JSON, such as `[[3, 1], [20, 7]]`."""
        return json.dumps(self.to_list())

    @classmethod
    def from_json(cls, text: str) -> HeadSelection:
        """The selection that `to_json` wrote; DamagedFileError when the text holds anything else."""
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DamagedFileError(f"head selection isn't JSON ({reason}); write it with to_json()") from None
        if not isinstance(data, list):
            raise DamagedFileError(f"head selection is {data!r}; it must be a list of [layer, head] pairs")
        try:
            return cls(data)
        except ArgumentError as error:
            raise DamagedFileError(f"head selection holds a wrong entry: {error}") from None


def _sorted_pairs(pairs: Any) -> tuple[tuple[int, int], ...]:
    if isinstance(pairs, (str, bytes, dict)) or not isinstance(pairs, Iterable):
        raise ArgumentError("pairs", pairs, "must be a list of (layer, head) pairs")
    return tuple(sorted({_pair(entry) for entry in pairs}))


def _check_head(layer: int, head: int, num_heads: int) -> None:
    if head >= num_heads:
        remedy = f"layer {layer} has {num_heads} query heads, 0 to {num_heads - 1}"
        raise ArgumentError("head", head, remedy)


def _pair(entry: Any) -> tuple[int, int]:
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        raise ArgumentError("pairs", entry, "each entry must be a pair (layer, head)")
    for index in entry:
        # NumPy's integers count as Integral; bool does too, but True as a layer is a mistake.
        if isinstance(index, bool) or not isinstance(index, numbers.Integral) or index < 0:
            raise ArgumentError("pairs", entry, "layer and head must be integers of 0 or more")
    return int(entry[0]), int(entry[1])
