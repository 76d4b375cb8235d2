"""Tables across models and tasks, at matched budgets."""

from __future__ import annotations

from dataclasses import replace

from bench.report.data.budgets import Budget, budgets
from bench.report.data.differences import DELTA, FLAGS, LEGEND
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.names import metric_name
from bench.report.data.rows import Row, known
from bench.report.data.ties import BEST
from bench.report.tables.table import Column, Table, escape, interval, name_columns

CHOICE = f"Of a method's settings in a band the one nearest to its middle. {LEGEND}."
RETAINED = (
    "Percent of the accuracy of {} that is kept, with half the paired interval. " + CHOICE,
    "Accuracy retained at matched budgets",
)
BY_TASK = (
    f"Accuracy by model and task, with half its interval. {CHOICE} Ranks are those among the "
    "methods that were measured everywhere in their band.",
    "Accuracy by task",
)


@makes("table", 60, overall=True)
def across_tables(frames: Frames) -> list[Table]:
    """Return the accuracy retained and the accuracy by task, where anything was scored."""
    bands = budgets(frames)
    rows = [_row(budget, method) for budget in bands for method in budget.cells]
    for budget in bands:
        for method, ranks in budget.ranks().items():
            (row,) = [r for r in rows if (r["band"], r["method"]) == (budget.name, method)]
            row["mean_rank"] = sum(ranks) / len(ranks) if len(ranks) > 1 else None
    if not rows:
        return []
    names = name_columns(rows)[:2]
    scored = {group for budget in bands for cells in budget.cells.values() for group in cells}
    groups = [group for group in frames.groups() if group in scored]
    retained = [_column(frames, group, "retained", "%") for group in groups]
    by_task = [_column(frames, group, "accuracy", "") for group in groups]
    if any(known(row.get("mean_rank")) for row in rows):
        by_task.append(Column("mean rank", "mean_rank", digits=1, better=-1))
    caption, title = BY_TASK
    tables = [Table("by-task", caption, [*names, *by_task], rows, title)]
    if any(known(row.get(column.key)) for row in rows for column in retained):
        caption, title = RETAINED
        caption = caption.format(escape(frames.baseline))
        tables.insert(0, Table("retained", caption, [*names, *retained], rows, title))
    return tables


def _row(budget: Budget, method: str) -> Row:
    row: Row = {"band": budget.name, "method": method, "setting": "", "is_baseline": False}
    for group, cell in budget.cells[method].items():
        row[f"setting--{group}"] = cell["setting"]
        for end in ("value", "low", "high"):
            row[f"accuracy{'' if end == 'value' else f'_{end}'}--{group}"] = cell[f"accuracy_{end}"]
        for field in (BEST, *(flag.field for flag in FLAGS)):
            row[f"{field}--{group}"] = cell[field]
        base = cell["accuracy_value"] - cell[DELTA] if known(cell[DELTA]) else None
        for end in ("", "_low", "_high"):
            gap = cell[f"{DELTA}{end}"]
            row[f"retained{end}--{group}"] = 100 * (1 + gap / base) if base and known(gap) else None
    return row


def _column(frames: Frames, group: str, what: str, unit: str) -> Column:
    first = next(cell for cell in frames.by_group[group] if cell["metric"])
    unit = unit or f"{metric_name(first['metric'])} {first['accuracy_unit']}"
    digits = 1 if unit.endswith("%") else None
    keys = f"{what}{{}}--{group}"  # a slug: no braces
    column = interval(f"{escape(frames.title(group))}, {unit}", keys, digits=digits, better=1)
    column = replace(column, half=True, winners=f"{BEST}--{group}")
    return column.flagged(FLAGS, behind=f"--{group}")
