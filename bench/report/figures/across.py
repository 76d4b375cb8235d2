"""Tables and ranks across models and tasks, at matched budgets."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.data.differences import DELTA, FLAGS, LEGEND
from bench.report.data.frame import Frames
from bench.report.data.rows import Row, known
from bench.report.tables.comparison import metric_name, title
from bench.report.tables.table import (
    Column,
    Table,
    all_flagged,
    band,
    digits_for,
    escape,
    group_rows,
    name_columns,
    number,
    off_middle,
    with_half_width,
)

CHOICE = "Of a method's settings in a band the one nearest to its middle."


@dataclass(frozen=True)
class Budget:
    """A band of MACs: of each method one setting a model and task."""

    name: str
    cells: dict[str, dict[str, Row]]  # by method, then by group

    def ranks(self) -> dict[str, list[float]]:
        """Return each method's ranks, 1 the most accurate, where it was measured on every task."""
        from scipy.stats import rankdata

        groups = list(dict.fromkeys(group for own in self.cells.values() for group in own))
        found = {m: own for m, own in self.cells.items() if own.keys() == set(groups)}
        if len(found) < 2:
            return {}
        scores = [[-own[group]["accuracy_value"] for own in found.values()] for group in groups]
        by_task = [rankdata(own).tolist() for own in scores]
        return dict(zip(found, map(list, zip(*by_task, strict=True)), strict=False))


def budgets(frames: Frames) -> list[Budget]:
    """Return the bands from many MACs to few, methods by name."""
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for group in frames.groups():
        for row in group_rows(frames, group):
            if row["is_baseline"] or row["accuracy_value"] is None or row["gmacs"] is None:
                continue
            own = found.setdefault(band(row), {}).setdefault(row["method"], {})
            own[group] = min(own.get(group, row), row, key=off_middle)
    order = sorted(found, key=lambda name: (len(name), name), reverse=True)
    return [Budget(name, dict(sorted(found[name].items()))) for name in order]


def tables(frames: Frames) -> list[Table]:
    """Return the accuracy retained and the accuracy by task, where anything was scored."""
    found = budgets(frames)
    rows = [_row(budget, method) for budget in found for method in budget.cells]
    if not rows:
        return []
    for budget in found:
        for method, ranks in budget.ranks().items():
            (row,) = [r for r in rows if (r["band"], r["method"]) == (budget.name, method)]
            row["mean_rank"] = sum(ranks) / len(ranks) if len(ranks) > 1 else None
    names, scored = (
        name_columns(rows)[:2],
        {g for b in found for own in b.cells.values() for g in own},
    )
    groups = [group for group in frames.groups() if group in scored]
    kept = [_column(frames, rows, group, "retained", "%") for group in groups]
    told = [_column(frames, rows, group, "accuracy", "") for group in groups]
    if any(known(row.get("mean_rank")) for row in rows):
        told.append(Column("mean rank", "mean_rank", number("mean_rank", 1), better=-1))
    retained = f"Percent of the accuracy of {escape(frames.baseline)} that is kept, with half the "
    retained += f"paired interval. {CHOICE} {LEGEND}."
    by_task = f"Accuracy by model and task, with half its interval. {CHOICE} {LEGEND}. Ranks are "
    by_task += "those among the methods that were measured everywhere in their band."
    result = [Table("by-task", by_task, [*names, *told], rows, "Accuracy by task")]
    if any(known(row.get(f"retained--{group}")) for row in rows for group in groups):
        head = "Accuracy retained at matched budgets"
        result.insert(0, Table("retained", retained, [*names, *kept], rows, head))
    return result


def _row(budget: Budget, method: str) -> Row:
    row: Row = {"band": budget.name, "method": method, "setting": "", "is_baseline": False}
    for group, cell in budget.cells[method].items():
        row[f"setting--{group}"] = cell["setting"]
        for end in ("value", "low", "high"):
            row[f"accuracy{'' if end == 'value' else f'_{end}'}--{group}"] = cell[f"accuracy_{end}"]
        for flag in FLAGS:
            row[f"{flag.field}--{group}"] = cell[flag.field]
        base = cell["accuracy_value"] - cell[DELTA] if known(cell[DELTA]) else None
        for end in ("", "_low", "_high"):
            gap = cell[f"{DELTA}{end}"]
            row[f"retained{end}--{group}"] = 100 * (1 + gap / base) if base and known(gap) else None
    return row


def _column(frames: Frames, rows: list[Row], group: str, what: str, unit: str) -> Column:
    cells = group_rows(frames, group)
    ends = [f"{what}{end}--{group}" for end in ("", "_low", "_high")]
    first = next(cell for cell in cells if cell["metric"])
    unit = unit or f"{metric_name(first['metric'])} {first['accuracy_unit']}"
    digits = 1 if unit.endswith("%") else digits_for([row.get(ends[0]) for row in rows])
    write = all_flagged(with_half_width(ends, digits), FLAGS, behind=f"--{group}")
    return Column(f"{escape(title(cells, frames))}, {unit}", ends[0], write, better=1)
