"""Tokens ranked by a score, protected ones ahead, and plans that keep the first of them.

Of equal scores the lower position comes first. Shapes: B batch, N tokens, M tokens kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from bench.core import Plan, Site

S = TypeVar("S", bound=Site)


def ranked(score_BN: Tensor, protect_BN: Tensor) -> Tensor:
    """(B,N) positions, the highest score first, protected ones ahead."""
    score_BN = score_BN.masked_fill(protect_BN, float("inf"))
    return score_BN.argsort(dim=1, descending=True, stable=True)


def ranked_by_anchor(site: Site) -> Tensor:
    """(B,N) positions by attention from the class token, highest first, protected ones ahead."""
    return ranked(site.anchor_attention(), site.protect)


def keep_highest(score_BN: Tensor, site: Site, r: int) -> Plan:
    """Drop the `r` lowest scores; what is kept stays in ascending order of position."""
    order_BN = ranked(score_BN, site.protect)
    return Plan(order_BN[:, : order_BN.shape[1] - r].sort(1).values)


def precise(site: S) -> S:
    """The site with queries and keys in float32, as bfloat16 ties tokens that are near."""
    return replace(site, q=site.q.float(), k=site.k.float())


def class_attention(site: Site) -> Tensor:
    """(B,N) what the class token attends to, mean over heads, in float32."""
    return precise(site).anchor_attention()
