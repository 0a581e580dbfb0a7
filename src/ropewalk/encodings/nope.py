"""NoPE: no positional encoding at all (Kazemnejad et al., arXiv 2305.19466)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import Encoding, Positions, RotaryModule, Tables, of_queries_and_keys


@dataclasses.dataclass(frozen=True)
class NoPE(Encoding):
    """No encoding: queries and keys pass untouched, so a causal mask is all that tells of order."""

    kind: ClassVar[str] = "nope"
    summary: ClassVar[str] = "no positional encoding: content and the causal mask alone"

    def module(self) -> NoPEModule:
        """The module, called as `module(q, k, positions) -> (q, k)`."""
        return NoPEModule()


class NoPEModule(RotaryModule):
    """Gives back its arguments."""

    @property
    def table_key(self) -> str:
        """All NoPEs share their (empty) tables."""
        return "nope"

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        """Two empty tensors: there is nothing to look up."""
        return positions.new_empty(0), positions.new_empty(0)

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """The very q and k given."""
        return q, k

    def forward(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """The very q (B, H, N, d) and k (B, G, M, d) given, of any head size; positions are still checked."""
        of_queries_and_keys(positions, q, k)
        return q, k
