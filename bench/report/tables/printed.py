"""What papers print of a model on a task, beside the rows that were measured here."""

from __future__ import annotations

from bench.records import published
from bench.records.published import UNITS, PublishedCost, PublishedResult
from bench.report.data.frame import Frames
from bench.report.data.rows import Row
from bench.report.tables.comparison import metric_name
from bench.report.tables.table import Table, escape, group_rows, text_column

HEADS = {
    "method": "Method",
    "setting": "Setting",
    "accuracy": "Accuracy",
    "cost": "Cost",
    "differs": "Otherwise than here",
    "source": "Source",
}


def printed_table(frames: Frames, group: str) -> Table | None:
    """Return the published numbers that belong to a table's model and task; None without any."""
    first = group_rows(frames, group)[0]
    found = published.results(first["model"], first["task"])
    if not found:
        return None
    columns = [text_column(head, key) for key, head in HEADS.items()]
    caption = "As published: none of these numbers was measured here."
    return Table(f"{group}--published", escape(caption), columns, [_row(*one) for one in found])


def _row(row: PublishedResult, cost: PublishedCost | None) -> Row:
    accuracy = (f"{metric_name(name)} {value}" for name, value in row.accuracy.items())
    shown: Row = {"method": row.method, "setting": row.setting, "accuracy": ", ".join(accuracy)}
    shown |= {"cost": f"{cost.published} {UNITS[cost.quantity]}" if cost else ""}
    if cost and cost.quantity == "ratio":
        shown["cost"] = f"{cost.label} {cost.published}"
    counted = f"cost of {cost.counted}" if cost and cost.counted else ""
    differs = "; ".join(filter(None, (row.differs, counted)))
    return shown | {"differs": differs, "source": row.source, "is_baseline": False, "band": ""}
