"""Everything a report shows, made once, and the files it becomes."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.records.fates import Fates
from bench.report.ablation import tuned_section
from bench.report.data.frame import Frames
from bench.report.data.rows import rows_of
from bench.report.figures import across, breakeven, plots, token_figure, token_maps
from bench.report.figures.plots import Plot
from bench.report.page import page
from bench.report.tables import answers, comparison, latex, pairs, printed, provenance, timings
from bench.report.tables.table import Column, Table, escape, group_rows, remarked


@dataclass(frozen=True)
class Content:
    """A report's parts.

    Attributes:
        frames: The data.
        groups: What is shown of each model and task.
        studies: What is shown of fine-tuned models.
        overviews: Figures over all models and tasks.
        overview_tables: Tables over all models and tasks.
        failed: The cells that did not finish.
        origins: Where the numbers come from: measured here, estimated, as published.
        equal: What the measurement says of two equal things, where any were timed.
        tokens: What became of the tokens of sample images.
        undrawn: What to say of models and tasks without figures, if there are any.
    """

    frames: Frames
    groups: list[dict[str, Any]]
    studies: list[dict[str, Any]]
    overviews: list[Plot]
    overview_tables: list[Table]
    failed: Table | None
    origins: Table
    equal: Table | None = None
    tokens: Sequence[Fates] = ()
    undrawn: str = ""

    @property
    def tables(self) -> list[Table]:
        """All tables."""
        names = ("main", "published", "answers", "pairs", "accuracy")
        found = [group[name] for group in self.groups for name in names]
        found += [table for group in self.groups for table in group["timings"]]
        found += [table for study in self.studies for table in tuned_section.tables(study)]
        found += [*self.overview_tables, self.failed, self.equal, self.origins]
        return [table for table in found if table is not None]

    @property
    def plots(self) -> list[Plot]:
        """All figures."""
        parts = (*self.studies, *self.groups)
        shown = [*self.overviews, *self.token_plots]
        return [*shown, *(plot for part in parts for plot in part["plots"])]

    @cached_property
    def token_plots(self) -> list[Plot]:
        """Sample images, patch by patch."""
        return token_figure.plots(self.tokens, self.frames.records)


def content(frames: Frames, tokens: Sequence[Fates] = (), figures: int | None = None) -> Content:
    """Make a report's parts, with figures of so many models and tasks; None: of all."""
    groups, drawn = frames.groups(), plots.shown(frames, figures)
    undrawn = f"Figures show the {len(drawn)} most complete of {len(groups)} models and tasks; "
    undrawn += "`report --figures all` draws the others too."
    return Content(
        frames,
        [_group(frames, group, group in drawn) for group in groups],
        tuned_section.sections(frames.records),
        plots.overviews(frames, drawn),
        [remarked(table, frames.remark(*groups)) for table in across.tables(frames)],
        _failed(frames),
        provenance.origins(frames),
        provenance.equal_things(frames),
        tokens,
        undrawn if len(drawn) < len(groups) else "",
    )


def write_csv(content: Content, folder: Path) -> None:
    """Write every table with every digit."""
    for table in content.tables:
        path = folder / "tables" / f"{table.name}.csv"
        path.parent.mkdir(exist_ok=True)
        names = list(dict.fromkeys(name for row in table.rows for name in row))
        with path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(names)
            lines.writerows([row.get(name) for name in names] for row in table.rows)


def write_latex(content: Content, folder: Path) -> None:
    """Write every table for a paper."""
    for table in content.tables:
        path = folder / "tables" / f"{table.name}.tex"
        path.parent.mkdir(exist_ok=True)
        head = f"% {content.frames.older}\n" if content.frames.older else ""
        path.write_text(head + latex.latex(table), encoding="utf-8", newline="\n")


def write_html(content: Content, folder: Path) -> None:
    """Write the page."""
    shown = token_maps.for_page(content.tokens, content.frames.records)
    page.write(content.frames, folder, shown)


def write_markdown(content: Content, folder: Path) -> None:
    """Write ``report.md`` and its figures."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    (folder / "figures").mkdir()
    for plot in content.plots:
        plots.save(plot, folder / "figures")
    environment = Environment(
        loader=PackageLoader("bench.assets", "templates/report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Links lead to what was written before.
    kinds = {"csv": "CSV", "tex": "LaTeX"}
    kinds = {kind: name for kind, name in kinds.items() if any(folder.glob(f"tables/*.{kind}"))}
    frames = content.frames
    text = environment.get_template("report.md.j2").render(
        content=content,
        kinds=kinds,
        absent="" if any(p.name == "break-even" for p in content.overviews) else breakeven.ABSENT,
        counts=counts(frames),
        notes=frames.notes,
        older=frames.older,
        conventions=provenance.conventions(frames),
        machines=provenance.machines(frames),
        weights=provenance.weights(frames),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    (folder / "report.md").write_text(text, encoding="utf-8", newline="\n")


def _group(frames: Frames, group: str, drawn: bool) -> dict[str, Any]:
    rows = group_rows(frames, group)
    bare = [row | {"why": row["accuracy_reason"] or "no reason recorded"} for row in rows]
    flawed = [row for row in bare if row["accuracy_value"] is not None and row["accuracy_reason"]]
    bare = [row for row in bare if row["accuracy_value"] is None]
    remark = frames.remark(group)

    def table(made: Table | None) -> Table | None:
        return made and remarked(made, remark)

    partly = [row | {"why": row["not_measured"]} for row in rows if row["not_measured"]]
    return {
        "title": escape(comparison.title(rows, frames)),
        "headline": comparison.headline(frames, group),
        "main": table(comparison.main_table(frames, group)),
        "published": printed.printed_table(frames, group),
        "accuracy": table(comparison.accuracy_table(frames, group)),
        "answers": table(answers.answer_table(frames, group)),
        "pairs": table(pairs.pairs_table(frames, group)),
        "timings": [remarked(made, remark) for made in timings.timing_tables(frames, group)],
        "plots": plots.plots(frames, group) if drawn else [],
        "gaps": [
            *(f"No accuracy for {text}" for text in _by_reason(bare, len(rows))),
            *(f"Accuracy of {text}" for text in _by_reason(flawed, len(rows))),
            *(f"Cost of {text}" for text in _by_reason(partly, len(rows))),
        ],
    }


def _by_reason(rows: Sequence[dict[str, Any]], everything: int) -> list[str]:
    """Say for each reason which cells it holds for, as Markdown."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["why"], []).append(f"{row['method']} {row['setting']}".strip())
    return [
        f"{'any cell' if len(cells) == everything else escape(', '.join(cells))}: {escape(reason)}"
        for reason, cells in reasons.items()
    ]


def _failed(frames: Frames) -> Table | None:
    if not len(frames.failed):
        return None

    def column(name: str) -> Column:
        return Column(name, name, lambda row: escape(row[name] or "–"), text=True)

    columns = [column(name) for name in frames.failed.columns]
    rows = [row | {"is_baseline": False, "band": ""} for row in rows_of(frames.failed)]
    return Table("failed", "", columns, rows)


def counts(frames: Frames) -> str:
    """Say in one sentence how many cells there are."""

    def several(count: int, word: str) -> str:
        return f"{count} {word}" + ("" if count == 1 else "s")

    done, failed = len(frames.cells), len(frames.failed)
    cells = [record.cell for record in frames.records]
    models, methods = len({cell.model for cell in cells}), len({cell.method for cell in cells})
    text = f"{several(done, 'finished cell')} of {several(models, 'model')} and "
    text += several(methods, "method")
    return text + (f"; {failed} did not finish (listed below)." if failed else ".")
