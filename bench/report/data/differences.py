"""Compare every cell, sample by sample, with the baseline and with random reduction.

A method is worth its code where it beats dropping tokens at random at the same cost: random
reduction's score at a method's own MACs is interpolated between its two nearest settings. P values
are corrected by Holm's method within each table and metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.precision import scale_of
from bench.report.data import stats
from bench.report.data.rows import DIFFERENCES, Row
from bench.report.data.scored import RANDOM, Between, Scored, common

# In points of the unreduced MACs: how far the nearest random setting may be, and by how much the
# cheapest one may be dearer than a method that is judged by it.
LIKE_POINTS, EDGE_POINTS = 10.0, 2.0
DELTA, OVER_RANDOM = "delta", "over_random"
VALUES = ("value", "unit", "low", "high", "n")  # of a metric


@dataclass(frozen=True)
class Flag:
    """A judgement of a difference: its kind, the mark behind it, and the field that holds it."""

    kind: str
    mark: str
    field: str


NOISE = "≈"
FLAGS = (
    Flag(DELTA, NOISE, "delta_is_noise"),
    Flag(OVER_RANDOM, "†", "over_random_is_noise"),
    Flag(OVER_RANDOM, "‡", "below_random"),
)
LEGEND = (
    "≈: within noise; †: not better than random reduction at the same MACs, within noise of it; "
    "‡: worse than it"
)


def flags(kind: str) -> list[Flag]:
    """Return the judgements of differences of a kind."""
    return [flag for flag in FLAGS if flag.kind == kind]


def metrics(cells: Sequence[Scored]) -> dict[str, list[Row]]:
    """Return one row a metric, by cell, and add the primary metric's to the cells' own rows."""
    groups: dict[str, list[Scored]] = {}
    for cell in cells:
        groups.setdefault(cell.row["group"], []).append(cell)
    entries: dict[str, list[Row]] = {cell.row["key"]: [] for cell in cells}
    for group in groups.values():
        for entry in _compared(group):
            entries[entry["key"]].append(entry)
    for row in (cell.row for cell in cells):
        entry = next((entry for entry in entries[row["key"]] if entry["primary"]), {})
        row["metric"] = entry.get("metric")
        row |= {f"accuracy_{name}": entry.get(name) for name in VALUES}
        row |= {name: entry.get(name) for name in DIFFERENCES}
    return entries


def _compared(cells: Sequence[Scored]) -> list[Row]:
    """Compare the cells of one table."""
    bases = [cell for cell in cells if cell.row["is_baseline"]]
    unreduced = [cell for cell in cells if cell.record.cell.baseline]
    result = []
    for cell in cells:
        base = _partner(cell, bases)
        rival, missing = _random(cell, _partner(cell, unreduced), cells)
        for name, metric in cell.record.accuracy.metrics.items():
            low, high = metric.ci95 or (None, None)
            entry: Row = {"key": cell.row["key"], "metric": name, "value": metric.value}
            entry |= {"primary": name == cell.record.accuracy.primary, "unit": metric.unit}
            entry |= {"low": low, "high": high, "n": metric.n}
            entry |= difference(cell, base, name, DELTA, "the baseline")
            entry |= difference(cell, rival, name, OVER_RANDOM, "random at a like budget")
            if rival is None:
                entry[f"{OVER_RANDOM}_reason"] = missing
            entry["random_setting"] = rival.setting if rival else None
            entry["random_seeds"] = rival.seeds if rival else None
            result.append(entry)
    for name in dict.fromkeys(entry["metric"] for entry in result):
        _judge([entry for entry in result if entry["metric"] == name])
    return result


def _judge(entries: Sequence[Row]) -> None:
    """Correct the p values of one table and metric, and say what they allow to say."""
    for kind in (DELTA, OVER_RANDOM):
        correct(entries, kind)
    for entry in entries:
        entry["delta_is_noise"] = is_noise(entry, DELTA)
        noise = is_noise(entry, OVER_RANDOM)
        entry["over_random_is_noise"] = noise
        entry["below_random"] = None if noise is None else not noise and entry[OVER_RANDOM] < 0


def correct(rows: Sequence[Row], kind: str) -> None:
    """Add Holm's correction to the p values of a family."""
    judged = [row for row in rows if row[f"{kind}_p"] is not None]
    for row in rows:
        row[f"{kind}_p_holm"] = None
    for row, p in zip(judged, stats.holm([row[f"{kind}_p"] for row in judged]), strict=True):
        row[f"{kind}_p_holm"] = p


def is_noise(row: Row, kind: str) -> bool | None:
    """Whether a difference could be chance; None where nothing tells."""
    p = row[f"{kind}_p_holm"]
    return None if p is None else bool(p >= stats.LEVEL)


