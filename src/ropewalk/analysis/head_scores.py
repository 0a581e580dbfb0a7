"""Scores of a head, computed from its Gram matrix S = X^T X alone (DoPE, arXiv 2511.09146).

All functions take (..., d, d), compute in float64 and return (...) float64. They don't change when X is
scaled or its rows are reordered. A zero matrix counts as one without any direction, the limit of eps * I: all
its shares are 1/d.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ropewalk.errors import ArgumentError, unknown_name

LAYOUTS = ("half", "interleaved")
ORDERS = ("ascending", "descending")


def band_entropy(gram: Tensor, layout: str = "half", rotary_dim: int | None = None) -> Tensor:
    """The mean over bands of the entropy of a band's trace-normalised Gram (v1 eq. 23-26), in [0, ln 2].

    Args:
        gram: (..., d, d).
        layout: "half": band f is channels (f, f + rotary_dim/2); "interleaved": (2f, 2f + 1).
        rotary_dim: how many leading channels rotate; only their bands count. Default: d.

    A band without energy counts ln 2.

    Raises:
        ArgumentError: the matrix isn't square or finite, the layout is unknown, or rotary_dim is odd or
            not from 2 to d.
    """
    gram = _checked_gram(gram)
    first, second = band_channels(gram.shape[-1], layout, rotary_dim)
    a, c, b = gram[..., first, first], gram[..., second, second], gram[..., first, second]
    trace = a + c
    scale = torch.where(trace > 0, trace, 1.0)
    # Eigenvalues of the normalised block are (1 +- gap) / 2; an empty block has gap 0.
    gap = torch.hypot((a - c) / scale, 2 * b / scale).clamp(max=1.0)
    return (_plogp((1 + gap) / 2) + _plogp((1 - gap) / 2)).mean(-1).clamp(0.0, math.log(2))


def band_channels(head_dim: int, layout: str = "half", rotary_dim: int | None = None) -> tuple[Tensor, Tensor]:
    """The first and the second channel of each band, (rotary_dim/2,) int64 each; see `band_entropy`."""
    width = head_dim if rotary_dim is None else rotary_dim
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if not 2 <= width <= head_dim or width % 2:
        raise ArgumentError("rotary_dim", width, f"must be even and from 2 to head_dim={head_dim}")
    bands = torch.arange(width // 2)
    return (bands, bands + width // 2) if layout == "half" else (2 * bands, 2 * bands + 1)


def matrix_entropy(gram: Tensor) -> Tensor:
    """The entropy of the eigenvalues' shares of the trace (v1 text), in [0, ln d]; gram (..., d, d)."""
    return _matrix_entropy(eigenvalue_shares(gram), None)


def truncated_effective_rank(gram: Tensor, r: int) -> Tensor:
    """exp of the entropy of the r largest eigenvalues, normalised among themselves (v1 eq. 30), in [1, r].

    At r = 1 that is the constant 1, so the score there is 1 - l_1/trace, what both papers mean by r = 1:
    small where one direction holds everything.

    Raises:
        ArgumentError: r isn't an integer from 1 to d, or the matrix isn't square or finite.
    """
    return _effective_rank(eigenvalue_shares(gram), r)


def truncated_entropy(gram: Tensor, r: int) -> Tensor:
    """-(1/r) sum of p ln p over the r largest eigenvalues, p = l/trace (v2 eq. 11, which lost its minus).

    At r = 1 the score is 1 - l_1/trace, as for `truncated_effective_rank`. Above that it isn't monotone:
    -p ln p peaks at p = 1/e, so for r far below d a flat spectrum can score below a moderately spiky one.

    Raises:
        ArgumentError: r isn't an integer from 1 to d, or the matrix isn't square or finite.
    """
    return _truncated_entropy(eigenvalue_shares(gram), r)


def spectral_norm(gram: Tensor) -> Tensor:
    """The largest eigenvalue's share of the trace, in [1/d, 1] (both papers' r = 1); gram (..., d, d)."""
    return _spectral_norm(eigenvalue_shares(gram), None)


def eigenvalue_shares(gram: Tensor) -> Tensor:
    """The eigenvalues of each matrix divided by their sum, descending: (..., d) float64 on gram's device.

    Rounding's small negative eigenvalues count as 0. ArgumentError unless the matrix is square and finite.
    """
    values = torch.linalg.eigvalsh(_checked_gram(gram)).clamp(min=0.0).flip(-1)
    total = values.sum(-1, keepdim=True)
    return torch.where(total > 0, values / torch.where(total > 0, total, 1.0), 1.0 / values.shape[-1])


