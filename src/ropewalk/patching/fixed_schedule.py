"""One frequency schedule for a text that is read in several passes, for rotations that depend on the length so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.encodings.model_rotation import forward_as, forward_name, layer_forward
from ropewalk.patching.rotary_patch import PositionGiver


@contextmanager
def one_schedule(model: nn.Module, length: int) -> Iterator[None]:
    """Within it, every pass of the model rotates as one pass over `length` tokens does.

    transformers' `dynamic` and `longrope` rotations choose their frequencies by the last position of each pass. Read in
    chunks with a cache, early keys would be rotated under other frequencies than the queries that meet them later.
    Models whose frequencies are fixed, and modules that an encoding stands in for, are left alone.

    Args:
        model: a transformers model.
        length: tokens of the whole text, read and predicted ones together.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if _depends_on_length(module) and not isinstance(layer_forward(module), PositionGiver):
                stack.enter_context(_reading(module, length))
        yield


def _depends_on_length(module: nn.Module) -> bool:
    """Whether a module is a rotation whose frequencies change with a pass's length; some have one per layer type."""
    kind: Any = getattr(module, "rope_type", None)
    kinds = kind.values() if isinstance(kind, dict) else (kind,)
    return any(isinstance(one, str) and ("dynamic" in one or one == "longrope") for one in kinds)


@contextmanager
def _reading(module: nn.Module, length: int) -> Iterator[None]:
    """One rotary module's forward that sees the last position of the whole text in each pass."""
    name = forward_name(module)
    own: Callable[..., tuple[Tensor, Tensor]] = getattr(module, name)

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        last = torch.full_like(position_ids[..., :1], length - 1)
        cos, sin = own(x, torch.cat([position_ids, last], dim=-1), *args, **kwargs)
        return cos[..., :-1, :], sin[..., :-1, :]

    _forget_lengths(module)
    try:
        with forward_as(module, forward, name):
            yield
    finally:
        _forget_lengths(module)


def _forget_lengths(module: nn.Module) -> None:
    """Let a dynamic rotation start from its trained frequencies, whatever was read before.

    It keeps the frequencies of the longest pass so far until a pass is shorter than its training length.
    """
    kind: Any = getattr(module, "rope_type", None)
    for prefix in [f"{layer_type}_" for layer_type in kind] if isinstance(kind, dict) else [""]:
        original = getattr(module, f"{prefix}original_inv_freq", None)
        current = getattr(module, f"{prefix}inv_freq", None)
        if original is None or current is None:
            continue
        module.register_buffer(f"{prefix}inv_freq", original.to(current.device, copy=True), persistent=False)
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
