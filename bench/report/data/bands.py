"""At which share of the MACs methods compete: one that was solved for, or a band around a ten."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from bench.report.data.rows import Row

BAND_POINTS = 10  # width of a band, in percent of the unreduced model's MACs
_SOLVED = re.compile(r"(\d+(?:\.\d+)?)% gmacs")  # as `planning` writes a budget of MACs


def place(rows: Sequence[Row]) -> None:
    """Add to each row of a table the `band` that it competes in, and its `level` in percent.

    Cells that were solved for a share of the MACs meet at that share, and so do others within half
    a band of it; the rest meet in bands.
    """
    solved = sorted({level for row in rows if (level := _solved(row)) is not None})
    for row in rows:
        share, level = row["gmacs_pct_of_unreduced"], _solved(row)
        if level is None and share is not None and share < 100:
            near = min(solved, key=lambda one: abs(one - share), default=math.inf)
            level = near if abs(near - share) <= BAND_POINTS / 2 else None
        if level is not None:
            row |= {"band": f"{level:g} %", "level": level}
        else:
            row |= {"band": _band(share), "level": None if share is None else _middle(share)}


def _solved(row: Row) -> float | None:
    """Return the share of the MACs in percent that a cell was solved for."""
    asked = _SOLVED.fullmatch(row["budget"] or "")
    return float(asked[1]) if asked else None


def _band(share: float | None) -> str:
    """Name the band around a ten that a share of the MACs falls in, like ``45–55 %``."""
    if share is None:
        return "MACs unknown"
    if share >= 100:
        return "100 % or more"
    middle, half = _middle(share), BAND_POINTS // 2
    return f"{max(middle - half, 0)}–{min(middle + half, 100)} %"


def _middle(share: float) -> int:
    """Return the ten that is nearest to a share of the MACs in percent."""
    return math.floor(share / BAND_POINTS + 0.5) * BAND_POINTS


def off_middle(row: Row) -> float:
    """Return how far a cell's share of the MACs is from where its band meets, in percent."""
    return abs(float(row["gmacs_pct_of_unreduced"]) - float(row["level"]))


def by_band(row: Row) -> tuple[Any, ...]:
    """Return what rows are sorted by: the baseline, bands of MACs, accuracy within a band."""
    share, accuracy = row["gmacs_pct_of_unreduced"], row["accuracy_value"]
    level = math.inf  # what is unknown comes last
    if share is not None:
        level = -math.inf if share >= 100 else -row["level"]
    best_first = -(accuracy or 0.0), -(share or 0.0)
    names = row["method"], row["setting"]
    return (not row["is_baseline"], level, accuracy is None, *best_first, *names)
