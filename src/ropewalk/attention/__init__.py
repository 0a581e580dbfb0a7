"""Attention that takes any encoding, any sizes and any length without an N x N matrix in memory."""

from ropewalk.attention.attend import attend

__all__ = ["attend"]
