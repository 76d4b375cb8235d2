"""TopK: keep the tokens that the class token attends to most.

Source: Haurum et al., "Which Tokens to Use?", ICCVW 2023 (arXiv:2308.04657), §3.1; models/topk.py.
Departures: where nothing is to be removed the authors' code crashes, ours does nothing; the number
of initial tokens is the model's own instead of a fixed 196.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.core import Plan, Site, register
from bench.core.kinds import Compounding
from methods.algorithms.ranking import ranked_by_anchor


@register(
    "topk",
    source="Haurum et al., ICCVW 2023, §3.1",
    url="https://arxiv.org/abs/2308.04657",
)
@dataclass(frozen=True)
class TopK(Compounding):
    """Keeps the patches the class token attends to most, drops the rest.

    A keep rate is a share of the initial tokens and compounds over the layers (floor).
    """

    max_share: ClassVar[float] = 1.0
    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}

    def plan(self, site: Site, r: int) -> Plan:
        """Keep protected tokens, then the rest by descending score."""
        return Plan(ranked_by_anchor(site)[:, : site.x.shape[1] - r])