def detectable(row: Row) -> float:
    """Return the smallest difference to the baseline that a cell's samples show four times in five.

    That is 2.8 standard errors (two-sided, 5 %, power 0.8), of which the interval is 3.92 wide.
    """
    return float(2.8 / 3.92 * (row[f"{DELTA}_high"] - row[f"{DELTA}_low"]))


def _partner(cell: Scored, bases: Sequence[Scored]) -> Scored | None:
    """Pick the baseline of the same seed, or else the first: seeds do not choose samples."""
    same = [base for base in bases if base.row["seed"] == cell.row["seed"]]
    return min(same or bases, key=lambda base: (base.row["seed"], base.record.key), default=None)


def _random(
    cell: Scored, unreduced: Scored | None, cells: Sequence[Scored]
) -> tuple[Between | None, str | None]:
    """Return random reduction at a cell's own MACs, or why there is none.

    Random reduction has no rival itself, nor have the baseline and the unreduced model; the latter
    is what random reduction becomes where it removes nothing.
    """
    share, nothing = cell.share, "no random at a like budget"
    aside = cell.method == RANDOM or cell.row["is_baseline"] or cell.record.cell.baseline
    if aside or share is None:
        return None, nothing

    def order(one: Scored) -> tuple[Any, ...]:
        seed = one.record.cell.seed != cell.record.cell.seed
        return abs(one.share - share), one.method != RANDOM, seed, one.record.key

    randoms = [one for one in cells if one.method == RANDOM and one.share is not None]
    randoms = _alike(cell, sorted(randoms, key=order), unreduced)
    if not randoms or abs(randoms[0].share - share) > LIKE_POINTS:
        return None, nothing
    if min(one.share for one in randoms) > share + EDGE_POINTS:
        return None, "fewer MACs than any random setting has"
    around = sorted([*randoms, *([unreduced] if unreduced else [])], key=order)
    fewer = next((one for one in around if one.share <= share), None)
    more = next((one for one in around if one.share >= share), None)
    fewer, more = fewer or more, more or fewer
    assert fewer and more
    span = more.share - fewer.share
    return Between(fewer, more, (share - fewer.share) / span if span else 0.0), None


def _alike(cell: Scored, randoms: list[Scored], unreduced: Scored | None) -> list[Scored]:
    """Keep the random cells that reduce where a cell does, or else where the nearest one does.

    Tokens dropped at random inside a language model and ahead of it lie on two curves, and a point
    between them is on neither.
    """
    places = [_place(one, unreduced) for one in randoms]
    place = _place(cell, unreduced)
    wanted = place if place in places else next(iter(places), None)
    return [one for one, where in zip(randoms, places, strict=True) if where == wanted]


def _place(cell: Scored, unreduced: Scored | None) -> set[tuple[str, str]]:
    """Return where a cell has fewer tokens than the unreduced model: ahead of or inside a tower.

    A projector's tokens are those of the language model behind it.
    """
    place = set()
    full = unreduced.record.cost.tokens if unreduced else {}
    for tower, blocks in cell.record.cost.tokens.items():
        if tower == "projector" or not blocks or not full.get(tower):
            continue
        first = blocks[0][0]
        if first < full[tower][0][0]:
            place.add((tower, "ahead"))
        elif min(after for _, after in blocks) < first:
            place.add((tower, "inside"))
    return place


def difference(cell: Scored, base: Scored | Between | None, name: str, kind: str, what: str) -> Row:
    """Return a metric's paired difference, its interval and p value, or the reason without."""
    row: Row = dict.fromkeys(f"{kind}{end}" for end in ("", "_low", "_high", "_p"))
    reason = f"{kind}_reason"
    if base is None:
        return row | {reason: f"no {what.removeprefix('the ')}"}
    if isinstance(base, Scored) and base.record is cell.record:
        return row | {reason: f"is {what}"}
    ours, theirs = cell.metrics.get(name), base.metrics.get(name)
    if ours is None or theirs is None or theirs.unit != ours.unit:
        return row | {reason: f"{what} has no such metric"}
    row[kind] = ours.value - theirs.value
    pair = common(cell, base, name)
    if pair is None:
        return row | {reason: "no paired outcomes"}
    # Outcomes that do not add up to the printed metric cannot give its interval.
    if not all(one.reproduces(name) for one in (cell, *base.cells)):
        return row | {reason: "outcomes do not reproduce the metric"}
    scale, result = scale_of(ours), stats.paired_over_seeds(*pair)
    if any(one.early for one in (cell, *base.cells)):
        row[kind] = scale * result.value
    values: dict[str, Any] = {"_low": scale * result.low, "_high": scale * result.high}
    values |= {"_p": result.p, "_reason": None}
    return row | {f"{kind}{end}": value for end, value in values.items()}
