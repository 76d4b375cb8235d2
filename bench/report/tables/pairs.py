"""Compare methods with each other where they compete: within a band of MACs."""

from __future__ import annotations

from itertools import combinations

from bench.report.data.differences import Scored, correct, difference, is_noise
from bench.report.data.frame import Frames, Row
from bench.report.tables.comparison import metric_name
from bench.report.tables.table import (
    Column,
    Table,
    digits_for,
    escape,
    flagged,
    group_rows,
    text_column,
    with_interval,
)

KIND = "lead"


def pairs_table(frames: Frames, group: str) -> Table | None:
    """Return each pair of methods in a band by their most accurate settings; None without any."""
    rows = [row for row in group_rows(frames, group) if row["accuracy_value"] is not None]
    best: dict[tuple[str, str], dict[str, Scored]] = {}
    for row in rows:  # a band's most accurate rows come first
        if not row["is_baseline"]:
            own = best.setdefault((row["band"], row["metric"]), {})
            own.setdefault(row["method"], Scored(frames.by_uid[row["key"]], row))
    found = [_pair(*two) for own in best.values() for two in combinations(own.values(), 2)]
    if not found:
        return None
    correct(found, KIND)
    for row in found:
        row["is_noise"] = is_noise(row, KIND)
    ends = [f"{KIND}{end}" for end in ("", "_low", "_high")]
    digits = 1 if found[0]["unit"] == "%" else digits_for([row[KIND] for row in found])
    write = flagged(with_interval(ends, digits, sign=True), "is_noise", "≈")
    columns = [
        text_column("MACs left", "band"),
        text_column("More accurate", "ours"),
        text_column("Less accurate", "theirs"),
        Column("Lead", KIND, write),
        Column("p", f"{KIND}_p", lambda row: _p(row[f"{KIND}_p"])),
        Column("p by Holm", f"{KIND}_p_holm", lambda row: _p(row[f"{KIND}_p_holm"])),
    ]
    name = escape(metric_name(found[0]["metric"]))
    caption = f"{name}, paired by sample, each method at its most accurate setting of the band. "
    caption += f"≈: within noise, by p values that Holm's method corrects for {len(found)} pairs."
    return Table(f"{group}--pairs", caption, columns, found)


def _pair(cell: Scored, base: Scored) -> Row:
    ours, theirs = cell.row, base.row
    row: Row = {"group": ours["group"], "band": ours["band"], "is_baseline": False}
    row |= {"metric": ours["metric"], "unit": ours["accuracy_unit"]}
    row |= {"ours": _named(ours), "theirs": _named(theirs)}
    return row | difference(cell, base, ours["metric"], KIND, "the other method")


def _named(row: Row) -> str:
    return f"{row['method']} {row['setting']}".strip()


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.0005 else "&lt;0.001"
