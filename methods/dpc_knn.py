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
from torch import Tensor
from torch.nn import functional as F

from bench.core import Learner, Plan, Site, default_layers, register, take
from bench.core.kinds import Bounded, Compounding
from methods.algorithms.clustering import cluster_means, density_peaks


@register("dpc-knn", source="Zeng et al., CVPR 2022, §3", url="https://arxiv.org/abs/2204.08680")
@dataclass(frozen=True)
class DPCKNN(Learner, Bounded, Compounding):
    """Clusters the tokens around density peaks and keeps each cluster's mean.

    A token weighs exp(score) in its cluster's mean, where `score` holds a learned linear layer
    (`TOWER.LAYER.weight` (1,C) and `.bias` (1), or a safetensors file); without one, or with
    `equal_weight`, all weigh the same.
    """

    k: int = 5
    equal_weight: bool = False
    score: Any = field(default=None, compare=False)

    before: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    learns: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        """Read the scores; equal weights have none."""
        super().__post_init__()
        if self.equal_weight:
            self.tables.clear()

    def plan(self, site: Site, r: int) -> Plan:
        """Cluster the unprotected tokens; centres by descending peak score."""
        fixed, patches = site.split()
        x, empty = take(site.x, patches).float(), take(site.size, patches)[..., 0] == 0
        centre, cluster = density_peaks(x, patches.shape[1] - r, self.k, empty)
        weight = self._weight(site, x).masked_fill(empty, 0)
        return cluster_means(centre, cluster, weight, fixed, patches)

    def _weight(self, site: Site, x: Tensor) -> Tensor:
        if not self.tables:
            return torch.ones_like(x[..., 0])
        score = self.at(site)
        return F.linear(x, score["weight"].to(x), score["bias"].to(x))[..., 0].exp()

    def untrained(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Tensor]:
        """A score for each tower's usual layers, zero: equal weights."""
        tables = {}
        for tower, (depth, width) in shapes.items():
            for layer in () if self.equal_weight else default_layers(depth):
                tables[f"{tower}.{layer}.weight"] = torch.zeros(1, width)
                tables[f"{tower}.{layer}.bias"] = torch.zeros(1)
        return tables
