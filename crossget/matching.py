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
    key = F.normalize(key_BNC, dim=-1)
    return key @ key.transpose(1, 2)


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
    itself = torch.eye(n, dtype=torch.bool, device=similarity_BNN.device)
    blocked = protect_BN[:, :, None] | protect_BN[:, None, :] | itself
    similarity = similarity_BNN.masked_fill(blocked, -torch.inf)
    order = similarity.amax(-1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1)
    visible = rank[:, None, :] > rank[:, :, None]
    best = similarity.masked_fill(~visible, -torch.inf).amax(-1)
    objective = -best if importance_BN is None else importance_BN - best
    objective = objective.masked_fill(protect_BN, torch.inf)
    src = objective.argsort(dim=1, stable=True)[:, :r]
    is_src = torch.zeros_like(protect_BN).scatter(1, src, True)
    rows = similarity.gather(1, src[..., None].expand(-1, -1, n))
    dst = rows.masked_fill(is_src[:, None, :], -torch.inf).argmax(-1)
    return Matching(src, dst)
