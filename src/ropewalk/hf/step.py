"""What one forward pass of a model hands its attention layers in place of (cos, sin)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropewalk.encodings.base import RotaryModule, Tables
from ropewalk.hf.when import Switch


class StepTables:
    """The (cos, sin) tables of one forward pass, made once for all layers that share a schedule."""

    def __init__(self, is_active: bool):
        self.is_active = is_active
        self._made: dict[Hashable, Tables] = {}

    def get(self, key: Hashable, module: RotaryModule, positions: Tensor, dtype: torch.dtype) -> Tables:
        """The tables under `key`, made by `module` the first time."""
        if key not in self._made:
            self._made[key] = module.tables(positions, dtype)
        return self._made[key]


class Step(NamedTuple):
    """Stands where attention layers expect `(cos, sin)`: they unpack it and pass both on to the encoder."""

    positions: Tensor
    tables: StepTables


class PositionGiver:
    """Stands for a rotary module's `forward`: hands on positions (B, N) and room for tables made once."""

    def __init__(self, switch: Switch):
        self._switch = switch

    def __call__(self, x: Tensor, position_ids: Tensor, *_: Any, **__: Any) -> Step:
        """In place of (cos, sin) of `position_ids`."""
        return Step(position_ids, StepTables(self._switch.is_active))
