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

from bench.core import Plan, Site, Unsupported, register, take
from bench.core.kinds import Bounded, Compounding
from methods.algorithms.clustering import k_medoids


@register(
    "kmedoids", source="Haurum et al., ICCVW 2023, §3", url="https://arxiv.org/abs/2308.04657"
)
@dataclass(frozen=True)
class KMedoids(Bounded, Compounding):
    """Keeps one token a cluster, found by k-medoids from those that the others attend to most.

    The attention is the previous block's, received from all tokens in all heads. With
    `equal_weight` it is not used, and the first centres are tokens far apart.
    """

    iterations: int = 3
    equal_weight: bool = False
    seed: int = 0

    before: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the medoids, in cluster order."""
        fixed, patches = site.split()
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
