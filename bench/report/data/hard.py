"""Split each band's samples by whether a plain smaller image of the same cost keeps them right.

On most samples of common benchmarks a smaller image does as well as any choice of tokens, so that
an accuracy over all of them says little about a method. Hard are the samples that the unreduced
model gets right and `downsample` in the method's own band of MACs gets wrong; easy are those that
both get right.

Source: Liao et al., "Are We Using the Right Benchmark", 2025 (VTC-Bench), arXiv 2510.07143.
Departures: a method meets the `downsample` of its own band of MACs, not of its number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.report.data import stats
from bench.report.data.bands import off_middle
from bench.report.data.scored import Scored

JUDGE = "downsample"
HARD, EASY = "hard", "easy"
RIGHT = 0.5  # of a score from 0 to 1: VQAv2's is shared, and right where half of it is got
LEAST = 10  # samples: of fewer, the interval is wider than 50 points
FIELDS = tuple(f"{kind}_{end}" for kind in (HARD, EASY) for end in ("value", "low", "high", "n"))

Shares = NDArray[np.float64]  # (n,) of each sample, the share of the seeds that got it right


def split(cells: Sequence[Scored]) -> None:
    """Add to cells' rows `hard_value` and its like, in percent, and the judge's setting.

    None where a band has no `downsample`, where outcomes are neither right nor wrong, and for the
    judge and the unreduced model, which are 0 and 100 by definition. A value is None where fewer
    than `LEAST` samples are left; their number is told.
    """
    judges: dict[tuple[str, str], Scored] = {}
    unreduced: dict[str, Scored] = {}
    for cell in sorted(cells, key=lambda one: (one.record.cell.seed, one.record.key)):
        cell.row.update(dict.fromkeys((*FIELDS, "hard_judge")))
        if cell.record.cell.baseline:
            unreduced.setdefault(cell.row["group"], cell)
        elif cell.record.cell.method == JUDGE and cell.row["gmacs_pct_of_unreduced"] is not None:
            place = cell.row["group"], cell.row["band"]
            judges[place] = min(judges.get(place, cell), cell, key=lambda one: off_middle(one.row))
    for cell in cells:
        judge = judges.get((cell.row["group"], cell.row["band"]))
        full = unreduced.get(cell.row["group"])
        if judge and full and cell is not judge and not cell.record.cell.baseline:
            _split(cell, judge, full)


def _split(cell: Scored, judge: Scored, full: Scored) -> None:
    shares = right(cell, judge, full)
    if shares is None:
        return
    ours, theirs, best = shares
    cell.row["hard_judge"] = judge.row["setting"]
    known, kept = best >= RIGHT, theirs >= RIGHT
    for kind, chosen in ((HARD, known & ~kept), (EASY, known & kept)):
        n = int(chosen.sum())
        cell.row[f"{kind}_n"] = n
        if n >= LEAST:
            value = float(ours[chosen].mean())
            ends = (100 * end for end in stats.wilson(value, n))
            cell.row[f"{kind}_value"] = 100 * value
            cell.row[f"{kind}_low"], cell.row[f"{kind}_high"] = ends


def right(*cells: Scored) -> list[Shares] | None:
    """Return the share of its seeds that got each sample right, shape (n,), of each of some cells.

    They are of the samples that all have: where one stopped early, of the first. In retrieval each
    query, of either way, is a sample, right where a right answer comes first. None where the
    primary metric knows no right and wrong (CIDEr) or outcomes are missing.
    """
    primary = cells[0].record.accuracy.primary or ""
    names = [primary] if primary in ("accuracy", "top1") else []
    if primary.endswith("_r1"):
        metrics = [name for name in cells[0].metrics if name.endswith("_r1")]
        names = [name for name in metrics if all(name in one.metrics for one in cells)]
    early = any(one.early for one in cells)
    parts: list[list[Shares]] = [[] for _ in cells]
    for name in names:
        each = [one.scores.get(name) for one in cells]
        known = [(scores >= RIGHT).mean(axis=0) for scores in each if scores is not None]
        n = min(map(len, known), default=0)
        if len(known) < len(cells) or not (early or len({len(one) for one in known}) == 1):
            return None
        for part, shares in zip(parts, known, strict=True):
            part.append(shares[:n])
    return [np.concatenate(part) for part in parts] if names else None
