"""PoPE: content in the magnitude, position in the phase (Gopalakrishnan et al., arXiv 2509.10534)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ropewalk.encodings.base import Encoding, RotaryModule, Tables
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.validation import check_base, check_count

DELTAS = ("zero", "uniform", "none")
BOUNDS = ("clamp", "free")
MAGNITUDES = ("softplus", "relu", "identity")


@dataclasses.dataclass(frozen=True)
class PoPE(Encoding):
    """Polar coordinate encoding: a score is sum_c mu_q,c mu_k,c cos((s - t) theta_c + delta_c) (eq. 5, 6 and 8).

    mu = softplus of a query's or key's channel (eq. 3) is its magnitude, the token's position times theta_c =
    base^(-c / d), c = 0..d-1, its phase: d frequencies where RoPE has d / 2, and a what that never turns the where.
    As real vectors, [mu cos, mu sin] of 2d channels; values keep theirs. The softmax scale is d^(-1/2) with d the
    head size before that doubling.

    Args:
        head_dim: d, channels a head.
        num_kv_heads: key heads; delta has one value a key head and channel.
        base: of the frequencies.
        delta: how the learnable phase starts: `zero` (extrapolates best), `uniform` over [-2 pi, 0] (slightly better
            within the training length), or `none` (no such parameter, for ablations).
        bound: `free`, or `clamp` to keep delta within [-2 pi, 0] as the paper prints it. Only cos(. + delta) is used,
            so both give the same functions, but a delta that starts at 0 sits on the clamp's edge, where steps up are
            lost (docs/design.md).
        magnitude: `softplus`, or for ablations `relu` or `identity`.
        rotary_dim: the first so many channels are encoded so, with theta_c = base^(-c / rotary_dim); the rest pass
            as they are and match by content alone. All when None.

    Raises:
        ArgumentError: sizes that aren't positive integers, rotary_dim above head_dim, an unknown name.
    """

    kind: ClassVar[str] = "pope"
    summary: ClassVar[str] = "content as magnitude, position as phase (arXiv 2509.10534)"

    head_dim: int
    num_kv_heads: int
    base: float = 10000.0
    delta: str = "zero"
    bound: str = "free"
    magnitude: str = "softplus"
    rotary_dim: int | None = None

    def __post_init__(self) -> None:
        check_count("head_dim", self.head_dim)
        check_count("num_kv_heads", self.num_kv_heads)
        check_base(self.base)
        for name, known in (("delta", DELTAS), ("bound", BOUNDS), ("magnitude", MAGNITUDES)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if self.rotary_dim is not None:
            check_count("rotary_dim", self.rotary_dim)
            if self.rotary_dim > self.head_dim:
                raise ArgumentError("rotary_dim", self.rotary_dim, f"give at most head_dim, {self.head_dim}")

    @property
    def width(self) -> int:
        """How many channels become magnitudes: rotary_dim, or head_dim when that is None."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def frequencies(self) -> Tensor:
        """theta_c = base^(-c / width), c = 0..width-1: (width,) float32."""
        exponents = torch.arange(self.width, dtype=torch.float64, device="cpu") / self.width
        return (self.base**-exponents).float()

    def module(self) -> PoPEModule:
        """The module, with its own delta."""
        return PoPEModule(self)


