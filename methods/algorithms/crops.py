"""Crops of an image as runs of patches in reading order: their scores, their shares of a budget.

Shapes: B images, P crops, S patches of the longest crop, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-6


def runs(n: int, crops: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(P,S) positions of each crop's patches in reading order, and (P,S) bool which exist."""
    crops = min(crops, n)
    length = torch.full((crops, 1), n // crops, device=device)
    length += torch.arange(crops, device=device)[:, None] < n % crops
    place = torch.arange(-(-n // crops), device=device)
    return (length.cumsum(0) - length + place).clamp(max=n - 1), place < length


def crop_scores(x_BPSC: Tensor, attention_BPS: Tensor, there_PS: Tensor, alpha: float) -> Tensor:
    """(B,P) mean score of each crop's tokens: attention, and how unequal their likes are.

    `attention_BPS` is 0 where there is no patch.
    """
    length_P1 = there_PS.sum(1, keepdim=True)
    length, others_P1 = length_P1[:, 0], (length_P1 - 1).clamp_min(1)
    x_BPSC = x_BPSC / (x_BPSC.norm(dim=-1, keepdim=True) + _EPSILON)
    pair = there_PS[:, None] & there_PS[:, :, None]
    itself = torch.eye(there_PS.shape[1], dtype=torch.bool, device=pair.device)
    alike = (x_BPSC @ x_BPSC.transpose(2, 3)).masked_fill(itself | ~pair, 0)
    spread = (alike - (alike.sum(3) / others_P1)[..., None]).square()
    variance = spread.masked_fill(~pair, 0).sum(3) / others_P1
    attention = 1000 * attention_BPS
    weight = alpha * (attention.sum(2) / length) / (variance.sum(2) / length + _EPSILON)
    score = (attention + variance * weight[..., None]).sum(2) / length
    return torch.where(length == 1, attention_BPS[..., 0], score)


def shared_out(score_BP: Tensor, count: int) -> Tensor:
    """(B,P) how many of `count` tokens each crop gets, by its share of the scores."""
    weight = score_BP / (score_BP.sum(1, keepdim=True) + _EPSILON)
    share = (weight * count).floor()
    rank = weight.argsort(dim=1, descending=True, stable=True).argsort(1)
    return share + (rank < count - share.sum(1, keepdim=True))
