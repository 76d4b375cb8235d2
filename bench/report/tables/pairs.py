"""Compare methods with each other where they compete: within a band of MACs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from bench.report.data.differences import NOISE, correct, difference, is_noise
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.names import metric_name
from bench.report.data.rows import Row, label_of
from bench.report.data.scored import Scored
from bench.report.tables.table import MISSING, Column, Table, escape, interval, probability, words

KIND = "lead"


@makes("table", 60, fold="Methods against each other", paper=False)
def pairs_table(frames: Frames, group: str) -> Table | None:
    """Return each pair of methods in a band by their most accurate settings; None without any."""
    best: dict[tuple[str, str], dict[str, Scored]] = {}
    for row in frames.by_group[group]:  # a band's most accurate rows come first
        if row["accuracy_value"] is not None and not row["is_baseline"]:
            rivals = best.setdefault((row["band"], row["metric"]), {})
            rivals.setdefault(row["method"], Scored(frames.by_uid[row["key"]], row))
    rows = [_pair(*two) for rivals in best.values() for two in combinations(rivals.values(), 2)]
    if not rows:
        return None
    correct(rows, KIND)
    for row in rows:
        row["is_noise"] = is_noise(row, KIND)
    digits, marks = 1 if rows[0]["unit"] == "%" else None, (("is_noise", NOISE),)
    columns = [
        words("MACs left", "band"),
        words("More accurate", "ours"),
        words("Less accurate", "theirs"),
        interval("Lead", f"{KIND}{{}}", digits=digits, sign=True, marks=marks),
        Column("p", f"{KIND}_p", _p(f"{KIND}_p")),
        Column("p by Holm", f"{KIND}_p_holm", _p(f"{KIND}_p_holm")),
    ]
    name = escape(metric_name(rows[0]["metric"]))
    caption = f"{name}, paired by sample, each method at its most accurate setting of the band. "
    caption += f"≈: within noise, by p values that Holm's method corrects for {len(rows)} pairs."
    return Table(f"{group}--pairs", caption, columns, rows)


def _pair(cell: Scored, base: Scored) -> Row:
    ours, theirs = cell.row, base.row
    row: Row = {"group": ours["group"], "band": ours["band"], "is_baseline": False}
    row |= {"metric": ours["metric"], "unit": ours["accuracy_unit"]}
    for name, side in (("ours", ours), ("theirs", theirs)):
        row[name] = label_of(side)
    row |= difference(cell, base, ours["metric"], KIND, "the other method")
    # On the samples that both have, the other one may be more accurate.
    return _pair(base, cell) if (row[KIND] or 0) < 0 else row


def _p(key: str) -> Callable[[Row], str]:
    def write(row: Row) -> str:
        if row[key] is None:
            return MISSING
        return probability(row[key])

    return write
