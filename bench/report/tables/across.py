"""Tables across models and tasks, at matched budgets."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

from bench.report.data.budgets import FEWEST, Budget, budgets
from bench.report.data.differences import DELTA, FLAGS, LEGEND
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.names import metric_name
from bench.report.data.rows import Row, known
from bench.report.data.ties import BEST
from bench.report.tables.table import Column, Table, escape, interval, name_columns

CAPTION = (
    "Accuracy by model and task, with half its interval, and percent of {}'s that is kept, mean "
    "over those on which the method was measured. Of a method's settings in a band the one nearest "
    f"to its middle. {LEGEND}."
)
RANKED = " Ranks are those among the methods that were measured everywhere in their band."
TITLE = "Accuracy at matched budgets"


@makes("table", 60, overall=True)
def across_tables(frames: Frames) -> list[Table]:
    """Return the accuracy by model and task, and what is kept in the mean; none without scores."""
    bands = budgets(frames)
    rows = [_row(budget, method) for budget in bands for method in budget.cells]
    for budget in bands:
        for method, ranks in budget.ranks().items():
            (row,) = [r for r in rows if (r["band"], r["method"]) == (budget.name, method)]
            row["mean_rank"] = sum(ranks) / len(ranks) if len(ranks) >= FEWEST else None
    if not rows:
        return []
    scored = {group for budget in bands for cells in budget.cells.values() for group in cells}
    groups = [group for group in frames.groups() if group in scored]
    columns = [*name_columns(rows)[:2], *(_column(frames, group) for group in groups)]
    caption = CAPTION.format(escape(frames.baseline))
    if any(known(row["retained"]) for row in rows):
        columns.append(Column("retained %", "retained", digits=1, better=1))
    if any(known(row.get("mean_rank")) for row in rows):
        columns.append(Column("mean rank", "mean_rank", digits=1, better=-1))
        caption += RANKED
    return [Table("by-task", caption, columns, rows, TITLE)]


def _row(budget: Budget, method: str) -> Row:
    row: Row = {"band": budget.name, "method": method, "setting": "", "is_baseline": False}
    shares = []
    for group, cell in budget.cells[method].items():
        row[f"setting--{group}"] = cell["setting"]
        for end in ("value", "low", "high"):
            row[f"accuracy{'' if end == 'value' else f'_{end}'}--{group}"] = cell[f"accuracy_{end}"]
        for field in (BEST, *(flag.field for flag in FLAGS)):
            row[f"{field}--{group}"] = cell[field]
        base = cell["accuracy_value"] - cell[DELTA] if known(cell[DELTA]) else None
        row[f"retained--{group}"] = 100 * cell["accuracy_value"] / base if base else None
        shares.append(row[f"retained--{group}"])
    return row | {"retained": mean(shares) if shares and all(map(known, shares)) else None}


def _column(frames: Frames, group: str) -> Column:
    first = next(cell for cell in frames.by_group[group] if cell["metric"])
    unit = f"{metric_name(first['metric'])} {first['accuracy_unit']}"
    digits = 1 if unit.endswith("%") else None
    keys = f"accuracy{{}}--{group}"  # a slug: no braces
    column = interval(f"{escape(frames.title(group))}, {unit}", keys, digits=digits, better=1)
    column = replace(column, half=True, winners=f"{BEST}--{group}")
    return column.flagged(FLAGS, behind=f"--{group}")
