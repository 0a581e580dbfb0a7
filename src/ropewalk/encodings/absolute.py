"""Absolute encodings, added to the token vectors: sinusoids or a learned table (arXiv 1706.03762, section 3.5)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import AbsoluteModule, Encoding
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.scaling.base import default_schedule
from ropewalk.validation import check_base, check_length, check_positive, check_rotary_dim

LAYOUTS = ("interleaved", "half")


@dataclasses.dataclass(frozen=True)
class Sinusoidal(Encoding):
    """Fixed sines and cosines of the position (Vaswani et al., arXiv 1706.03762, section 3.5).

    Channel pair c of the token at position m is sin and cos of m * base^(-2c / width), c = 0 .. width/2 - 1.

    Args:
        width: channels of a token's vector, an even number.
        base: the longest wavelength over 2 pi, nearly.
        layout: "interleaved", sin in channel 2c and cos in 2c + 1 (the paper); or "half", all sines first (as Marian,
            Pegasus and many others have it). Some codes with halves also divide the exponent by width/2 - 1
            (tensor2tensor, fairseq): those are other frequencies, which this isn't.
    """

    kind: ClassVar[str] = "sinusoidal"
    summary: ClassVar[str] = "sines and cosines of the position, added to the token vectors"

    width: int
    base: float = 10000.0
    layout: str = "interleaved"

    def __post_init__(self) -> None:
        check_rotary_dim("width", self.width)
        check_base(self.base)
        if self.layout not in LAYOUTS:
            raise unknown_name("layout", self.layout, LAYOUTS)

    def frequencies(self) -> Tensor:
        """base^(-2c / width), (width / 2,) float32."""
        return default_schedule(self.width, self.base).frequencies

    def module(self) -> SinusoidalModule:
        """The module, called as `module.embed(positions)`."""
        return SinusoidalModule(self)


class SinusoidalModule(AbsoluteModule):
    """Sinusoids with their frequencies at hand, (width / 2,): a buffer that isn't saved and stays float32."""

    frequencies: Tensor

    def __init__(self, encoding: Sinusoidal):
        super().__init__()
        self.encoding = encoding
        self.register_buffer("frequencies", encoding.frequencies(), persistent=False)

    def embed(self, positions: Tensor) -> Tensor:
        """(..., N, width) float32 for integer positions (..., N); cast it to the model's dtype when adding.

        Raises ArgumentError for positions that aren't integers or, on the CPU, negative.
        """
        _check_positions(positions)
        angles = positions[..., None].float() * self.frequencies
        sines = angles.sin(), angles.cos()
        if self.encoding.layout == "half":
            return torch.cat(sines, dim=-1)
        return torch.stack(sines, dim=-1).flatten(-2)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)

    def constants(self) -> dict[str, Tensor]:
        return {"frequencies": self.encoding.frequencies()}


@dataclasses.dataclass(frozen=True)
class Learned(Encoding):
    """A learned vector for each position (Gehring et al., arXiv 1705.03122; GPT, BERT).

    There is nothing past the table's end: the model can't read more than `max_positions` tokens.

    Args:
        width: channels of a token's vector.
        max_positions: vectors in the table, one a position from 0 on.
        std: standard deviation of the normal draws that fill it; 0.02 as in GPT-2 and BERT.
    """

    kind: ClassVar[str] = "learned"
    summary: ClassVar[str] = "a learned vector for each position, added to the token vectors"

    width: int
    max_positions: int
    std: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.width, int) or isinstance(self.width, bool) or self.width < 1:
            raise ArgumentError("width", self.width, "give a positive integer, the channels of a token's vector")
        check_length("max_positions", self.max_positions)
        check_positive("std", self.std)

    def module(self) -> LearnedModule:
        """The module, called as `module.embed(positions)`; its table is drawn from torch's global generator."""
        return LearnedModule(self)


class LearnedModule(AbsoluteModule):
    """The table, a parameter (max_positions, width), float32 until the module is cast."""

    def __init__(self, encoding: Learned):
        super().__init__()
        self.encoding = encoding
        self.table = torch.nn.Parameter(torch.empty(encoding.max_positions, encoding.width, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew."""
        torch.nn.init.normal_(self.table, std=self.encoding.std)

    def embed(self, positions: Tensor) -> Tensor:
        """(..., N, width) in the table's dtype for integer positions (..., N).

        Raises ArgumentError for positions that aren't integers or, on the CPU, outside the table; on an accelerator
        the values aren't read, because that would wait for the device at each call.
        """
        _check_positions(positions, self.encoding.max_positions)
        return torch.nn.functional.embedding(positions.long(), self.table)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)


def _check_positions(positions: Any, end: int | None = None) -> None:
    """Refuse all but integers (..., N), and on the CPU those under 0 or from `end` on."""
    if not isinstance(positions, Tensor) or positions.dim() == 0:
        raise ArgumentError("positions", positions, "give an integer tensor (N,) or (B, N)")
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise ArgumentError("positions.dtype", positions.dtype, "give integers, such as torch.arange(N)")
    if positions.device.type != "cpu" or torch.compiler.is_compiling() or not positions.numel():
        return
    lowest, highest = int(positions.min()), int(positions.max())
    if lowest < 0:
        raise ArgumentError("min(positions)", lowest, "give positions of 0 or more")
    if end is not None and highest >= end:
        remedy = f"the table ends at position {end - 1} (max_positions={end}): cut the text or train a larger table"
        raise ArgumentError("max(positions)", highest, remedy)
