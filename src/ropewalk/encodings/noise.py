"""Gaussian noise as a fixed function of its coordinates: chunks, batches and cached keys agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_STEP = 0x9E3779B9


def gaussian(seed: int, stream: int, layer: int, heads: Sequence[int], positions: Tensor, channels: int) -> Tensor:
    """Standard normal draws of shape (*positions.shape[:-1], len(heads), N, channels), float32.

    Each draw depends on (seed, stream, layer, head, position, channel) and on nothing else: not on the
    batch, not on how the sequence was cut, not on the state of any generator. A 32-bit counter hash gives
    two uniform numbers, the Box-Muller transform one normal number; its largest magnitude is sqrt(2 ln
    2^25), about 5.9.

    Args:
        positions: integers, shape (N,) or (B, N).
    """
    device = positions.device
    start = 0
    for part in (seed & _MASK, (seed >> 32) & _MASK, stream, layer):
        start = _mix_int((start + _STEP) ^ _mix_int(part + _STEP))
    keys = torch.tensor([_mix_int((start + _STEP) ^ _mix_int(h + _STEP)) for h in heads], device=device)
    at = _mix(positions.to(torch.int64) + _STEP).unsqueeze(-2)  # (..., 1, N)
    keys = _mix((keys.unsqueeze(-1) + _STEP) ^ at)  # (..., heads, N)
    channel = _mix(torch.arange(channels, device=device) + _STEP)
    first = _mix((keys.unsqueeze(-1) + _STEP) ^ channel)  # (..., heads, N, channels)
    second = _mix(first + _STEP)
    radius = torch.sqrt(-2.0 * torch.log(_uniform(first)))
    return radius * torch.cos(2.0 * math.pi * _uniform(second))


def _uniform(bits: Tensor) -> Tensor:
    """32 random bits -> the middle of one of 2^24 equal cells of (0, 1), float32."""
    return ((bits >> 8).to(torch.float32) + 0.5) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (in int64): each input bit moves about half of the output bits."""
    x = x & _MASK
    x = _times(x ^ (x >> 16), 0x85EBCA6B)
    x = _times(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)


def _mix_int(x: int) -> int:
    x &= _MASK
    x = (x ^ (x >> 16)) * 0x85EBCA6B & _MASK
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & _MASK
    return x ^ (x >> 16)


def _times(x: Tensor, factor: int) -> Tensor:
    """x * factor mod 2^32 in two halves: the whole product would overflow a signed 64-bit integer."""
    low = (x & 0xFFFF) * factor
    high = ((x >> 16) * factor & 0xFFFF) << 16
    return (low + high) & _MASK
