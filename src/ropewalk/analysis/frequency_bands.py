"""What a head does with each frequency: how much it uses the band, and how far the band's vectors line up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ropewalk.analysis.head_scores import band_channels

CHUNK_TOKENS = 8192


def usage(x: Tensor, layout: str, width: int) -> Tensor:
    """The mean 2-norm of each pair over the tokens: (H, width / 2) float64 for x (H, N, D).

    For vectors as RoPE compares them, the PoPE paper's figures 3-6 (after Barbero et al., arXiv 2410.06205); rotation
    doesn't change a pair's norm, a rule's attention scale does. For PoPE's vectors, pairs (mu cos, mu sin), it is the
    mean magnitude of each channel.
    """
    total = torch.zeros(x.shape[0], width // 2, dtype=torch.float64)
    for start in range(0, x.shape[1], CHUNK_TOKENS):
        norms, _, _ = _pairs(x[:, start : start + CHUNK_TOKENS], layout, width)
        total += norms.sum(dim=1).double().cpu()
    return total / x.shape[1]


def cone(x: Tensor, gram: Tensor, layout: str, width: int) -> dict[str, Tensor]:
    """DoPE's cone bound beside the eigenvalue that it bounds, in each band: three tensors (H, width / 2) float64.

    Let x_n be the tokens' vectors in a band, 2 channels each, beta_min |k| the least of their lengths, and gamma the
    half-angle of a cone around a unit vector u that holds them all. For gamma <= pi/2,

        lambda_max >= u^T (sum_n x_n x_n^T) u = sum_n |x_n|^2 cos^2(angle(x_n, u)) >= N beta_min^2 |k|^2 cos^2(gamma)

    (arXiv 2511.09146, v1 eq. 18, v2 lemma 3.1). Here u is the leading eigenvector of the band's Gram matrix, in the
    direction that most of the tokens' energy has, so gamma is the angle of the token furthest from it.

    Args:
        x: (H, N, D) vectors as attention compares them.
        gram: (H, D, D), their X^T X.

    Returns:
        `gamma`, in radians, 0 to pi; `bound`, 0 where gamma is above pi/2: there the lemma says nothing; and
        `measured`, lambda_max.
    """
    first, second = (channels.to(gram.device) for channels in band_channels(gram.shape[-1], layout, width))
    a, b, c = gram[:, first, first], gram[:, first, second], gram[:, second, second]
    half_gap = torch.hypot((a - c) / 2, b)
    measured = (a + c) / 2 + half_gap
    angle = torch.atan2(b, (a - c) / 2) / 2
    axis = torch.stack((angle.cos(), angle.sin())).to(x.device, torch.promote_types(x.dtype, torch.float32))
    along = torch.zeros(gram.shape[0], width // 2, dtype=torch.float64)
    least_cos, greatest_cos = torch.full_like(along, math.inf), torch.full_like(along, -math.inf)
    least_norm = torch.full_like(along, math.inf)
    for start in range(0, x.shape[1], CHUNK_TOKENS):
        norms, p, q = _pairs(x[:, start : start + CHUNK_TOKENS], layout, width)
        projected = p * axis[0][:, None] + q * axis[1][:, None]
        # A vector of length 0 lies in every cone; it makes the bound 0 by its length.
        cosines = torch.where(norms > 0, projected / norms, axis.new_ones(()))
        along += (projected * norms).sum(dim=1).double().cpu()
        least_cos = torch.minimum(least_cos, cosines.amin(dim=1).double().cpu())
        greatest_cos = torch.maximum(greatest_cos, cosines.amax(dim=1).double().cpu())
        least_norm = torch.minimum(least_norm, norms.amin(dim=1).double().cpu())
    furthest = torch.where(along >= 0, least_cos, -greatest_cos).clamp(-1.0, 1.0)
    bound = x.shape[1] * least_norm.square() * furthest.clamp(min=0.0).square()
    return {"gamma": furthest.acos(), "bound": bound, "measured": measured.cpu()}


def _pairs(x: Tensor, layout: str, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Norms and both channels of each pair of x (H, n, D), (H, n, width / 2) each, float32 or wider."""
    turned = x[..., :width].to(torch.promote_types(x.dtype, torch.float32))
    half = width // 2
    parts = (slice(half), slice(half, None)) if layout == "half" else (slice(0, None, 2), slice(1, None, 2))
    first, second = (turned[..., part] for part in parts)
    return torch.hypot(first, second), first, second
