"""Everything a report shows, made once, in the order of a reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.core.scanning import modules_of
from bench.records.fates import Fates
from bench.report import figures, headlines, tables
from bench.report.data.frame import Frames
from bench.report.data.makers import Maker, makers
from bench.report.data.rows import Row, label_of
from bench.report.figures import plots, token_figure
from bench.report.figures.plots import Plot
from bench.report.tables import provenance
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
        findings: Sentences (Markdown) about all models, which stand on top.
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
    findings: Sequence[str]
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
        tables_ = [table for section in self.sections for table in section.tables]
        return tables_ + [table for table in (self.failed, self.equal, self.origins) if table]

    @property
    def plots(self) -> list[Plot]:
        """All figures."""
        return [plot for section in self.sections for plot in section.plots]


def content(frames: Frames, fates: Sequence[Fates] = (), most: int | None = None) -> Content:
    """Make a report's parts, with figures of so many models and tasks; None: of all."""
    for package in (tables, figures):
        modules_of(package.__name__)
    every, drawn = frames.groups(), plots.most_complete(frames, most)
    remark = frames.remark(*every)
    over = [_block(maker, maker.make(frames, drawn)) for maker in makers("figure", overall=True)]
    across = [
        Section(table.title, (Block(tables=(table,)),))
        for maker in makers("table", overall=True)
        for table in _block(maker, maker.make(frames), remark).tables
    ]
    if len(drawn) < len(every):
        text = f"Figures show the {len(drawn)} most complete of {len(every)} models and "
        over.append(Block(text + "tasks; `report --figures all` draws the others too."))
    sections = [made for m in makers("section", overall=True) for made in m.make(frames)]
    groups = [_group(frames, group, group in drawn) for group in frames.by_group]
    sample_plots = tuple(token_figure.plots(fates, frames.records))
    return Content(
        frames,
        Section("", tuple(over)),
        across,
        [*sections, *groups],
        Section("Where the tokens go", (Block(plots=sample_plots),)),
        fates,
        headlines.break_even(frames),
        provenance.failed(frames),
        provenance.equal_things(frames),
        provenance.origins(frames),
    )


def _group(frames: Frames, group: str, drawn: bool) -> Section:
    remark = frames.remark(group)
    placed = [(float(GAPS), Block("\n\n".join(_gaps(frames.by_group[group])), paper=False))]
    for maker in makers("table", *(["figure"] if drawn else [])):
        placed.append((maker.place, _block(maker, maker.make(frames, group), remark)))
    placed.sort(key=lambda item: item[0])
    blocks = tuple(block for _, block in placed if block.text or block.tables or block.plots)
    return Section(escape(frames.title(group)), blocks, " ".join(headlines.of(frames, group)))


def _block(maker: Maker, made: Any, remark: str = "") -> Block:
    """Return what a maker made: nothing, one table or several, or plots."""
    shown: list[Any] = [made] if isinstance(made, Table) else list(made or [])
    if not shown:
        return Block(maker.absent, paper=False)
    if maker.what == "figure":
        return Block(maker.lead, (), tuple(shown), maker.fold, maker.paper)
    tables_ = tuple(table.remarked(remark if maker.measured else "") for table in shown)
    return Block(maker.lead, tables_, (), maker.fold, maker.paper)


def _gaps(rows: Sequence[Row]) -> list[str]:
    """Say what lacks of some cells, and why, as Markdown."""
    gaps: dict[str, list[tuple[Row, str]]] = {
        "No accuracy for": [],
        "Accuracy of": [],
        "Cost of": [],
    }
    for row in rows:
        reason = row["accuracy_reason"]
        if row["accuracy_value"] is None:
            gaps["No accuracy for"].append((row, reason or "no reason recorded"))
        elif reason:
            gaps["Accuracy of"].append((row, reason))
        if row["not_measured"]:
            gaps["Cost of"].append((row, row["not_measured"]))
    lines = []
    for what, lacking in gaps.items():
        cells: dict[str, list[str]] = {}
        for row, reason in lacking:
            cells.setdefault(reason, []).append(label_of(row))
        for reason, names in cells.items():
            who = "any cell" if len(names) == len(rows) else escape(", ".join(names))
            lines.append(f"{what} {who}: {escape(reason)}")
    return lines


def counts(frames: Frames) -> str:
    """Say in one sentence how many cells there are."""

    def several(count: int, word: str) -> str:
        return f"{count} {word}" + ("" if count == 1 else "s")

    models = len(frames.models)
    text = f"{several(len(frames.cells), 'finished cell')} of {several(models, 'model')} and "
    text += several(len(frames.methods), "method")
    failed = len(frames.failed)
    return text + (f"; {failed} did not finish (listed below)." if failed else ".")
