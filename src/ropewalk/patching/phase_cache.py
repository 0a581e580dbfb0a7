"""The phases of all keys in a cache, worked out once for all layers and kept while a generation grows."""

from __future__ import annotations

import torch
from torch import Tensor

from ropewalk.encodings.base import RotaryModule, Tables, is_run

# A table of all positions up to the last is kept while that is at most so many times the keys there are.
MOST_ROOM = 4


class KeyTables:
    """Tables for positions 0, 1, 2 ..., from which those of any keys are taken; no content is in them.

    One for all layers with the same schedule. On an accelerator, and inside torch.compile, tables are made where they
    are needed: looking at positions would wait for the device.
    """

    def __init__(self) -> None:
        self._made: dict[torch.dtype, Tables] = {}
        self._last: dict[tuple[torch.dtype, int], tuple[Tensor, Tables]] = {}

    def of(self, module: RotaryModule, positions: Tensor, dtype: torch.dtype) -> Tables:
        """The tables for positions (B, N): each (1 or B, N, ·)."""
        if positions.device.type != "cpu" or torch.compiler.is_compiling():
            return module.tables(positions, dtype)
        # Queries and keys alternate; each kind's last answer serves the next layer.
        key = dtype, positions.shape[-1]
        last = self._last.get(key)
        if last is not None and torch.equal(last[0], positions):
            return last[1]
        # Tables made under inference_mode couldn't be trained with afterwards; these are kept.
        with torch.inference_mode(False), torch.no_grad():
            found = self._found(module, positions, dtype)
        if len(self._last) > 1:
            self._last.clear()
        self._last[key] = positions, found
        return found

    def _found(self, module: RotaryModule, positions: Tensor, dtype: torch.dtype) -> Tables:
        end = int(positions.max()) + 1 if positions.numel() else 0
        held = self._made.get(dtype)
        if held is None or (held[0].dim() > 1 and held[0].shape[0] < end):
            if end > MOST_ROOM * positions.shape[-1] + 1024:
                return module.tables(positions, dtype)
            room = 1 << max(end - 1, 255).bit_length()
            last = getattr(getattr(module, "encoding", None), "last_position", None)
            room = room if last is None else max(end, min(room, int(last) + 1))
            self._made[dtype] = held = module.tables(torch.arange(room), dtype)
        if held[0].dim() < 2:  # NoPE has none
            return held
        if positions.numel() and is_run(positions, positions) and bool((positions[:, 0] == positions[0, 0]).all()):
            return held[0][None, end - positions.shape[-1] : end], held[1][None, end - positions.shape[-1] : end]
        return held[0][positions], held[1][positions]
