"""What one forward pass of a model hands its attention layers in place of (cos, sin)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropewalk.encodings.base import RotaryModule, Tables
from ropewalk.hf.when import Switch


class StepTables:
    """The (cos, sin) tables of one forward pass, made once for all layers that share a schedule.

    `own`: in a pass to which the plan doesn't apply, those that the model's rotary module gives.
    """

    def __init__(self, own: Tables | None = None):
        self.own = own
        self._made: dict[Hashable, Tables] = {}

    @property
    def is_active(self) -> bool:
        """Whether the plan applies to the pass."""
        return self.own is None

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
        # The rotary module's own forward, where not every pass is the plan's: it alone knows what it does at which
        # length (LongRoPE, dynamic NTK).
        self.own: Callable[..., Tables] | None = None

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Step:
        """In place of (cos, sin) of `position_ids`."""
        if self._switch.is_active:
            return Step(position_ids, StepTables())
        assert self.own is not None
        return Step(position_ids, StepTables(self.own(x, position_ids, *args, **kwargs)))
