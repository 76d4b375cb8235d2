"""Complete-graph soft matching (CrossGET, §3.2): all pairs, no even/odd split, no iteration.

Shape suffixes: B batch, N tokens, R sources, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_FAR = 1e30  # beyond any cosine, and so many tokens times it is still a number


class Matching(NamedTuple):
    """Who merges into whom.

    Attributes:
        src_BR: positions of the sources, ascending in the objective.
        dst_BR: the position that each merges into.
        stay_BM: positions of all other tokens, ascending in the objective.
    """

    src_BR: Tensor
    dst_BR: Tensor
    stay_BM: Tensor


def cosine_similarity(key_BNC: Tensor) -> Tensor:
    """(B,N,C) -> (B,N,N) cosine of all pairs, in float32: bfloat16 ties tokens that are near.

    The diagonal of the products has the squared lengths, and scaling N x N products is cheaper than
    scaling N x C keys.
    """
    key = key_BNC.float()
    product = key @ key.transpose(1, 2)
    shrink = product.diagonal(dim1=1, dim2=2).clamp_min(1e-24).rsqrt()
    # Both lengths at once, so that the cosine of a pair is the same from either side.
    return (shrink[:, :, None] * shrink[:, None, :]).mul_(product)


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
    # What is hidden is moved out of reach: a CPU subtracts several times as fast as it fills under
    # a mask. The rows of protected tokens are not hidden, as nobody reads them.
    similarity = torch.add(similarity_BNN, protect_BN[:, None, :], alpha=-_FAR)
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    order = similarity.amax(-1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).float()
    above = (rank[:, :, None] - rank[:, None, :]).clamp_min_(0)
    best = torch.sub(similarity, above, alpha=_FAR).amax(-1)
    objective = -best if importance_BN is None else importance_BN - best
    objective = objective.masked_fill(protect_BN, torch.inf)
    order = objective.argsort(dim=1, stable=True)
    src, stay = order[:, :r], order[:, r:]
    is_src = torch.zeros_like(protect_BN).scatter(1, src, True)
    rows = similarity.gather(1, src[..., None].expand(-1, -1, n))
    dst = rows.masked_fill(is_src[:, None, :], -torch.inf).argmax(-1)
    return Matching(src, dst, stay)
