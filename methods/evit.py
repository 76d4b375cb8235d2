"""EViT: keep the attentive tokens and fuse the inattentive ones into one.

Source: Liang et al., "Not All Patches Are What You Need", ICLR 2022 (arXiv:2202.07800), §3;
evit.py.
Departures: distillation and register tokens are kept; on a text tower the end-of-text token ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.core import Plan, Reducer, Site, register
from methods.algorithms.ranking import ranked


@register("evit", source="Liang et al., ICLR 2022, §3", url="https://arxiv.org/abs/2202.07800")
@dataclass(frozen=True)
class EViT(Reducer):
    """Keeps the patches the class token attends to most and fuses the rest into one token.

    As in the authors' code the fused token is the plain sum of `attention * token` (not
    renormalised), stands last, and is an ordinary candidate at the next reduction.
    """

    fuse: bool = True

    max_share: ClassVar[float] = 1.0
    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}

    def plan(self, site: Site, r: int) -> Plan:
        """Keep protected tokens, then the rest by descending class attention."""
        score_BN = site.anchor_attention()
        order = ranked(score_BN, site.protect)
        keep = order[:, :-r]
        if not self.fuse:
            return Plan(keep)
        return Plan(keep, extra=score_BN.scatter(1, keep, 0)[:, None])
