"""Inverse transform sampling of tokens by their significance; the method `ats` names the sources.

Shapes: B batch, N tokens without the protected ones, K sample points.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_sorted(
    score_BN: Tensor, points: int, empty_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling along tokens of ascending score, at evenly spaced points.

    The curve starts at 0 with the least score, whose token is never picked if there is another.

    Args:
        score_BN: significance without the protected tokens; 0 in empty slots.
        points: how many points (`n_ref_tokens - 1`); tokens beyond that many are out of reach,
            the least significant first.
        empty_BN: slots that are passed over; else an empty slot has the least score.

    Returns:
        (B,N) tokens in ascending order, and (B,points) the rank in it that each point picks.
    """
    N = score_BN.shape[1]
    if empty_BN is not None:
        score_BN = score_BN.masked_fill(empty_BN, -1.0)
    score, order = score_BN.sort(dim=1, stable=True)
    passed_over, score = score < 0, score.clamp_min(0)
    tiny = torch.finfo(score.dtype).tiny
    cdf = (score / score.sum(1, keepdim=True).clamp_min(tiny)).cumsum(1)
    cdf = cdf.masked_fill(passed_over, torch.inf)
    cdf = cdf - cdf.amin(1, keepdim=True)
    cdf = cdf / cdf[:, -1:].clamp_min(tiny)
    start = cdf.masked_fill(cdf == 0, 1.0).amin(1, keepdim=True)
    even = torch.linspace(0, 1, points, device=score.device, dtype=score.dtype)
    beyond = max(N - points, 0)
    return order, nearest(start + even * (1 - start), cdf[:, beyond:]) + beyond


def sample_positional(
    score_BN: Tensor, sample_count: int, empty_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling along positions, at the middles of `sample_count` equal steps.

    The last middle is left out, except where rounding of the step lets it in, as in the code.
    Returns as `sample_sorted`, the order being that of the positions.
    """
    K = sample_count
    cdf = (score_BN / (score_BN.sum(1, keepdim=True) + 1e-6)).cumsum(1)
    if empty_BN is not None:
        cdf = cdf + 0.1 * empty_BN
    middles = torch.arange(
        1 / (2 * K), (2 * K - 1) / (2 * K), 2 / (2 * K), device=cdf.device, dtype=cdf.dtype
    )
    order = torch.arange(cdf.shape[1], device=cdf.device).expand_as(cdf)
    return order, nearest(middles.expand(len(cdf), -1), cdf)


def nearest(point_BK: Tensor, curve_BN: Tensor) -> Tensor:
    """(B,K) where the curve comes nearest to each point, the first place on ties."""
    return (point_BK[..., None] - curve_BN[:, None]).abs().argmin(-1)
