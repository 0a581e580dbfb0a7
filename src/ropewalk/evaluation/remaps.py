"""Position remaps as candidates: baselines that leave a model's frequencies alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import nn

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dual_chunk import DualChunk
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.encodings.rerope import ReRoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.errors import RopewalkError
from ropewalk.evaluation.candidates import Candidate
from ropewalk.hf import installed

# In the order in which a search tries them.
REMAPS = (SelfExtend.kind, DualChunk.kind, ReRoPE.kind)


def remap_candidates(
    model: nn.Module,
    own: RoPE | PerLayer,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool] = lambda _: True,
) -> list[Candidate]:
    """Self-Extend, dual chunk attention and ReRoPE on a model's own rotation; those that the model can have."""
    found = []
    for name in REMAPS:
        with contextlib.suppress(RopewalkError):
            found.append(remap_candidate(name, model, own, original_length, target_length, stretched))
    return found


def remap_candidate(
    name: str,
    model: nn.Module,
    own: RoPE | PerLayer,
    original_length: int,
    target_length: int,
    stretched: Callable[[int], bool] = lambda _: True,
) -> Candidate:
    """One of `REMAPS` on a model's own rotation, called after its sizes in tokens.

    These are such that no distance in `target_length` tokens is above what the model was trained on: a quarter of the
    training length stays exact under Self-Extend and the smallest group that then suffices holds the rest; chunks of
    three quarters with a local window of one; half of it under ReRoPE.

    Args:
        stretched: whether a layer is remapped; layers with a window don't see far enough to need it.

    Raises:
        RopewalkError: the model can't have it.
    """
    window = max(1, original_length // 4)
    # Distances stay below the training length: floors in both positions can add a group's step to the quotient.
    group = max(2, math.ceil((target_length - window) / max(1, original_length - window - 1)))
    chunk = max(1, 3 * original_length // 4)
    local = max(1, original_length - chunk)
    half = max(1, original_length // 2)
    made: dict[str, tuple[str, Callable[[RoPE], Remap]]] = {
        SelfExtend.kind: (f"{window}/{group}", lambda rope: SelfExtend(rope, window=window, group=group)),
        DualChunk.kind: (f"{chunk}/{local}", lambda rope: DualChunk(rope, chunk_size=chunk, local_size=local)),
        ReRoPE.kind: (f"{half}", lambda rope: ReRoPE(rope, window=half)),
    }
    sizes, remap = made[name]
    encoding = _remapped(own, remap, stretched)
    _check_serves(model, encoding)
    return Candidate(f"{name} {sizes}", encoding)


def is_rotation(encoding: Encoding) -> bool:
    """Whether an encoding is one rotation a layer, as DoPE needs."""
    if isinstance(encoding, PerLayer):
        return not any(isinstance(entry, Remap) for _, entry in encoding.layers)
    return isinstance(encoding, RoPE)


def _remapped(own: RoPE | PerLayer, remap: Callable[[RoPE], Remap], stretched: Callable[[int], bool]) -> Encoding:
    if isinstance(own, RoPE):
        return remap(own)
    return own.map(lambda layer, rope: remap(rope) if isinstance(rope, RoPE) and stretched(layer) else rope)


def _check_serves(model: nn.Module, encoding: Encoding) -> None:
    """Refuse what a model can't have, also where only its attention says so."""
    device = next(model.parameters()).device
    with torch.no_grad(), installed(model, encoding):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long, device=device), use_cache=False)
