"""What one forward pass of a model hands its attention layers in place of (cos, sin)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropewalk.encodings.base import EncodingModule, RotaryModule, Tables
from ropewalk.encodings.model_rotation import APPLY, RotaryLayer, layer_forward
from ropewalk.errors import UnsupportedModelError
from ropewalk.patching.activation import Switch
from ropewalk.rebind import innermost_globals


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


class PlainRotation(RotaryModule):
    """A layer's own `apply_rotary_pos_emb`, for steps to which the plan doesn't apply; their tables are the model's."""

    def __init__(self, layer: RotaryLayer):
        super().__init__()
        self._apply_rotary = innermost_globals(layer_forward(layer.module), APPLY)[APPLY]

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        rotated: tuple[Tensor, Tensor] = self._apply_rotary(q, k, *tables[0])
        return rotated


class LayerEncoder:
    """Encodes one layer's queries and keys with the plan's module, or in a plain step the model's own."""

    def __init__(self, module: RotaryModule, plain: RotaryModule):
        self.module = module
        self.plain = plain

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
        """The signature of transformers' function, with (positions, step) where it has (cos, sin)."""
        if not isinstance(step, StepTables):
            raise UnsupportedModelError("this attention got (cos, sin) from elsewhere than its model's rotary module")
        positions = positions.to(q.device)
        if step.own is None:
            module, tables = self.module, _tables(self.module, q, positions, step)
        else:
            module, tables = self.plain, (step.own[0].to(q.device), step.own[1].to(q.device))
        pair = positions, positions
        if unsqueeze_dim == 2:  # heads after tokens, as a few architectures keep them
            q2, k2 = module.encode(q.transpose(1, 2), k.transpose(1, 2), pair, (tables, tables))
            return q2.transpose(1, 2), k2.transpose(1, 2)
        return module.encode(q, k, pair, (tables, tables))


# Beside the class, not in it: torch.compile can't guard a static method of an object that it finds in a
# global.
def _tables(module: RotaryModule, q: Tensor, positions: Tensor, step: StepTables) -> Tables:
    follow(module, q.device)
    return step.get((module.table_key, q.dtype, q.device), module, positions, q.dtype)


def follow(module: EncodingModule, device: torch.device) -> None:
    """Move a module's buffers to its layer's device: it isn't part of the model, so `.to` misses it."""
    held = next(module.buffers(), None)
    if held is not None and held.device != device:
        module.to(device)
