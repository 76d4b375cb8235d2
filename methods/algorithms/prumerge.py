"""PruMerge's selection, and the weights of its tokens; the method `prumerge` names the source.

Shapes: B images, N patches (without the class token), K listed patches, C channels. A list of
patches (B,K) may have gaps (-1) behind them, and may name a patch twice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def full_width_attention(q_BNC: Tensor, k_BNC: Tensor, seen_BN: Tensor | None = None) -> Tensor:
    """(B,1+N) attention of the first token, in float32, all heads taken as a single one."""
    logits_BN = (q_BNC[:, :1].float() @ k_BNC.float().transpose(1, 2))[:, 0]
    logits_BN = logits_BN * q_BNC.shape[-1] ** -0.5
    if seen_BN is not None:
        logits_BN = logits_BN.masked_fill(~seen_BN, -torch.inf)
    return torch.softmax(logits_BN, -1)


@torch.no_grad()
def outlier_ratio(attention_BN: Tensor) -> Tensor:
    """(B,) share of each row's values above its third quartile by 1.5 interquartile ranges."""
    odd = torch.arange(1, 4, 2, device=attention_BN.device, dtype=attention_BN.dtype)
    low, high = torch.quantile(attention_BN, odd / 4, dim=1)
    outliers_BN = attention_BN > (high + 1.5 * (high - low))[:, None]
    return torch.div(outliers_BN.sum(1).double(), attention_BN.shape[1])


@torch.no_grad()
def listed_by_ratio(attention_BN: Tensor, ratio_B: Tensor, plus: bool) -> tuple[Tensor, Tensor]:
    """(B,N) patches, those listed ahead, and how many (B,) they are.

    Listed are the `int(N * ratio)` of highest attention, at least one, in descending order; with
    `plus` also every s-th patch but the last, s = int(1 / ratio) // 3.
    """
    N = attention_BN.shape[1]
    first_B1 = (ratio_B * N).long().clamp_min(1)[:, None]
    order_BN = attention_BN.argsort(dim=1, descending=True, stable=True)
    rank_BN, place = order_BN.argsort(1), torch.arange(N, device=order_BN.device)
    key_BN = torch.where(rank_BN < first_B1, rank_BN, 2 * N)
    if plus:
        step_B1 = ((1 / ratio_B.clamp_min(1 / N)).long() // 3).clamp_min(1)[:, None]
        grid_BN = (place % step_B1 == 0) & (place < N - 1) & (rank_BN >= first_B1)
        key_BN = torch.where(grid_BN, N, key_BN)
    return key_BN.argsort(dim=1, stable=True), (key_BN < 2 * N).sum(1)


@torch.no_grad()
def listed_by_count(attention_BN: Tensor, first: int, spaced: int) -> Tensor:
    """(B,first+spaced) the patches of highest attention, descending, and evenly spaced ones.

    A patch may be both, and is then named twice.
    """
    B, N = attention_BN.shape
    step = N // max(spaced, 1)
    grid = torch.arange(spaced, device=attention_BN.device) * step + step // 2
    order_BN = attention_BN.argsort(dim=1, descending=True, stable=True)
    return torch.cat([order_BN[:, :first], grid.expand(B, -1)], 1)


@torch.no_grad()
def left_out(listed_BK: Tensor, n: int) -> Tensor:
    """(B,N) bool, patches that are not listed; as many as are named twice are lost, from the first.

    Listed and left out are together as many as there are patches.
    """
    at_BK = listed_BK % (n + 1)  # gaps count in a column that is cut off
    times_BN = at_BK.new_zeros(len(at_BK), n + 1)
    times_BN = times_BN.scatter_add(1, at_BK, torch.ones_like(at_BK))[:, :n]
    twice_B1 = (times_BN - 1).clamp_min(0).sum(1, keepdim=True)
    free_BN = times_BN == 0
    return free_BN & (free_BN.cumsum(1) > twice_B1)


def enriched(attention_BN: Tensor, key_BNC: Tensor, listed_BK: Tensor, k: int) -> Tensor:
    """(B,K+1,N) weights of the new tokens: one a listed patch, and one of those left out.

    To a listed patch its `k` nearest others by the cosine of the keys are added, each weighing its
    attention, be they listed themselves or left out. Gaps weigh nothing.
    """
    B, N = attention_BN.shape
    out_BN, gap_BK = left_out(listed_BK, N), listed_BK < 0
    own_BK = listed_BK.clamp(min=0)
    K, place = own_BK.shape[1], torch.arange(N, device=own_BK.device).expand(B, N)
    weight = torch.where(out_BN, attention_BN, 0)
    with torch.no_grad():
        key_BNC = F.normalize(key_BNC.float(), dim=-1)
        others = torch.cat([own_BK, place], 1)  # candidates: the list first, then those left out
        rows = torch.arange(B, device=own_BK.device)[:, None]
        alike = key_BNC[rows, own_BK] @ key_BNC[rows, others].transpose(1, 2)
        barred = torch.cat([gap_BK, ~out_BN], 1)[:, None]
        itself = torch.eye(K, K + N, dtype=torch.bool, device=own_BK.device)
        alike = alike.masked_fill(barred | itself, -torch.inf)
        near = alike.argsort(dim=-1, descending=True, stable=True)[..., : min(k, N - 1)]
    adds = torch.cat([attention_BN.gather(1, own_BK).masked_fill(gap_BK, 0), weight], 1)
    adds = adds[:, None].expand(-1, K, -1).gather(2, near)
    rows_BKN = (own_BK[..., None] == place[:, None]).to(adds.dtype)
    rows_BKN = rows_BKN.scatter_add(2, others[:, None].expand(-1, K, -1).gather(2, near), adds)
    return torch.cat([rows_BKN.masked_fill(gap_BK[..., None], 0), weight[:, None]], 1)
