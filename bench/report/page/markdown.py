"""The report as ``report.md`` with its figures, and its tables as CSV and LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

from bench.report.content import Content, counts
from bench.report.data.templates import TRIMMED, environment
from bench.report.figures import plots
from bench.report.tables import latex, provenance, spreadsheet


def write_csv(content: Content, folder: Path) -> None:
    """Write every table with every digit."""
    _write(folder, {f"{t.name}.csv": spreadsheet.written(t.rows) for t in content.tables})


def write_latex(content: Content, folder: Path) -> None:
    """Write every table for a paper."""
    head = f"% {content.frames.older}\n" if content.frames.older else ""
    _write(folder, {f"{t.name}.tex": head + latex.latex(t) for t in content.tables})


def _write(folder: Path, files: dict[str, str]) -> None:
    (folder / "tables").mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / "tables" / name).write_text(text, encoding="utf-8", newline="\n")


def write(content: Content, folder: Path) -> None:
    """Write ``report.md`` and its figures."""
    (folder / "figures").mkdir()
    for plot in content.plots:
        plots.save(plot, folder / "figures")
    # Links lead to what was written before.
    kinds = {"csv": "CSV", "tex": "LaTeX"}
    kinds = {kind: name for kind, name in kinds.items() if any(folder.glob(f"tables/*.{kind}"))}
    frames = content.frames
    text = (
        environment(**TRIMMED)
        .get_template("report.md.j2")
        .render(
            content=content,
            kinds=kinds,
            counts=counts(frames),
            notes=frames.notes,
            older=frames.older,
            conventions=provenance.conventions(frames),
            machines=provenance.machines(frames),
            weights=provenance.weights(frames.records),
        )
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    (folder / "report.md").write_text(text, encoding="utf-8", newline="\n")
