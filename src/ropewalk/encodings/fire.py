"""FIRE: a learned function of distance relative to the query's position (Li et al., arXiv 2310.04418)."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import BiasModule, Encoding
from ropewalk.validation import check_count, check_positive

LEAST_C = 1e-8  # keeps 0 / 0 out should c ever be exactly 0; a c of normal size doesn't feel it


@dataclasses.dataclass(frozen=True)
class FIRE(Encoding):
    """Functional interpolation: query i and key j get f(psi(i - j) / psi(max(L, i))) added to the scaled score.

    psi(x) = log(c x + 1), and f is a network 1 -> `hidden` -> H with ReLU. c and the threshold L are learned with it,
    one of each, from `initial_c` and `initial_L`. Positions count from 0. A query up to position L gets a bias by
    distance alone; past it the bias depends on the position too, so that the network's input stays within [0, 1] at
    any length. Causal only: the paper defines nothing for keys after the query, so they get the bias of distance 0,
    for a causal mask to hide. Biases are (H, N, M) or (B, H, N, M), float32; working them out takes `hidden` numbers
    for each query and key.

    Raises ArgumentError when num_heads or hidden isn't a positive integer, or initial_c or initial_L isn't over 0.
    """

    kind: ClassVar[str] = "fire"
    summary: ClassVar[str] = "a learned function of distance, relative to the query's position"
    num_heads: int
    hidden: int = 32
    initial_c: float = 0.1
    initial_L: float = 512

    def __post_init__(self) -> None:
        check_count("num_heads", self.num_heads)
        check_count("hidden", self.hidden)
        check_positive("initial_c", self.initial_c)
        check_positive("initial_L", self.initial_L)

    def module(self) -> FIREModule:
        """The module; `module().bias(of_queries, of_keys)` gives what is added to the scores."""
        return FIREModule(self)


class FIREModule(BiasModule):
    """FIRE with its learnable parts: `raw_c` and `raw_L`, scalars, and the network's `first` and `second` layer.

    c is |raw_c|, and L is |raw_L| * initial_L, so that one learning rate serves all; the paper's listing does both.
    The network starts as torch.nn.Linear does, from torch's global generator. All are float32.
    """

    is_relative = False

    def __init__(self, encoding: FIRE):
        super().__init__()
        self.encoding = encoding
        self.raw_c = torch.nn.Parameter(torch.empty((), dtype=torch.float32))
        self.raw_L = torch.nn.Parameter(torch.empty((), dtype=torch.float32))
        self.first = torch.nn.Linear(1, encoding.hidden, dtype=torch.float32)
        self.second = torch.nn.Linear(encoding.hidden, encoding.num_heads, dtype=torch.float32)
        self._start_scalars()

    def reset_parameters(self) -> None:
        """c and L as the config says, and a new random network."""
        self._start_scalars()
        self.first.reset_parameters()
        self.second.reset_parameters()

    @property
    def num_heads(self) -> int:
        """Query heads H."""
        return self.encoding.num_heads

    @property
    def c(self) -> Tensor:
        """How fast psi bends, a float32 scalar over 0."""
        return self.raw_c.float().abs() + LEAST_C

    @property
    def threshold(self) -> Tensor:
        """L, a float32 scalar of at least 1.

        Smaller ones would change nothing but position 0's own bias, psi(0) / psi(L) = 0, into 0 / 0 at L = 0.
        """
        return (self.raw_L.float().abs() * self.encoding.initial_L).clamp(min=1.0)

    def bias(self, of_queries: Tensor, of_keys: Tensor) -> Tensor:
        """The bias (H, N, M), or (B, H, N, M) when either has a batch, for positions (N,) or (B, N) and (M,) or (B, M).

        float32, whatever the model's dtype. Each query's row depends on its own position alone, so chunks of queries
        and of keys give the parts of the whole.
        """
        distances = (of_queries.long()[..., :, None] - of_keys.long()[..., None, :]).clamp(min=0)
        lengths = torch.maximum(of_queries.float(), self.threshold)[..., :, None]
        found = self._network(self._psi(distances.float()) / self._psi(lengths))
        return found if found.dim() == 3 else found.movedim(0, 1)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)

    def _psi(self, x: Tensor) -> Tensor:
        return torch.log1p(self.c * x)

    def _network(self, x: Tensor) -> Tensor:
        """f of each number of x (*), heads first: (H, *)."""
        first, second = (part.float() for part in (self.first.weight, self.second.weight))
        with _no_autocast(x.device.type):
            hidden = torch.addmm(self.first.bias.float()[:, None], first, x.reshape(1, -1)).relu_()
            return torch.addmm(self.second.bias.float()[:, None], second, hidden).view(self.num_heads, *x.shape)

    @torch.no_grad()
    def _start_scalars(self) -> None:
        self.raw_c.fill_(self.encoding.initial_c)
        self.raw_L.fill_(1.0)


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Matrix products inside stay float32; devices that know no autocast, such as meta, need nothing."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
