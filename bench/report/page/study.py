"""The study's other parts on the page: a report's tables, and tables in place of some figures.

Break-even, ranks and the split of time are tables here, whose numbers can be read and copied.
Nothing is computed anew.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from bench.report.content import Block, Content, Section
from bench.report.data.budgets import budgets
from bench.report.data.frame import Frames
from bench.report.data.rows import Row, label_of
from bench.report.figures import breakdown, breakeven, ranks
from bench.report.tables.table import Column, Table, escape, unescape, words

TIME = "Where the time goes"


def parts(content: Content) -> dict[str, Section]:
    """Return the parts that hold a table, from top to bottom, by their names in a link.

    A name lasts as long as the part's heading; of equal ones the later have a number.
    """
    frames = content.frames
    overall = [
        Section("Where reduction pays", _blocks(break_even(frames))),
        Section("Mean ranks over models and tasks", _blocks(mean_ranks(frames))),
    ]
    splits = {escape(frames.title(group)): time_split(frames, group) for group in frames.groups()}
    groups = [
        replace(one, blocks=(*one.blocks, *_blocks(splits.get(one.title, ()), TIME)))
        for one in content.groups
    ]
    named: dict[str, Section] = {}
    for part in (*content.across, *overall, *groups):
        name = "study-" + re.sub(r"\W+", "-", unescape(part.title).lower()).strip("-")
        if part.tables:
            named[name if name not in named else f"{name}-{len(named)}"] = part
    return named


def _blocks(tables: Iterable[Table], fold: str = "") -> tuple[Block, ...]:
    made = tuple(tables)
    return (Block(tables=made, fold=fold),) if made else ()


def bold(text: str) -> str:
    """Write a line of Markdown as HTML; emphasis is all that such lines have."""
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(unescape(text)))


def break_even(frames: Frames) -> Iterator[Table]:
    """Yield speed-ups by method and resolution, a column a batch size, where both were swept."""
    for about, maps in breakeven.by_model(frames).items():
        batches = sorted({batch for places in maps.values() for batch, _ in places})
        rows: list[Row] = [
            {"method": method, "px": px}
            | {f"x{b}": places.get((b, px)) for b in batches}
            | {f"slower{b}": places.get((b, px), 1.0) < 1 for b in batches}
            for method, places in maps.items()
            for px in sorted({px for _, px in places})
        ]
        columns = [words("Method", "method"), Column("px", "px", digits=0)]
        for b in batches:
            marks = ((f"slower{b}", "slower"),)
            columns.append(Column(f"batch {b}", f"x{b}", digits=2, suffix="×", marks=marks))
        caption = f"Measured speed-up by batch size and resolution: {escape(about.model)}, "
        caption += f"{about.share} of the MACs, {escape(about.condition)}."
        yield Table("break-even", caption, columns, rows)


def mean_ranks(frames: Frames) -> Iterator[Table]:
    """Yield the mean ranks, the best first, where enough methods met on several tasks."""
    ranking = ranks.ranking(budgets(frames))
    if ranking:
        best = min(ranking.means.values())
        rows: list[Row] = [
            {"method": name, "rank": mean, "behind": mean - best}
            for name, mean in sorted(ranking.means.items(), key=lambda item: (item[1], item[0]))
        ]
        columns = [
            words("Method", "method"),
            Column("Mean rank", "rank", digits=2),
            Column("Behind the best", "behind", digits=2),
        ]
        yield Table("ranks", ranking.caption, columns, rows)


def time_split(frames: Frames, group: str) -> Iterator[Table]:
    """Yield where the time of each method near half the MACs goes, where that is known."""
    shown, points = breakdown.splits(frames, group)
    if points:
        names = [name for name, *_ in breakdown.PARTS]
        rows: list[Row] = [
            {"method": label_of(row), "batch": row["batch"], "left": row["gmacs_pct_of_unreduced"]}
            | dict(zip(names, row["parts"], strict=True))
            | {"time": sum(row["parts"])}
            for row in sorted(points, key=lambda row: (row["batch"], row["method"]))
        ]
        columns = [words("Method", "method"), Column("batch", "batch", digits=0)]
        columns += [Column(f"{name}, %", name, digits=1) for name in names]
        columns += [Column("time, %", "time", digits=1), Column("MACs left, %", "left", digits=1)]
        yield Table(f"{group}--time", breakdown.caption(shown), columns, rows)
