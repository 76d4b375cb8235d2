"""Compare every cell, sample by sample, with the baseline and with random reduction.

A method is worth its code where it beats dropping tokens at random at the same cost. P values are
corrected by Holm's method within each table and metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.record import Record
from bench.report import stats
from bench.report.rows import DIFFERENCE_COLUMNS, Row

RANDOM = "random"
LIKE_POINTS = 10.0  # of the unreduced MACs; cells further apart have no like budget
DELTA, OVER_RANDOM = "delta", "over_random"


@dataclass(frozen=True)
class Flag:
    """What is said of a difference: the mark behind it, and the field that says so."""

    mark: str
    field: str


FLAGS = {DELTA: Flag("≈", "delta_is_noise"), OVER_RANDOM: Flag("†", "not_above_random")}
LEGEND = "≈: within noise; †: not better than random reduction at the nearest MACs"


@dataclass(frozen=True)
class Scored:
    """A cell: its record and its row, and its samples' scores by metric, made once."""

    record: Record
    row: Row

    @cached_property
    def scores(self) -> dict[str, stats.Scores | None]:
        """A score for each sample, or None where the outcomes do not hold a metric."""
        known = self.record.accuracy
        return {name: stats.sample_scores(name, known.outcomes) for name in known.metrics}


def metrics(records: Sequence[Record], rows: Sequence[Row]) -> list[Row]:
    """Return one row a cell and metric, and add the primary metric's to the cells' own rows."""
    cells = [Scored(record, row) for record, row in zip(records, rows, strict=True)]
    groups: dict[str, list[Scored]] = {}
    for cell in cells:
        groups.setdefault(cell.row["group"], []).append(cell)
    entries = [entry for own in groups.values() for entry in _compared(own)]
    primary = {entry["key"]: entry for entry in entries if entry["primary"]}
    for row in rows:
        entry = primary.get(row["key"], {})
        row["metric"] = entry.get("metric")
        for name in ("value", "unit", "low", "high", "n"):
            row[f"accuracy_{name}"] = entry.get(name)
        for name in DIFFERENCE_COLUMNS:
            row[name] = entry.get(name)
    return entries


def _compared(cells: Sequence[Scored]) -> list[Row]:
    """Compare the cells of one table."""
    bases = [cell for cell in cells if cell.row["is_baseline"]]
    result = []
    for cell in cells:
        base, rival = _partner(cell, bases), _random(cell, cells)
        for name, metric in cell.record.accuracy.metrics.items():
            low, high = metric.ci95 or (None, None)
            entry: Row = {"key": cell.row["key"], "metric": name, "value": metric.value}
            entry |= {"primary": name == cell.record.accuracy.primary, "unit": metric.unit}
            entry |= {"low": low, "high": high, "n": metric.n}
            entry |= difference(cell, base, name, DELTA, "the baseline")
            entry |= difference(cell, rival, name, OVER_RANDOM, "random at a like budget")
            entry["random_setting"] = rival.row["setting"] if rival else None
            result.append(entry)
    for name in dict.fromkeys(entry["metric"] for entry in result):
        _judge([entry for entry in result if entry["metric"] == name])
    return result


def _judge(entries: Sequence[Row]) -> None:
    """Correct the p values of one table and metric, and say what they allow to say."""
    for kind in (DELTA, OVER_RANDOM):
        correct(entries, kind)
    for entry in entries:
        noise = is_noise(entry, DELTA)
        entry["delta_is_noise"] = noise
        noise = is_noise(entry, OVER_RANDOM)
        entry["not_above_random"] = None if noise is None else noise or entry[OVER_RANDOM] <= 0


def correct(rows: Sequence[Row], kind: str) -> None:
    """Add Holm's correction to the p values of a family."""
    own = [row for row in rows if row[f"{kind}_p"] is not None]
    for row in rows:
        row[f"{kind}_p_holm"] = None
    for row, p in zip(own, stats.holm([row[f"{kind}_p"] for row in own]), strict=True):
        row[f"{kind}_p_holm"] = p


def is_noise(row: Row, kind: str) -> bool | None:
    """Whether a difference could be chance; None where nothing tells."""
    p = row[f"{kind}_p_holm"]
    return None if p is None else bool(p >= stats.LEVEL)


def _partner(cell: Scored, bases: Sequence[Scored]) -> Scored | None:
    """Pick the baseline of the same seed, or else the first: seeds do not choose samples."""
    same = [base for base in bases if base.row["seed"] == cell.row["seed"]]
    return min(same or bases, key=lambda base: (base.row["seed"], base.record.key), default=None)


def _random(cell: Scored, cells: Sequence[Scored]) -> Scored | None:
    """Pick random reduction at the nearest budget; it has no rival itself, nor has the baseline."""
    share = cell.row["gmacs_pct_of_unreduced"]
    if cell.row["method"] == RANDOM or cell.row["is_baseline"] or share is None:
        return None
    found = []
    for other in cells:
        theirs = other.row["gmacs_pct_of_unreduced"]
        if other.row["method"] == RANDOM and theirs is not None:
            seed = other.record.cell.seed != cell.record.cell.seed
            found.append((abs(theirs - share), seed, other.record.key, other))
    near = min(found, key=lambda item: item[:3], default=None)
    return near[3] if near and near[0] <= LIKE_POINTS else None


def difference(cell: Scored, base: Scored | None, name: str, kind: str, what: str) -> Row:
    """Return a metric's paired difference, its interval and p value, or the reason without."""
    row: Row = dict.fromkeys(f"{kind}{end}" for end in ("", "_low", "_high", "_p"))
    reason = f"{kind}_reason"
    if base is None:
        return row | {reason: f"no {what.removeprefix('the ')}"}
    if base.record is cell.record:
        return row | {reason: f"is {what}"}
    ours, theirs = (one.record.accuracy.metrics.get(name) for one in (cell, base))
    if ours is None or theirs is None or theirs.unit != ours.unit:
        return row | {reason: f"{what} has no such metric"}
    row[kind] = ours.value - theirs.value
    pair = cell.scores[name], base.scores[name]
    if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
        return row | {reason: "no paired outcomes"}
    scale = 100.0 if ours.unit == "%" else 1.0
    found = stats.paired_difference(pair[0], pair[1])
    # Outcomes that do not add up to the printed metric cannot give its interval.
    if abs(scale * found.value - row[kind]) > 0.01 * scale / 100 + 1e-6:
        return row | {reason: "outcomes do not reproduce the metric"}
    values: dict[str, Any] = {"_low": scale * found.low, "_high": scale * found.high}
    values |= {"_p": found.p, "_reason": None}
    return row | {f"{kind}{end}": value for end, value in values.items()}