class PoPEModule(RotaryModule):
    """PoPE with its parameter `delta` (key heads, width), float32 unless cast.

    A cache keeps what `stored` gives, head_dim numbers a key; `encode_stored` adds the phases when attention needs
    them, and `fold` moves them to a query's side, so that decoding stores nothing of size 2d.
    """

    frequencies: Tensor

    def __init__(self, encoding: PoPE):
        super().__init__()
        self.encoding = encoding
        self.head_dim = encoding.head_dim
        self.register_buffer("frequencies", encoding.frequencies(), persistent=False)
        self.delta: nn.Parameter | None = None
        if encoding.delta != "none":
            self.delta = nn.Parameter(torch.zeros(encoding.num_kv_heads, encoding.width, dtype=torch.float32))
            if encoding.delta == "uniform":
                nn.init.uniform_(self.delta, -2 * math.pi, 0.0)

    @property
    def table_key(self) -> tuple[Any, ...]:
        """Tables hold no delta: equal frequencies mean equal tables."""
        return "pope", self.encoding.width, self.encoding.base

    def tables(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tables:
        """cos and sin of position times theta, each (..., N, width), float32 whatever `dtype` is asked for."""
        angles = positions[..., None].float() * self.frequencies
        return angles.cos(), angles.sin()

    def phase(self) -> Tensor | None:
        """delta as the scores use it, (key heads, width) float32; None without one."""
        if self.delta is None:
            return None
        delta = self.delta.float()
        if self.encoding.bound == "free":
            return delta
        if not torch.is_grad_enabled():
            return delta.clamp(-2 * math.pi, 0.0)
        clamped: Tensor = Clamp.apply(delta)  # type: ignore[no-untyped-call]
        return clamped

    def stored(self, k: Tensor) -> Tensor:
        """What a cache keeps of k (B, G, M, d): the magnitudes of the encoded channels, the others as they are."""
        width = self.encoding.width
        if width == k.shape[-1]:
            return _magnitude(k, self.encoding.magnitude)
        return torch.cat((_magnitude(k[..., :width], self.encoding.magnitude), k[..., width:]), dim=-1)

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, N, d) and k (B, G, M, d) as [mu cos, mu sin, other channels], (..., d + width), in their dtypes."""
        return self.encode_stored(q, self.stored(k), positions, tables)

    def encode_stored(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """As `encode`, for keys that went through `stored` already."""
        self.check_heads(k)
        cos, sin = (_over_heads(table) for table in tables[1])
        delta = self.phase()
        if delta is not None:
            c, s = delta.cos()[:, None], delta.sin()[:, None]
            cos, sin = cos * c - sin * s, sin * c + cos * s
        cos_q, sin_q = (_over_heads(table) for table in tables[0])
        return self._polar(self.stored(q), cos_q, sin_q), self._polar(k, cos, sin)

    def fold(self, q: Tensor, of_queries: Tensor) -> tuple[Tensor, Tensor]:
        """The query's side of a score whose keys hold no phase: a, b (B, H, N, width) float32.

        A score is sum_c mu_k,c (a_c cos(s theta_c) + b_c sin(s theta_c)), with a = mu_q cos(t theta - delta) and b
        the same with sin, for q (B, H, N, d) at positions t (1 or B, N).
        """
        mu = self.stored(q)[..., : self.encoding.width].float()
        cos, sin = (_over_heads(table) for table in self.tables(of_queries))
        delta = self.phase()
        if delta is not None:
            # Turned back by delta, not t theta - delta: far from 0 the difference would lose delta's digits.
            delta = delta.repeat_interleave(q.shape[1] // delta.shape[0], dim=0)[:, None]
            c, s = delta.cos(), delta.sin()
            cos, sin = cos * c + sin * s, sin * c - cos * s
        return mu * cos, mu * sin

    def forward(self, q: Tensor, k: Tensor, positions: Any) -> tuple[Tensor, Tensor]:
        """q (B, H, N, head_dim) and k (B, G, M, head_dim) with their phases, (..., head_dim + width), dtypes kept."""
        if k.dim() == 4:
            self.check_heads(k)
        return super().forward(q, k, positions)

    def check_heads(self, k: Tensor) -> None:
        """Refuse keys (B, G, M, d) with another number of heads than delta has."""
        if k.shape[1] != self.encoding.num_kv_heads:
            raise ArgumentError("num_kv_heads", self.encoding.num_kv_heads, f"the keys have {k.shape[1]} heads")

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)

    def _polar(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = self.encoding.width
        mu = x[..., :width]
        parts = [(mu * cos).to(x.dtype), (mu * sin).to(x.dtype)]
        return torch.cat(parts if width == self.head_dim else [*parts, x[..., width:]], dim=-1)

    def constants(self) -> dict[str, Tensor]:
        return {"frequencies": self.encoding.frequencies()}


class Clamp(torch.autograd.Function):
    """delta kept within [-2 pi, 0]; outside, a gradient passes only where a step along it leads back in.

    A plain clamp has no gradient outside, so a delta that one step carried out would never return.
    """

    @staticmethod
    def forward(ctx: Any, delta: Tensor) -> Tensor:
        """The clamped values."""
        ctx.save_for_backward(delta)
        return delta.clamp(-2 * math.pi, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """A descent step is against the gradient: above 0 only a positive one leads back."""
        (delta,) = ctx.saved_tensors
        (gradient,) = gradients
        leads_out = ((delta >= 0) & (gradient < 0)) | ((delta <= -2 * math.pi) & (gradient > 0))
        return gradient.masked_fill(leads_out, 0.0)


def _magnitude(x: Tensor, name: str) -> Tensor:
    if name == "softplus":
        return F.softplus(x)
    return F.relu(x) if name == "relu" else x


def _over_heads(table: Tensor) -> Tensor:
    """(N, r) as it is, (B, N, r) as (B, 1, N, r)."""
    return table.unsqueeze(1) if table.dim() == 3 else table
