"""ALiBi: scores fall linearly with distance (Press et al., arXiv 2108.12409)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import BiasModule, Encoding
from ropewalk.validation import check_count


@dataclasses.dataclass(frozen=True)
class ALiBi(Encoding):
    """Linear bias: head h adds -slope_h * |m - n| to the scaled score of query m and key n (section 3).

    `num_heads` is the number of query heads H; the slopes 2^(-8/H), 2^(-16/H), .. 2^-8 are fixed, nothing is learned.
    A count that isn't a power of two takes the slopes of the power below, then every other slope of twice that
    power, as the authors' code does. The paper is causal; keys after the query get the bias of their distance too.
    Biases are (H, N, M) or (B, H, N, M), float32. Raises ArgumentError when num_heads isn't a positive integer.
    """

    kind: ClassVar[str] = "alibi"
    summary: ClassVar[str] = "a penalty on scores that grows linearly with distance, a fixed slope per head"
    num_heads: int

    def __post_init__(self) -> None:
        check_count("num_heads", self.num_heads)

    def slopes(self) -> Tensor:
        """One slope per head, (H,) float32, on the CPU."""
        below = 1 << (self.num_heads.bit_length() - 1)
        found = _geometric(below) + _geometric(2 * below)[::2]
        # on the CPU also inside `with torch.device("meta")`, so that a model made empty still gets real numbers
        return torch.tensor(found[: self.num_heads], dtype=torch.float32, device="cpu")

    def module(self) -> ALiBiModule:
        """The module; `module().bias(of_queries, of_keys)` gives what is added to the scores."""
        return ALiBiModule(self)


class ALiBiModule(BiasModule):
    """ALiBi with its slopes at hand: `slopes` (H,) float32, a buffer that isn't saved.

    The slopes follow the module to a device, but stay float32 when the module is cast.
    """

    slopes: Tensor

    def __init__(self, encoding: ALiBi):
        super().__init__()
        self.encoding = encoding
        self.register_buffer("slopes", encoding.slopes(), persistent=False)

    @property
    def num_heads(self) -> int:
        """Query heads H."""
        return self.encoding.num_heads

    def by_distance(self, distances: Tensor) -> Tensor:
        """-slope * |distance|, (H, *) float32, at integer distances (*)."""
        return self.slopes.view(-1, *[1] * distances.dim()) * distances.abs().neg()

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)

    def constants(self) -> dict[str, Tensor]:
        return {"slopes": self.encoding.slopes()}


def _geometric(count: int) -> list[float]:
    """2^(-8/count) and its powers up to 2^-8, `count` slopes."""
    return [2.0 ** (-8.0 * (h + 1) / count) for h in range(count)]
