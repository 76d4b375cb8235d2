"""Accuracy on those samples alone that a smaller image of the same cost gets wrong."""

from __future__ import annotations

from bench.report.data.frame import Frames
from bench.report.data.hard import EASY, HARD, JUDGE, LEAST
from bench.report.data.makers import makes
from bench.report.tables.table import Column, Table, escape, name_columns, words

CAPTION = (
    f"Hard: samples that the unreduced model gets right and {JUDGE} in the same band of MACs gets "
    f"wrong; easy: samples that both get right. Percent right, with Wilson's 95 % interval; – "
    f"stands where there are fewer than {LEAST} samples. In retrieval each query of either way is "
    "a sample."
)


@makes("table", 15, lead="**Where a smaller image fails.**")
def hard_table(frames: Frames, group: str) -> Table | None:
    """Return each method's accuracy on hard and easy samples; None where no band has a judge."""
    rows = [row for row in frames.by_group[group] if row["hard_judge"] is not None]
    if not rows:
        return None
    columns = [*name_columns(rows), words(f"judged by {JUDGE}", "hard_judge")]
    for kind in (HARD, EASY):
        ends = f"{kind}_low", f"{kind}_high"
        columns.append(Column(f"{kind}, n", f"{kind}_n", digits=0))
        columns.append(Column(f"right of {kind} %", f"{kind}_value", digits=1, ends=ends))
    return Table(f"{group}--hard", escape(CAPTION), columns, rows)
