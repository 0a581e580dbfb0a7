"""Positions that travel with queries and keys, through a cache too, as channels of their own.

So a cached key knows its position whatever is done to the cache: reordered, cropped, copied, or left empty in front of
a short prompt. One channel in float32 (0.8 % of a cache with heads of 64 channels), two or three in half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ropewalk.errors import RopewalkError

# dtype: (digits, base): whole numbers below the base squared or cubed are exact in so many channels.
_DIGITS = {
    torch.float64: (1, 2**53),
    torch.float32: (1, 2**24),
    torch.float16: (2, 2**11),
    torch.bfloat16: (3, 2**8),
}


def channels(dtype: torch.dtype) -> int:
    """How many channels a position takes."""
    return _DIGITS[dtype][0]


def with_positions(x: Tensor, positions: Tensor) -> Tensor:
    """x (B, H, N, d) with its tokens' positions (1 or B, N) as further channels at the end."""
    count, base = _DIGITS[x.dtype]
    if count == 1:
        carried = positions.to(x.dtype)[:, None, :, None]
    else:
        digits = [positions.div(base**power, rounding_mode="floor") % base for power in range(count)]
        carried = torch.stack(digits, dim=-1).to(x.dtype)[:, None]
    return torch.cat((x, carried.expand(x.shape[0], x.shape[1], -1, -1)), dim=-1)


def without_positions(x: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """What `with_positions` joined, when the first `at` channels are x's and others may have come after.

    Returns x (B, H, N, d) and positions (B, N). Raises RopewalkError, on the CPU, for positions that something has
    changed on the way, as a cache that keeps keys in fewer bits does.
    """
    count, base = _DIGITS[x.dtype]
    carried = x[:, 0, :, at : at + count].detach().contiguous()  # each number stands in a line of memory of its own
    digits = carried.long()
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.equal(digits.to(x.dtype), carried):
        raise RopewalkError("cached keys lost their positions: a cache that rounds keys can't hold content")
    positions = digits[..., 0]
    for power in range(1, count):
        positions = positions + digits[..., power] * base**power
    if at + count == x.shape[-1]:
        return x[..., :at], positions
    return torch.cat((x[..., :at], x[..., at + count :]), dim=-1), positions
