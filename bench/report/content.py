"""Everything a report shows, made once, in the order of a reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.fates import Fates
from bench.report import figures, tables
from bench.report.data.frame import Frames
from bench.report.data.makers import Maker, makers, scan
from bench.report.data.rows import Row
from bench.report.figures import plots, token_figure
from bench.report.figures.plots import Plot
from bench.report.tables import comparison, provenance
from bench.report.tables.table import Table, escape

GAPS = 30  # the place of what could not be measured


@dataclass(frozen=True)
class Block:
    """Text (Markdown), tables and figures that stand together.

    `fold` is what a reader clicks on to see them; the paper has no room for all of them.
    """

    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    fold: str = ""
    paper: bool = True


@dataclass(frozen=True)
class Section:
    """A heading (Markdown) and what stands below it; the headline stands on top of the report."""

    title: str
    blocks: tuple[Block, ...]
    headline: str = ""

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        return [table for block in self.blocks for table in block.tables]

    @property
    def plots(self) -> list[Plot]:
        """All figures."""
        return [plot for block in self.blocks for plot in block.plots]


@dataclass(frozen=True)
class Content:
    """A report's parts.

    Attributes:
        frames: The data.
        overview: Figures over all models and tasks, and what to say of those that are not drawn.
        across: Tables over all models and tasks.
        groups: What is shown of each model and task, and of whatever else was declared.
        tokens: What became of the tokens of sample images.
        fates: The same as data.
        failed: The cells that did not finish.
        equal: What the measurement says of two equal things, where any were timed.
        origins: Where the numbers come from: measured here, estimated, as published.
    """

    frames: Frames
    overview: Section
    across: list[Section]
    groups: list[Section]
    tokens: Section
    fates: Sequence[Fates]
    failed: Table | None
    equal: Table | None
    origins: Table

    @property
    def sections(self) -> list[Section]:
        """All sections, from top to bottom."""
        return [self.overview, *self.across, *self.groups, self.tokens]

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        own = [table for section in self.sections for table in section.tables]
        return own + [table for table in (self.failed, self.equal, self.origins) if table]

    @property
    def plots(self) -> list[Plot]:
        """All figures."""
        return [plot for section in self.sections for plot in section.plots]


def content(frames: Frames, fates: Sequence[Fates] = (), most: int | None = None) -> Content:
    """Make a report's parts, with figures of so many models and tasks; None: of all."""
    scan(tables)
    scan(figures)
    drawn = plots.most_complete(frames, most)
    remark = frames.remark(*frames.groups())
    over, across = [], []
    for maker in makers("figure", overall=True):
        over.append(_block(maker, maker.make(frames, [g for g in frames.groups() if g in drawn])))
    for maker in makers("table", overall=True):
        for table in _several(maker.make(frames)):
            block = Block(tables=(table.remarked(remark),), paper=maker.paper)
            across.append(Section(table.title, (block,)))
    if len(drawn) < len(frames.by_group):
        text = f"Figures show the {len(drawn)} most complete of {len(frames.by_group)} models and "
        over.append(Block(text + "tasks; `report --figures all` draws the others too."))
    sections = [made for m in makers("section", overall=True) for made in m.make(frames)]
    groups = [_group(frames, group, group in drawn) for group in frames.by_group]
    sample_plots = tuple(token_figure.plots(fates, frames.records))
    return Content(
        frames,
        Section("", tuple(over)),
        across,
        [*sections, *groups],
        Section("Where the tokens go", (Block(plots=sample_plots, paper=False),)),
        fates,
        provenance.failed(frames),
        provenance.equal_things(frames),
        provenance.origins(frames),
    )


def _group(frames: Frames, group: str, drawn: bool) -> Section:
    remark = frames.remark(group)
    placed = [(float(GAPS), Block("\n\n".join(_gaps(frames.by_group[group])), paper=False))]
    for maker in makers("table", *(["figure"] if drawn else [])):
        made = _several(maker.make(frames, group))
        placed.append((maker.place, _block(maker, made, remark)))
    placed.sort(key=lambda item: item[0])
    blocks = tuple(block for _, block in placed if block.text or block.tables or block.plots)
    return Section(escape(frames.title(group)), blocks, comparison.headline(frames, group))


def _several(made: Any) -> list[Any]:
    if made is None or isinstance(made, Table):
        return [made] if made else []
    return list(made)


def _block(maker: Maker, made: Iterable[Any], remark: str = "") -> Block:
    shown = list(made)
    if not shown:
        return Block(maker.absent, paper=False)
    if maker.what == "figure":
        return Block(maker.lead, (), tuple(shown), maker.fold, maker.paper)
    own = tuple(table.remarked(remark if maker.measured else "") for table in shown)
    return Block(maker.lead, own, (), maker.fold, maker.paper)


def _gaps(rows: Sequence[Row]) -> list[str]:
    """Say what lacks of some cells, and why, as Markdown."""
    bare, flawed, partly = list[Row](), list[Row](), list[Row]()
    for row in rows:
        reason = row["accuracy_reason"]
        if row["accuracy_value"] is None:
            bare.append(row | {"why": reason or "no reason recorded"})
        elif reason:
            flawed.append(row | {"why": reason})
        if row["not_measured"]:
            partly.append(row | {"why": row["not_measured"]})
    return [
        *(f"No accuracy for {text}" for text in _by_reason(bare, len(rows))),
        *(f"Accuracy of {text}" for text in _by_reason(flawed, len(rows))),
        *(f"Cost of {text}" for text in _by_reason(partly, len(rows))),
    ]


def _by_reason(rows: Sequence[Row], everything: int) -> list[str]:
    """Say for each reason which cells it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["why"], []).append(f"{row['method']} {row['setting']}".strip())
    return [
        f"{'any cell' if len(cells) == everything else escape(', '.join(cells))}: {escape(reason)}"
        for reason, cells in reasons.items()
    ]


def counts(frames: Frames) -> str:
    """Say in one sentence how many cells there are."""

    def several(count: int, word: str) -> str:
        return f"{count} {word}" + ("" if count == 1 else "s")

    models = len({record.cell.model for record in frames.records})
    text = f"{several(len(frames.cells), 'finished cell')} of {several(models, 'model')} and "
    text += several(len(frames.methods), "method")
    failed = len(frames.failed)
    return text + (f"; {failed} did not finish (listed below)." if failed else ".")
