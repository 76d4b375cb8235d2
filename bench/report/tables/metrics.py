"""Every accuracy metric of one model on one task."""

from __future__ import annotations

from bench.report.data.differences import LEGEND, flags
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.names import metric_name
from bench.report.data.rows import DIFFERENCES
from bench.report.data.ties import BEST
from bench.report.tables.comparison import KINDS
from bench.report.tables.table import Column, Table, accuracy, escape, interval, name_columns

KEEP = ("group", "key", "method", "setting", "band", "is_baseline", "seed", "older")


@makes("table", 70, fold="Every accuracy metric", paper=False)
def accuracy_table(frames: Frames, group: str) -> Table | None:
    """Return every metric of a group with its difference to the baseline, or None for cost only."""
    cells = frames.by_group[group]
    entries = {
        (cell["key"], entry["metric"], entry["unit"]): entry
        for cell in cells
        for entry in frames.scores[cell["key"]]
    }
    rows = [{name: cell[name] for name in KEEP} for cell in cells]
    columns = name_columns(rows)
    for metric, unit in dict.fromkeys(place[1:] for place in entries):
        stem = f"{metric}_pct" if unit == "%" else f"{metric}_{unit}"
        for row in rows:
            entry = entries.get((row["key"], metric, unit), {})
            names = ("value", "low", "high", "n", BEST, *DIFFERENCES)
            row |= {f"{stem}_{name}": entry.get(name) for name in names}
        head, digits = f"{metric_name(metric)} {unit}", 1 if unit == "%" else None
        level = accuracy(head, stem, digits, f"{stem}_{BEST}")
        digits = level.decimals(row[level.key] for row in rows)
        delta = interval("Δ", f"{stem}_delta{{}}", digits=digits, sign=True)
        for kind in KINDS:
            if any(row[f"{stem}_{kind}"] is not None for row in rows):
                delta = delta.flagged(flags(kind), before=f"{stem}_")
        columns += [level, delta]
        if len({row[f"{stem}_n"] for row in rows if row[f"{stem}_n"]}) > 1:
            columns.append(Column("n", f"{stem}_n", digits=0))
    if not entries:
        return None
    caption = f"Δ: paired difference to {escape(frames.baseline)}, in the metric's unit. {LEGEND}."
    return Table(f"{group}--accuracy", caption, columns, rows)
