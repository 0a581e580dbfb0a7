"""What one forward pass of a model hands its attention layers in place of (cos, sin)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

from torch import Tensor

Tables = tuple[Tensor, Tensor]


class StepTables:
    """The (cos, sin) tables of one forward pass, made once for all layers that share a schedule."""

    def __init__(self, positions: Tensor, is_active: bool):
        self.positions = positions
        self.is_active = is_active
        self._made: dict[Hashable, Tables] = {}

    def get(self, key: Hashable, make: Callable[[], Tables]) -> Tables:
        """The tables under `key`, made by `make` the first time."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Step(NamedTuple):
    """Stands where attention layers expect `(cos, sin)`: they unpack it and pass both on to the encoder."""

    positions: Tensor
    tables: StepTables
