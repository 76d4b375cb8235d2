"""Reports from recorded cells: Markdown, CSV, PNG and SVG, without the libraries that measured.

Example:
    >>> from pathlib import Path
    >>> from bench.report import build
    >>> build([Path("results")], Path("reports/quick"))  # doctest: +SKIP
    PosixPath('reports/quick/report.md')
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, near_miss

__all__ = ["FORMATS", "build"]

# What each format makes, in the order in which they are written: Markdown links to the tables.
_MAKES = {
    "csv": ("tables",),
    "latex": ("tables",),
    "html": ("index.html",),
    "markdown": ("figures", "report.md"),
    "paper": ("paper",),
}
FORMATS = tuple(_MAKES)
DEFAULT_FORMATS = FORMATS[:4]
MOST_FIGURES = 6  # models and tasks that figures are drawn for: drawing is what takes time
_PARTS = ("figures", "tables", "paper", "index.html", "report.md")  # the last names the others


def build(
    results: Sequence[Path],
    out: Path,
    *,
    baseline: str = "none",
    methods: Sequence[str] = (),
    profiles: Sequence[str] = (),
    formats: Sequence[str] = DEFAULT_FORMATS,
    style: str = "page",
    figures: int | None = MOST_FIGURES,
) -> Path:
    """Write a report: ``report.md`` with ``figures/`` and ``tables/``, ``index.html``, ``paper/``.

    The same records give the same bytes. A report that was there is replaced only once the new one
    is complete; other files in ``out`` are left alone.

    Args:
        results: Results folders (searched recursively) or record files; machines are merged.
        out: Folder of the report; made if missing.
        baseline: Method, or label of a cell, that accuracies are compared with.
        methods: Methods to show beside the baseline; all where none is named.
        profiles: Hardware profiles to show; all where none is named.
        formats: Of `FORMATS`; what else of a report is there stays as it is.
        style: Page that figures are drawn for, of `bench.report.figures.style.STYLES`.
        figures: Models and tasks to draw figures of, the most complete first; None: all.

    Returns:
        The path of ``report.md``, or of what was written instead.

    Raises:
        BenchError: If there are no records, a name is unknown, or ``out`` is not writable.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # "created a temporary config folder"
    from bench.report.content import content
    from bench.report.data import frame, load
    from bench.report.figures import token_maps
    from bench.report.figures.style import use
    from bench.report.page import markdown, page
    from bench.report.paper import paper

    _check("format", formats, FORMATS)
    records, notes = load.read(results)
    _check("profile", profiles, sorted({record.cell.profile for record in records}))
    records = [record for record in records if not profiles or record.cell.profile in profiles]
    frames = frame.build(records, baseline=baseline, notes=notes, methods=methods)
    writers = (markdown.write_csv, markdown.write_latex, page.write, markdown.write, paper.write)
    out = Path(out)
    scratch = _scratch(out, page)
    try:
        with use(style):
            parts = content(frames, token_maps.read(results, frames.records), figures)
            for name, write in zip(FORMATS, writers, strict=True):
                if name in formats:
                    write(parts, scratch)
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    made = {part for name in formats for part in _MAKES[name]}
    return out / next(part for part in reversed(_PARTS) if part in made)


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise BenchError(f"no {what} '{name}' here{near_miss(name, known)}")


def _scratch(out: Path, page: Any) -> Path:
    """Make a folder beside the old report, on its file system, to build the new one in."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        html = out / page.NAME
        foreign = [
            *([html] if html.exists() and not page.is_ours(html) else []),
            *(out / part for part in _PARTS if (out / part).exists() and not _is_report(out)),
        ]
        if foreign:
            raise BenchError(
                f"{foreign[0]} exists but is not part of a report: choose another --out"
            )
        return Path(tempfile.mkdtemp(prefix=".report-", dir=out))
    except OSError as error:
        raise BenchError(
            f"cannot write a report to {out} ({error.strerror}): choose a writable --out"
        ) from error


def _is_report(out: Path) -> bool:
    """Whether a folder holds a report that may be replaced, in whatever format."""
    ours = ("report.md", "index.html", "paper/main.tex", "tables/*--*.csv", "tables/*--*.tex")
    return any(any(out.glob(name)) for name in ours)


def _swap(scratch: Path, out: Path) -> None:
    """Put the new files in the old ones' place, report.md last: it is what names the others."""
    old = scratch / "old"
    old.mkdir()
    for part in _PARTS:
        if (scratch / part).exists():
            if (out / part).exists():
                os.replace(out / part, old / part)
            os.replace(scratch / part, out / part)
