"""Complete-graph soft matching (CrossGET, §3.2): all pairs, no even/odd split, no iteration.

Shape suffixes: B batch, N tokens, R sources, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Matching(NamedTuple):
    """Sources, ascending in the objective, and the position each merges into."""

    src_BR: Tensor
    dst_BR: Tensor


def cosine_similarity(key_BNC: Tensor) -> Tensor:
    """(B,N,C) -> (B,N,N) cosine of all pairs."""
    return similarity_and_length(key_BNC)[0]


def similarity_and_length(key_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """(B,N,C) -> (B,N,N) cosine of all pairs, (B,N) lengths; in float32: bfloat16 ties near tokens.

    The diagonal of the products has the lengths, and scaling N x N products is cheaper than scaling
    N x C keys.
    """
    key = key_BNC.float()
    product = key @ key.transpose(1, 2)
    length = product.diagonal(dim1=1, dim2=2).clamp_min(1e-24).sqrt()
    shrink = 1 / length
    return (shrink[:, :, None] * shrink[:, None, :]).mul_(product), length


def complete_graph_soft_matching(
    similarity_BNN: Tensor, r: int, protect_BN: Tensor, importance_BN: Tensor | None = None
) -> Matching:
    """Choose `r` sources among all tokens and the destination of each among the others.

    Tokens are ranked by their best similarity, and one may only look at tokens ranked below it, so
    that of a chain of near tokens not all become sources. The sources are the r smallest of
    `importance - best similarity still visible`; each goes to its most similar non-source.

    Args:
        similarity_BNN: similarity of all pairs.
        r: sources to choose, at most half of the unprotected tokens.
        protect_BN: tokens that are neither source nor destination.
        importance_BN: cross-modal importance; None matches on similarity alone.

    Ties are broken stably, lower position first: mutual nearest neighbours tie exactly.
    """
    n = similarity_BNN.shape[-1]
    # Walls are added: a CPU adds four times as fast as it fills under a mask. The rows of protected
    # tokens need none, as nobody reads them.
    wall = torch.zeros_like(similarity_BNN[:, :1]).masked_fill(protect_BN[:, None, :], -torch.inf)
    similarity = similarity_BNN + wall
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    order = similarity.amax(-1).argsort(dim=1, descending=True, stable=True)
    place = torch.arange(n, device=order.device, dtype=torch.float32).expand_as(order)
    rank = torch.zeros_like(place).scatter(1, order, place)
    below = rank[:, None, :] - rank[:, :, None]
    # Adds 0 where ranked below, else -inf.
    best = F.threshold(below, 0, -torch.inf, inplace=True).clamp_max_(0).add_(similarity).amax(-1)
    objective = -best if importance_BN is None else importance_BN - best
    objective = objective.masked_fill(protect_BN, torch.inf)
    src = objective.argsort(dim=1, stable=True)[:, :r]
    is_src = torch.zeros_like(protect_BN).scatter(1, src, True)
    rows = similarity.gather(1, src[..., None].expand(-1, -1, n))
    dst = rows.masked_fill(is_src[:, None, :], -torch.inf).argmax(-1)
    return Matching(src, dst)
