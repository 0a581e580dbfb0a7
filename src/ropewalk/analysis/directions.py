"""How a head's vectors lie along the leading eigenvectors of their Gram matrix (DoPE's figures 3-6)."""

from __future__ import annotations

import torch
from torch import Tensor


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
