"""Self-Extend: exact positions nearby, grouped positions far away (Jin et al., arXiv 2401.01325)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.remap import Remap, RemapModule, RemapPart, near_and_far
from ropewalk.validation import check_length


@dataclasses.dataclass(frozen=True)
class SelfExtend(Remap):
    """RoPE whose far keys are seen at coarse positions, without training (arXiv 2401.01325, section 3).

    The relative position of a query at n and a key at m, with neighbour window w and group size G:

    - n - m when that is under w, as in RoPE;
    - floor(n / G) + w - floor(w / G) - floor(m / G) from w on, so that the two meet without a gap.

    A model trained on L tokens reaches (L - w) G + w tokens. Meant for causal attention: later keys are taken for
    near ones.

    Args:
        rope: the model's RoPE, with its length rule; a `PerLayer` of them where layers differ.
        window: w, the distance in tokens from which positions are grouped.
        group: G, how many neighbouring positions become one.
    """

    kind: ClassVar[str] = "self_extend"
    summary: ClassVar[str] = "a trained RoPE with exact near and grouped far positions (arXiv 2401.01325)"

    window: int = 1024
    group: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_length("window", self.window)
        check_length("group", self.group)

    @property
    def sizes(self) -> str:
        return f"{self.window}/{self.group}"

    @property
    def near(self) -> tuple[str, int]:
        return "window", self.window

    def largest_distance(self, length: int) -> int:
        """The largest relative position in `length` tokens."""
        check_length("length", length)
        if length <= self.window:
            return length - 1
        return (length - 1) // self.group + self.window - self.window // self.group

    def module(self) -> SelfExtendModule:
        """The module, whose scores attention asks for block by block."""
        return SelfExtendModule(self)


class SelfExtendModule(RemapModule):
    """Self-Extend with its RoPE's frequencies at hand; `keys` gives the keys rotated twice, exact and grouped."""

    key_of_piece = (0, 1)
    cached_key = 1

    def __init__(self, encoding: SelfExtend):
        super().__init__(encoding.single_rope())
        self.encoding: SelfExtend = encoding

    def key_positions(self, of_keys: Tensor) -> tuple[Tensor, ...]:
        return of_keys, of_keys // self.encoding.group

    def query_positions(self, of_queries: Tensor) -> tuple[Tensor, ...]:
        window, group = self.encoding.window, self.encoding.group
        return of_queries, of_queries // group + (window - window // group)

    def piece_of_pair(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        return (of_queries[:, :, None] - of_keys[:, None, :] >= self.encoding.window).to(torch.int8)

    def parts(self, queries: range, keys: range) -> list[RemapPart]:
        return near_and_far(self.encoding.window, queries, keys)
