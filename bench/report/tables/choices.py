"""Which method to take: at each budget who shares the lead in accuracy, and the fastest of them."""

from __future__ import annotations

from bench.report.data.frame import Frames
from bench.report.data.leads import fastest, meetings
from bench.report.data.makers import makes
from bench.report.data.rows import Row, label_of
from bench.report.data.ties import BEST
from bench.report.tables.table import Column, Table, escape, words

CAPTION = (
    "By model, task and budget: the most accurate setting with all that a paired test cannot tell "
    "from it, and of these the fastest that no other load disturbed, at the largest batch. They "
    "were chosen by the samples that they are judged on."
)


@makes("table", 58, overall=True)
def choices_table(frames: Frames) -> Table | None:
    """Return one row a model, task and budget where several methods meet; None without any."""
    rows = [row for group in frames.groups() for row in _choices(frames, group)]
    if not rows:
        return None
    columns = [
        words("Model and task", "title"),
        words("MACs left", "budget"),
        words("Share the lead", "leaders"),
        Column("of", "settings", digits=0),
        words("Fastest of them", "fastest"),
        Column("speed-up", "speedup_x", digits=2, suffix="×"),
    ]
    return Table("choices", escape(CAPTION), columns, rows, "What to take")


def _choices(frames: Frames, group: str) -> list[Row]:
    return [
        {"title": frames.title(group), "budget": name, "is_baseline": True, "band": ""}
        | {"settings": len(cells), "leaders": ", ".join(map(label_of, leaders))}
        | _fastest(frames, leaders)
        for name, cells in meetings(frames, group).items()
        if (leaders := [row for row in cells if row[BEST]])
    ]


def _fastest(frames: Frames, leaders: list[Row]) -> Row:
    cell, timing = fastest(frames, leaders) or (None, {"speedup_x": None})
    return {"fastest": cell and label_of(cell), "speedup_x": timing["speedup_x"]}
