"""TopK: keep the tokens that the class token attends to most.

Source: Haurum et al., "Which Tokens to Use?", ICCVW 2023 (arXiv:2308.04657), §3.1; models/topk.py.
Departures: where nothing is to be removed the authors' code crashes, ours does nothing; the number
of initial tokens is the model's own instead of a fixed 196.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bench.core import Plan, Reducer, Site, register


def ranked(score_BN: Tensor, protect_BN: Tensor) -> Tensor:
    """(B,N) positions, the highest score first, protected ones ahead."""
    score_BN = score_BN.masked_fill(protect_BN, float("inf"))
    return score_BN.argsort(dim=1, descending=True, stable=True)


def ranked_by_anchor(site: Site) -> Tensor:
    """(B,N) positions by attention from the class token, highest first, protected ones ahead."""
    return ranked(site.anchor_attention(), site.protect)


@register(
    "topk",
    source="Haurum et al., ICCVW 2023, §3.1",
    url="https://arxiv.org/abs/2308.04657",
)
@dataclass(frozen=True)
class TopK(Reducer):
    """Keeps the patches the class token attends to most, drops the rest.

    A keep rate is a share of the initial tokens and compounds over the layers (floor).
    """

    acts: ClassVar[str] = "chosen layers, after attention"
    max_share: ClassVar[float] = 1.0
    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    keeps: ClassVar[str] = "initial"

    def plan(self, site: Site, r: int) -> Plan:
        """Keep protected tokens, then the rest by descending score."""
        return Plan(ranked_by_anchor(site)[:, : site.x.shape[1] - r])
