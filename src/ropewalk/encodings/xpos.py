"""xPos: rotated queries and keys whose scores decay with distance (Sun et al., arXiv 2212.10554)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import Encoding, RotaryModule, Tables
from ropewalk.encodings.rope import LAYOUTS, rotate, rotation_tables, spread
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.scaling.base import default_schedule
from ropewalk.validation import check_base, check_positive, check_rotary_dim

# Queries and keys are scaled by 2^-50 to 2^50, so a product of two scales is in 2^-100 .. 2^100, which leaves the
# content room in float32 (2^-126 .. 2^128) for whatever pair: a key that stands after its query, which a mask hides in
# the end, gets a large score but never an infinite one, to which a mask can't be added.
_LARGEST_EXPONENT = 50
_LAST_EXACT = 2**24  # beyond it float32 doesn't hold every integer


@dataclasses.dataclass(frozen=True)
class XPos(Encoding):
    """RoPE with decay: pair c of query n and key m gets RoPE's score times zeta_c^((n - m) / scale_base) (section 2).

    zeta_c = (2c / d + gamma) / (1 + gamma), c = 0 .. d/2 - 1: fast pairs decay most. `head_dim` is the head size d;
    `layout` says which channels form pair c, as in RoPE. For causal attention: scores of later keys grow with distance.

    Queries are scaled by zeta_c^((n - centre) / scale_base) and keys by zeta_c^(-(m - centre) / scale_base), with one
    fixed `centre` for all calls: scores depend on n - m alone, and cached keys fit all later queries. float32 and
    bfloat16 hold these scales for positions 0 to `last_position`, 28328 as the paper sets it and in proportion to
    `scale_base`; later ones are refused on the CPU (elsewhere they aren't read). float16 holds too few and is refused.
    Angles and scales are float32. Raises ArgumentError for an odd or wrong size, an unknown layout, a base that isn't
    over 1, or a scale_base or gamma that isn't over 0.
    """

    kind: ClassVar[str] = "xpos"
    summary: ClassVar[str] = "rotates pairs of channels by position; scores decay with distance, fast pairs most"
    head_dim: int
    base: float = 10000.0
    scale_base: float = 512
    gamma: float = 0.4
    layout: str = "half"

    def __post_init__(self) -> None:
        check_rotary_dim("head_dim", self.head_dim)
        check_base(self.base)
        check_positive("scale_base", self.scale_base)
        check_positive("gamma", self.gamma)
        if self.layout not in LAYOUTS:
            raise unknown_name("layout", self.layout, LAYOUTS)

    @property
    def centre(self) -> int:
        """The position whose scale is 1: as far from 0 as the largest scale allows."""
        fastest = math.log1p(1 / self.gamma) / math.log(2)  # -log2(zeta_0)
        return int(min(_LARGEST_EXPONENT * self.scale_base / fastest, _LAST_EXACT // 2))

    @property
    def last_position(self) -> int:
        """The last position that float32 serves."""
        return 2 * self.centre

    def decay(self) -> Tensor:
        """ln(zeta_c) / scale_base, (head_dim / 2,) float32, on the CPU."""
        steps = [2 * c / self.head_dim for c in range(self.head_dim // 2)]
        exponents = [math.log((step + self.gamma) / (1 + self.gamma)) / self.scale_base for step in steps]
        return torch.tensor(exponents, dtype=torch.float32, device="cpu")

    def module(self) -> XPosModule:
        """The module, called as `module(q, k, positions) -> (q2, k2)`."""
        return XPosModule(self)


class XPosModule(RotaryModule):
    """xPos with its `frequencies` and its `decay` at hand, each (head_dim / 2,) float32, buffers that aren't saved.

    They follow the module to a device, but stay float32 when the module is cast.
    """

    frequencies: Tensor
    decay: Tensor

    def __init__(self, encoding: XPos):
        super().__init__()
        self.encoding = encoding
        self.head_dim = encoding.head_dim
        schedule = default_schedule(encoding.head_dim, encoding.base)
        self.register_buffer("frequencies", schedule.frequencies, persistent=False)
        self.register_buffer("decay", encoding.decay(), persistent=False)

    @property
    def table_key(self) -> XPos:
        """XPos with equal configs have equal tables."""
        return self.encoding

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Tables:
        """cos and sin, scaled, each (N, 2 head_dim) or (B, N, 2 head_dim) of `dtype`: first queries', then keys'.

        Raises ArgumentError for float16 and, on the CPU, for positions out of reach.
        """
        if dtype == torch.float16:
            raise ArgumentError("dtype", dtype, "too narrow for xPos's scales; use torch.bfloat16 or torch.float32")
        self._check_reach(positions)
        layout = self.encoding.layout
        cos, sin = rotation_tables(positions, self.frequencies, 1.0, layout, torch.float32)
        exponents = (positions.long() - self.encoding.centre)[..., None].float() * self.decay
        # exp, not exp2: torch gives its very bits whatever the number of positions, so a chunk equals the whole
        of_query, of_key = spread(exponents.exp(), layout), spread(exponents.neg().exp(), layout)
        scaled_cos = torch.cat((cos * of_query, cos * of_key), dim=-1)
        scaled_sin = torch.cat((sin * of_query, sin * of_key), dim=-1)
        return scaled_cos.to(dtype), scaled_sin.to(dtype)

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, N, d) and k (B, G, M, d) turned and scaled by the tables; shapes and dtypes are kept."""
        of_query = [table.chunk(2, dim=-1)[0] for table in tables[0]]
        of_key = [table.chunk(2, dim=-1)[1] for table in tables[1]]
        layout = self.encoding.layout
        return rotate(q, of_query[0], of_query[1], layout), rotate(k, of_key[0], of_key[1], layout)

    def _check_reach(self, positions: Tensor) -> None:
        if positions.device.type != "cpu" or torch.compiler.is_compiling() or not positions.numel():
            return
        last = self.encoding.last_position
        for name, found in (("min", int(positions.min())), ("max", int(positions.max()))):
            if not 0 <= found <= last:
                remedy = (
                    f"give 0 to {last}: float32 holds the scales of scale_base={self.encoding.scale_base} no further"
                )
                raise ArgumentError(f"{name}(positions)", found, remedy)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)

    def constants(self) -> dict[str, Tensor]:
        return {
            "frequencies": default_schedule(self.encoding.head_dim, self.encoding.base).frequencies,
            "decay": self.encoding.decay(),
        }
