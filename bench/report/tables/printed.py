"""What papers print of a model on a task, beside the rows that were measured here."""

from __future__ import annotations

from bench.records import published
from bench.records.published import UNITS, PublishedCost, PublishedResult
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.names import metric_name
from bench.report.data.rows import Row
from bench.report.tables.table import Table, escape, words

HEADS = {
    "method": "Method",
    "setting": "Setting",
    "accuracy": "Accuracy",
    "cost": "Cost",
    "differs": "Otherwise than here",
    "source": "Source",
}


@makes("table", 20, measured=False)
def printed_table(frames: Frames, group: str) -> Table | None:
    """Return the published numbers that belong to a table's model and task; None without any."""
    first = frames.by_group[group][0]
    printed = published.results(first["model"], first["task"])
    if not printed:
        return None
    columns = [words(head, key) for key, head in HEADS.items()]
    caption = "As published: none of these numbers was measured here."
    return Table(f"{group}--published", escape(caption), columns, [_row(*one) for one in printed])


def _row(row: PublishedResult, cost: PublishedCost | None) -> Row:
    accuracy = (f"{metric_name(name)} {value}" for name, value in row.accuracy.items())
    shown: Row = {"method": row.method, "setting": row.setting, "accuracy": ", ".join(accuracy)}
    shown |= {"cost": f"{cost.published} {UNITS[cost.quantity]}" if cost else ""}
    if cost and cost.quantity == "ratio":
        shown["cost"] = f"{cost.label} {cost.published}"
    counted = f"cost of {cost.counted}" if cost and cost.counted else ""
    differs = "; ".join(filter(None, (row.differs, counted)))
    return shown | {"differs": differs, "source": row.source}
