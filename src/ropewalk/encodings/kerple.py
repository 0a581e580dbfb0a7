"""KERPLE: scores fall with the logarithm or a power of distance, as learned (Chi et al., arXiv 2205.09921)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import BiasModule, Encoding
from ropewalk.errors import unknown_name
from ropewalk.validation import check_count

FORMS = ("log", "power")
LEAST = 0.01  # r1 and r2 stay above it, as in the authors' code
MOST_POWER = 2.0  # above it, -d^r2 is no longer conditionally positive definite
_FIRST = 2 * LEAST  # the least start: not so near the floor that gradients are small there


@dataclasses.dataclass(frozen=True)
class KERPLE(Encoding):
    """Kernel bias: head h adds -r1 log(1 + r2 |m - n|) ("log") or -r1 |m - n|^r2 ("power") to the scaled score.

    `num_heads` is the number of query heads H; r1, r2 > 0 are learned for each head, and with "power" r2 is at most
    2. Symmetric: keys after the query get the bias of their distance. Biases are (H, N, M) or
    (B, H, N, M), float32. Raises ArgumentError when num_heads isn't a positive integer, or for an unknown form.
    """

    kind: ClassVar[str] = "kerple"
    summary: ClassVar[str] = "a penalty on scores by the logarithm or a power of distance, learned per head"
    num_heads: int
    form: str = "log"

    def __post_init__(self) -> None:
        check_count("num_heads", self.num_heads)
        if self.form not in FORMS:
            raise unknown_name("form", self.form, FORMS)

    def module(self) -> KERPLEModule:
        """The module; `module().bias(of_queries, of_keys)` gives what is added to the scores."""
        return KERPLEModule(self)


class KERPLEModule(BiasModule):
    """KERPLE with its learnable `raw_r1` and `raw_r2`, each (H,) float32, whose smooth images are `r1` and `r2`.

    softplus (a sigmoid for the power) keeps the bounds however far an optimiser steps. The authors clamp the parameters
    themselves at each forward instead: then a forward changes weights, and a clamp without that has no gradient back
    from past the edge. They start as in the authors' code, uniform up to 2 for log's r1 and power's r2, and up to 1
    for the other two, from torch's global generator.
    """

    def __init__(self, encoding: KERPLE):
        super().__init__()
        self.encoding = encoding
        self.raw_r1 = torch.nn.Parameter(torch.empty(encoding.num_heads, dtype=torch.float32))
        self.raw_r2 = torch.nn.Parameter(torch.empty(encoding.num_heads, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A new random start of r1 and r2."""
        is_log = self.encoding.form == "log"
        r1 = torch.empty_like(self.raw_r1).uniform_(_FIRST, 2.0 if is_log else 1.0)
        r2 = torch.empty_like(self.raw_r2).uniform_(_FIRST, 1.0 if is_log else 2.0)
        self.raw_r1.copy_(_raw_positive(r1))
        self.raw_r2.copy_(_raw_positive(r2) if is_log else _raw_power(r2))

    @property
    def num_heads(self) -> int:
        """Query heads H."""
        return self.encoding.num_heads

    @property
    def r1(self) -> Tensor:
        """(H,) float32, over 0."""
        return _positive(self.raw_r1.float())

    @property
    def r2(self) -> Tensor:
        """(H,) float32, over 0; at most 2 for "power"."""
        return _positive(self.raw_r2.float()) if self.encoding.form == "log" else _power(self.raw_r2.float())

    def by_distance(self, distances: Tensor) -> Tensor:
        """-r1 log(1 + r2 |d|) or -r1 |d|^r2, (H, *) float32, at integer distances d (*)."""
        per_head = (-1, *[1] * distances.dim())
        r1, r2, far = self.r1.view(per_head), self.r2.view(per_head), distances.abs().float()
        return -r1 * (torch.log1p(r2 * far) if self.encoding.form == "log" else far**r2)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)


def _positive(raw: Tensor) -> Tensor:
    """Any number as one over LEAST."""
    return LEAST + torch.nn.functional.softplus(raw)


def _raw_positive(r: Tensor) -> Tensor:
    """What `_positive` takes to r > LEAST."""
    return torch.log(torch.expm1(r - LEAST))


def _power(raw: Tensor) -> Tensor:
    """Any number as one from LEAST to MOST_POWER."""
    return LEAST + (MOST_POWER - LEAST) * torch.sigmoid(raw)


def _raw_power(r: Tensor) -> Tensor:
    """What `_power` takes to r; at most a thousandth of the way from either bound."""
    return torch.logit((r - LEAST) / (MOST_POWER - LEAST), eps=1e-3)
