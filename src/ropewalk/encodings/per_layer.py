"""An encoding that differs from layer to layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ropewalk.encodings.base import Encoding
from ropewalk.errors import ArgumentError


@dataclass(frozen=True)
class PerLayer(Encoding):
    """One encoding a layer, for models whose layers rotate with different bases or widths.

    Args:
        layers: pairs (layer index, encoding), one for each layer that has an encoding; indices are 0 or more.

    Raises ArgumentError for anything else, and for a layer that is named twice.
    """

    kind: ClassVar[str] = "per_layer"
    summary: ClassVar[str] = "one encoding a layer, for models whose layers differ"

    layers: tuple[tuple[int, Encoding], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple):
            raise ArgumentError("layers", self.layers, "give a tuple of pairs (layer index, encoding)")
        for entry in self.layers:
            is_pair = isinstance(entry, tuple) and len(entry) == 2 and type(entry[0]) is int
            if not is_pair or not isinstance(entry[1], Encoding):
                raise ArgumentError("layers", entry, "each entry must be a pair (layer index, encoding)")
            if entry[0] < 0:
                raise ArgumentError("layers", entry[0], "layers are counted from 0; give an index of 0 or more")
        indices = [index for index, _ in self.layers]
        for index in indices:
            if indices.count(index) > 1:
                raise ArgumentError("layers", index, "this layer is named twice; give it one encoding")

    def at(self, layer: int) -> Encoding:
        """The layer's own encoding; a layer without one is an error that names it."""
        for index, encoding in self.layers:
            if index == layer:
                return encoding.at(layer)
        known = ", ".join(str(index) for index, _ in self.layers)
        raise ArgumentError("layer", layer, f"no encoding for it; there is one for {known}")

    def map(self, change: Callable[[int, Encoding], Encoding]) -> PerLayer:
        """A copy in which each encoding is `change(layer, encoding)`."""
        return PerLayer(tuple((index, change(index, encoding)) for index, encoding in self.layers))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "layers": [[index, encoding.to_dict()] for index, encoding in self.layers]}

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Encoding:
        nested = dict(fields)
        if isinstance(nested.get("layers"), list):
            nested["layers"] = tuple(_read(entry) for entry in nested["layers"])
        return super()._from_fields(nested)


def _read(entry: Any) -> tuple[int, Encoding]:
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        raise ArgumentError("layers", entry, "each entry must be a pair [layer index, encoding]")
    return entry[0], Encoding.from_dict(entry[1])
