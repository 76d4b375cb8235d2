"""DPC-KNN: density peaks become cluster centres, and each cluster one weighted mean.

Source: Zeng et al., "Not All Tokens Are Equal: Human-centric Visual Analysis via Token Clustering
Transformer", CVPR 2022 (arXiv:2204.08680), §3; tcformer_module/tcformer_utils.py; in a ViT as in
Haurum et al., ICCVW 2023 (arXiv:2308.04657), models/dpcknn.py.
Departures: at equal density the lower position counts as the denser one, where the codes add random
noise; densities are compared as logarithms, which do not underflow; the number of clusters is
floored as in the ViT code (TCFormer rounds up), of the model's own tokens instead of a fixed 196;
weights that nobody learned are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import BenchError, Plan, Reducer, Site, learned_tensors, take
from bench.registry import register


def split(protect_BN: Tensor, n_protected: int) -> tuple[Tensor, Tensor]:
    """Positions of the protected tokens and of the others, each in their order."""
    order = (~protect_BN).to(torch.int8).argsort(dim=1, stable=True)
    return order[:, :n_protected], order[:, n_protected:]


@torch.no_grad()
def density_peaks(
    x_BNC: Tensor, clusters: int, k: int = 5, empty_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Centres (B,K) by descending peak score, and the cluster number (B,N) of every token.

    Args:
        x_BNC: tokens without the protected ones.
        clusters: how many centres.
        k: a token's density is taken over its k nearest, itself among them.
        empty_BN: slots without a token, which are nobody's neighbours.
    """
    N, C = x_BNC.shape[1:]
    dist_BNN = torch.cdist(x_BNC.float(), x_BNC.float()) / C**0.5
    largest_B11 = dist_BNN.amax((1, 2), keepdim=True)
    if empty_BN is not None:
        dist_BNN = dist_BNN.masked_fill(empty_BN[:, None], torch.inf)
    near = dist_BNN.topk(min(k, N), dim=-1, largest=False).values
    density_BN = -near.square().mean(-1)  # its logarithm
    if empty_BN is not None:
        density_BN = density_BN.masked_fill(empty_BN, -torch.inf)
    own, other = density_BN[:, :, None], density_BN[:, None]
    denser = (other > own) | ((other == own) & torch.ones_like(dist_BNN[0]).tril(-1).bool())
    delta_BN = torch.where(denser, dist_BNN, largest_B11).amin(-1)
    peak_BN = delta_BN.log() + density_BN
    centre = peak_BN.argsort(dim=1, descending=True, stable=True)[:, :clusters]
    cluster = take(dist_BNN, centre).argmin(1)
    number = torch.arange(clusters, device=centre.device).expand_as(centre)
    return centre, cluster.scatter(1, centre, number)


def cluster_means(
    centre_BK: Tensor, cluster_BN: Tensor, weight_BN: Tensor, fixed: Tensor, patches: Tensor
) -> Plan:
    """The plan that puts each cluster's weighted mean at its centre's slot, after the fixed ones.

    Args:
        centre_BK: centres, as numbers of patches.
        cluster_BN: each patch's cluster.
        weight_BN: each patch's weight.
        fixed: (B,P) positions of the protected tokens.
        patches: (B,N) positions of the patches.
    """
    total_BK = torch.zeros_like(centre_BK, dtype=weight_BN.dtype)
    total_BK = total_BK.scatter_add(1, cluster_BN, weight_BN) + 1e-6
    share_BN = weight_BN / total_BK.gather(1, cluster_BN)
    is_centre = torch.zeros_like(cluster_BN).scatter(1, centre_BK, 1)
    gone = is_centre.argsort(dim=1, stable=True)[:, : patches.shape[1] - centre_BK.shape[1]]
    stays = torch.ones_like(fixed, dtype=share_BN.dtype)
    return Plan(
        keep=torch.cat([fixed, patches.gather(1, centre_BK)], 1),
        src=patches.gather(1, gone),
        dst=cluster_BN.gather(1, gone) + fixed.shape[1],
        mix=(torch.cat([stays, share_BN.gather(1, centre_BK)], 1), share_BN.gather(1, gone)),
    )


@register("dpc-knn", source="Zeng et al., CVPR 2022, §3", url="https://arxiv.org/abs/2204.08680")
@dataclass(frozen=True)
class DPCKNN(Reducer):
    """Clusters the tokens around density peaks and keeps each cluster's mean.

    A token weighs exp(score) in its cluster's mean, where `score` holds a learned linear layer
    (`TOWER.LAYER.weight` (1,C) and `.bias` (1), or a safetensors file); without one, or with
    `equal_weight`, all weigh the same.
    """

    k: int = 5
    equal_weight: bool = False
    score: Any = field(default=None, compare=False)
    tables: dict[str, Tensor] = field(init=False, compare=False, repr=False)

    acts: ClassVar[str] = "chosen layers, before the block"
    before: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    keeps: ClassVar[str] = "initial"
    learns: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        """Read the scores.

        Raises:
            BenchError: the file does not serve.
        """
        object.__setattr__(self, "tables", learned_tensors(self.score, self.learns))

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """At least one cluster."""
        return max(min(r, tokens - 1), 0)

    def plan(self, site: Site, r: int) -> Plan:
        """Cluster the unprotected tokens; centres by descending peak score."""
        fixed, patches = split(site.protect, site.n_protected)
        x, empty = take(site.x, patches).float(), take(site.size, patches)[..., 0] == 0
        centre, cluster = density_peaks(x, patches.shape[1] - r, self.k, empty)
        weight = self._weight(site, x).masked_fill(empty, 0)
        return cluster_means(centre, cluster, weight, fixed, patches)

    def _weight(self, site: Site, x: Tensor) -> Tensor:
        if self.equal_weight or not self.tables:
            return torch.ones_like(x[..., 0])
        key = f"{site.tower}.{site.layer}"
        if f"{key}.weight" not in self.tables:
            raise BenchError(f"dpc-knn: score has no {key}.weight; it has {sorted(self.tables)}")
        weight, bias = (self.tables[f"{key}.{part}"].to(x) for part in ("weight", "bias"))
        return F.linear(x, weight, bias)[..., 0].exp()

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """A score for each tower's usual layers, zero (equal weights) where none was given."""
        if self.equal_weight:
            return {}
        for tower, (depth, width) in shapes.items():
            for layer in sorted({depth * i // 4 for i in (1, 2, 3)}):
                self.tables.setdefault(f"{tower}.{layer}.weight", torch.zeros(1, width))
                self.tables.setdefault(f"{tower}.{layer}.bias", torch.zeros(1))
        learned = {name: nn.Parameter(value.clone()) for name, value in self.tables.items()}
        self.tables.update(learned)
        return learned
