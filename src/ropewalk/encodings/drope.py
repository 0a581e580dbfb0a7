"""DroPE at inference: no positions, and sharper attention for longer texts (Gelberg et al., arXiv 2512.12167)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from torch import Tensor

from ropewalk.encodings.base import Encoding, Positions, Tables
from ropewalk.encodings.nope import NoPEModule
from ropewalk.errors import ArgumentError
from ropewalk.validation import check_length, is_finite_number


@dataclasses.dataclass(frozen=True)
class DroPE(Encoding):
    """NoPE whose scores are multiplied by 1 + c ln(L' / L) (arXiv 2512.12167, after Wang et al., 2024).

    For a model that was trained with positions and recalibrated without them; `training.drope` does that. The factor
    is fixed for a whole generation by the target length L', as in the length rules, so that decoding equals one full
    pass. It is 1 when L' <= L, and the encoding is then NoPE.

    The paper tunes c for each model, on held-out text of the target length: 0.412 for its 494M model trained from
    scratch on 1,024 tokens, 0.103 for SmolLM-360M recalibrated on 2,048.

    Args:
        original_length: L, the length of training and recalibration, in tokens.
        target_length: L', the longest context of the generation, in tokens.
        slope: c, 0 or more.
    """

    kind: ClassVar[str] = "drope"
    summary: ClassVar[str] = "no positions, scores sharpened with the target length (arXiv 2512.12167)"

    original_length: int
    target_length: int
    slope: float

    def __post_init__(self) -> None:
        check_length("original_length", self.original_length)
        check_length("target_length", self.target_length)
        if not is_finite_number(self.slope) or self.slope < 0:
            raise ArgumentError("slope", self.slope, "give a finite number, 0 or more; the paper's are 0.103 and 0.412")

    @property
    def sharpening(self) -> float:
        """What scores are multiplied by: 1 + c ln(L' / L), at least 1."""
        return 1.0 + self.slope * max(math.log(self.target_length / self.original_length), 0.0)

    def module(self) -> DroPEModule:
        """The module, called as `module(q, k, positions) -> (q2, k)`."""
        return DroPEModule(self)


class DroPEModule(NoPEModule):
    """Multiplies queries by one number; keys pass untouched. Its tables are NoPE's, empty."""

    def __init__(self, encoding: DroPE):
        super().__init__()
        self.encoding = encoding

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, N, d) times the sharpening, in its own dtype, and the very k (B, G, M, d) given."""
        return self._sharpened(q), k

    def forward(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """As `encode`, for any head size; positions are checked."""
        q, k = super().forward(q, k, positions)
        return self._sharpened(q), k

    def _sharpened(self, q: Tensor) -> Tensor:
        factor = self.encoding.sharpening
        return q if factor == 1.0 else q * factor

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)
