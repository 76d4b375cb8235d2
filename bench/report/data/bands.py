"""Bands of MACs, within which methods compete: solved for 50 % of the MACs, they meet in one."""

from __future__ import annotations

import math
from typing import Any

from bench.report.data.rows import Row

BAND_POINTS = 10  # width of a band, in percent of the unreduced model's MACs


def band(row: Row) -> str:
    """Name the band around a ten that a cell falls in, like ``45–55 %``."""
    share = row.get("gmacs_pct_of_unreduced")
    if share is None:
        return "MACs unknown"
    middle, half = middle_of_band(share), BAND_POINTS // 2
    if share >= 100:
        return "100 % or more"
    return f"{max(middle - half, 0)}–{min(middle + half, 100)} %"


def middle_of_band(share: float) -> int:
    """Return the ten that is nearest to a share of the MACs in percent."""
    return math.floor(share / BAND_POINTS + 0.5) * BAND_POINTS


def off_middle(row: Row) -> float:
    """Return how far a cell's share of the MACs is from the middle of its band, in percent."""
    share = float(row["gmacs_pct_of_unreduced"])
    return abs(share - middle_of_band(share))


def by_band(row: Row) -> tuple[Any, ...]:
    """Return what rows are sorted by: the baseline, bands of MACs, accuracy within a band."""
    share, accuracy = row["gmacs_pct_of_unreduced"], row["accuracy_value"]
    level = math.inf  # what is unknown comes last
    if share is not None:
        level = -math.inf if share >= 100 else -middle_of_band(share)
    best_first = -(accuracy or 0.0), -(share or 0.0)
    names = row["method"], row["setting"]
    return (not row["is_baseline"], level, accuracy is None, *best_first, *names)
