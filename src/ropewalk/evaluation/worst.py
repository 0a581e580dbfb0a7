"""What a likelihood counts that overflowed."""

from __future__ import annotations

from torch import Tensor

# Nats a token: far more than any real answer has, and still a number that means and files can hold.
WORST_NLL = 100.0


def bounded(losses: Tensor) -> Tensor:
    """Losses in nats, those that are no number or more than `WORST_NLL` as that; the shape stays."""
    return losses.nan_to_num(WORST_NLL).clamp(max=WORST_NLL)