@dataclasses.dataclass(frozen=True)
class Score:
    """An entry of the registry.

    Attributes:
        function: called as `function(gram)`, with r second if `needs_r`.
        summary: one line.
        needs_r: whether the score looks at the r largest eigenvalues.
        order: the order that puts the heads to select first, "ascending" or "descending".
        from_shares: the same score from (`eigenvalue_shares(gram)`, r), so that one decomposition serves many
            scores; None for a score that reads the bands instead, as `function(gram, layout, rotary_dim)`.
    """

    function: Callable[..., Tensor]
    summary: str
    needs_r: bool
    order: str
    from_shares: Callable[[Tensor, Any], Tensor] | None

    def check_r(self, name: str, r: int | None) -> None:
        """Raise ArgumentError when r is missing though the score `name` needs it, or given though not."""
        if self.needs_r and r is None:
            raise ArgumentError("r", r, f"{name} needs r, the number of leading eigenvalues, such as 1, 8 or 32")
        if not self.needs_r and r is not None:
            raise ArgumentError("r", r, f"{name} has no r; leave it out")


def scores() -> dict[str, Score]:
    """The registry: every score by its name."""
    return dict(SCORES)


def find_score(name: str) -> Score:
    """The score of this name; an unknown one is refused with the nearest known names."""
    if name not in SCORES:
        raise unknown_name("score", name, SCORES)
    return SCORES[name]


def _matrix_entropy(shares: Tensor, r: None) -> Tensor:
    return _plogp(shares).sum(-1)


def _effective_rank(shares: Tensor, r: int) -> Tensor:
    _check_rank(r, shares.shape[-1])
    if r == 1:
        return _outside_first(shares)
    kept = shares[..., :r]
    return _plogp(kept / kept.sum(-1, keepdim=True)).sum(-1).exp().clamp(1.0, float(r))


def _truncated_entropy(shares: Tensor, r: int) -> Tensor:
    _check_rank(r, shares.shape[-1])
    return _outside_first(shares) if r == 1 else _plogp(shares[..., :r]).sum(-1) / r


def _spectral_norm(shares: Tensor, r: None) -> Tensor:
    return shares[..., 0]


def _outside_first(shares: Tensor) -> Tensor:
    # The sum of the others keeps the digits that 1 - l_1 cancels where one direction holds nearly everything.
    return shares[..., 1:].sum(-1)


def _plogp(p: Tensor) -> Tensor:
    terms: Tensor = -torch.special.xlogy(p, p)
    return terms


def _check_rank(r: int, head_dim: int) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r <= head_dim:
        raise ArgumentError("r", r, f"must be an integer from 1 to head_dim={head_dim}")


def _checked_gram(gram: Tensor) -> Tensor:
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ArgumentError("gram", tuple(gram.shape), "must have the shape (..., d, d)")
    if not gram.is_floating_point():
        raise ArgumentError("gram", gram.dtype, "must be of a floating dtype")
    finite = gram.isfinite().flatten(-2).all(-1)
    if not finite.all():
        where = (~finite).nonzero()[0].tolist()
        remedy = "the vectors it was summed from hold NaN or infinity; run the model in a wider dtype"
        raise ArgumentError("gram" + "".join(f"[{i}]" for i in where), "not finite", remedy)
    return (gram.cpu() if gram.device.type == "mps" else gram).double()


SCORES: dict[str, Score] = {
    "band_entropy": Score(
        band_entropy,
        "mean entropy of the rotary pairs' 2 x 2 Grams (v1 eq. 23-26)",
        False,
        "descending",
        None,
    ),
    "matrix_entropy": Score(
        matrix_entropy, "entropy of all eigenvalues (v1 text)", False, "ascending", _matrix_entropy
    ),
    "truncated_effective_rank": Score(
        truncated_effective_rank,
        "effective rank of the r largest eigenvalues (v1 eq. 30)",
        True,
        "ascending",
        _effective_rank,
    ),
    "truncated_entropy": Score(
        truncated_entropy,
        "entropy terms of the r largest eigenvalues (v2 eq. 11)",
        True,
        "ascending",
        _truncated_entropy,
    ),
    "spectral_norm": Score(
        spectral_norm, "the largest eigenvalue's share of the trace", False, "descending", _spectral_norm
    ),
}


def leading_eigenvectors(gram: Tensor, number: int) -> Tensor:
    """The unit eigenvectors of the `number` largest eigenvalues, largest first: (H, d, number) for (H, d, d)."""
    vectors: Tensor = torch.linalg.eigh(gram.double().cpu()).eigenvectors
    return vectors.flip(-1)[..., :number]


def cosines(x: Tensor, eigenvectors: Tensor) -> Tensor:
    """The cosine of each vector with each eigenvector: (H, T, K) for x (H, T, d) and (H, d, K).

    An eigenvector's sign means nothing; each is turned to the side where the vectors point in sum. A zero vector's
    cosines are 0. A vector's squared cosines with all d eigenvectors sum to 1.
    """
    x = x.double().cpu()
    projected = x @ eigenvectors
    found = projected / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(projected.sum(dim=1, keepdim=True) < 0, -found, found)
