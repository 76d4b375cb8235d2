"""K-medoids: the tokens that lie most centrally in their clusters stay, the others are dropped.

Source: Haurum et al., "Which Tokens to Use?", ICCVW 2023 (arXiv:2308.04657), §3;
models/kmedoids.py.
Departures: a medoid always belongs to its own cluster, so that none is empty (where two tokens
coincide the code falls back to the first token); with equal weights the first centre comes from
`seed` and the layer instead of numpy's global state; ties go to the lower position.
Kept as in the code, and surprising: a medoid's cost is summed over all tokens, not those of its
cluster, and multiplied by its own weight, so that tokens with little attention win.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import Plan, Reducer, Site, Unsupported, take
from bench.registry import register
from methods.dpc_knn import split


@torch.no_grad()
def k_medoids(
    x_BNC: Tensor,
    clusters: int,
    iterations: int = 3,
    weight_BN: Tensor | None = None,
    first: int = 0,
    empty_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Medoids (B,K) in the order of their first choice, and the cluster number (B,N) of each token.

    Args:
        x_BNC: tokens without the protected ones.
        clusters: how many medoids.
        iterations: rounds of assignment and new choice.
        weight_BN: the heaviest are chosen first; None for equal weights.
        first: with equal weights, the token chosen first.
        empty_BN: slots without a token: chosen last, and no part of any cost.
    """
    x = x_BNC.float()
    dist_BNN = torch.cdist(x, x)
    empty = torch.zeros_like(x[..., 0], dtype=torch.bool) if empty_BN is None else empty_BN
    if weight_BN is None:
        weight_BN = torch.ones_like(x[..., 0])
        medoid = farthest(dist_BNN.masked_fill(empty[..., None], -1.0), clusters, first)
    else:
        rank = weight_BN.masked_fill(empty, -1.0)
        medoid = rank.argsort(dim=1, descending=True, stable=True)[:, :clusters]
    cost_BN = weight_BN * dist_BNN.masked_fill(empty[:, None], 0.0).sum(-1)
    cost_BN = cost_BN.masked_fill(empty, torch.finfo(cost_BN.dtype).max)
    number = torch.arange(clusters, device=x.device)
    for _ in range(iterations):
        member_BKN = assign(dist_BNN, medoid)[:, None] == number[:, None]
        medoid = torch.where(member_BKN, cost_BN[:, None], torch.inf).argmin(-1)
    return medoid, assign(dist_BNN, medoid)


def assign(dist_BNN: Tensor, medoid_BK: Tensor) -> Tensor:
    """(B,N) number of the nearest medoid, the lower one on ties; medoids go to themselves."""
    number = torch.arange(medoid_BK.shape[1], device=medoid_BK.device).expand_as(medoid_BK)
    return take(dist_BNN, medoid_BK).argmin(1).scatter(1, medoid_BK, number)


def farthest(dist_BNN: Tensor, count: int, first: int) -> Tensor:
    """(B,K) tokens, each the one that lies farthest from any (not from all) of those before it."""
    chosen = torch.full_like(dist_BNN[:, :1, 0], first, dtype=torch.long)
    done = torch.zeros_like(dist_BNN[..., 0], dtype=torch.bool)
    reach = torch.full_like(dist_BNN[..., 0], -1.0)
    for _ in range(1, count):
        newest = chosen[:, -1:]
        done = done.scatter(1, newest, True)
        column = dist_BNN.gather(2, newest[:, None].expand(-1, dist_BNN.shape[1], -1))[..., 0]
        reach = torch.maximum(reach, column)
        chosen = torch.cat([chosen, reach.masked_fill(done, -2.0).argmax(1, keepdim=True)], 1)
    return chosen


@register(
    "kmedoids", source="Haurum et al., ICCVW 2023, §3", url="https://arxiv.org/abs/2308.04657"
)
@dataclass(frozen=True)
class KMedoids(Reducer):
    """Keeps one token a cluster, found by k-medoids from those that the others attend to most.

    The attention is the previous block's, received from all tokens in all heads. With
    `equal_weight` it is not used, and the first centres are tokens far apart.
    """

    iterations: int = 3
    equal_weight: bool = False
    seed: int = 0

    acts: ClassVar[str] = "chosen layers, before the block"
    before: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    keeps: ClassVar[str] = "initial"

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """At least one cluster."""
        return max(min(r, tokens - 1), 0)

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the medoids, in cluster order."""
        fixed, patches = split(site.protect, site.n_protected)
        n = patches.shape[1]
        weight = None if self.equal_weight else received_attention(site).gather(1, patches)
        first = (self.seed * 2654435761 + site.layer * 40503) % 2**31 % n
        empty = take(site.size, patches)[..., 0] == 0
        x = take(site.x, patches)
        medoid, _ = k_medoids(x, n - r, self.iterations, weight, first, empty)
        return Plan(keep=torch.cat([fixed, patches.gather(1, medoid)], 1))


def received_attention(site: Site) -> Tensor:
    """(B,N) attention that each token got in the previous block, summed over heads and queries.

    Raises:
        Unsupported: there is no block before this one, or it saw other tokens.
    """
    if not site.q.shape[-1] or site.q.shape[2] != site.x.shape[1]:
        raise Unsupported(
            f"method 'kmedoids' weighs tokens by the attention of the block before, and ahead of "
            f"layer {site.layer} there is none for these tokens: give other layers=, or "
            "equal_weight=True"
        )
    filled = (site.size > 0)[:, None].to(site.q.dtype)  # empty slots attend to nobody
    return (site.attention() * filled).sum((1, 2), dtype=torch.float32)
