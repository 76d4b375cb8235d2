"""Reports from recorded cells: Markdown, CSV, PNG and SVG, without the libraries that measured.

Example:
    >>> from pathlib import Path
    >>> from bench.report import build
    >>> build([Path("results")], Path("reports/quick"))  # doctest: +SKIP
    PosixPath('reports/quick/report.md')
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.core.errors import BenchError, near_miss

__all__ = ["FORMATS", "build"]

FORMATS = ("csv", "latex", "html", "markdown", "paper")  # in the order they are written
DEFAULT_FORMATS = FORMATS[:4]
MOST_FIGURES = 6  # models and tasks that figures are drawn for: drawing is what takes time
_MAKES = {
    "csv": ("tables",),
    "latex": ("tables",),
    "html": ("index.html",),
    "markdown": ("figures", "report.md"),
    "paper": ("paper",),
}
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
    from bench.report.content import content
    from bench.report.data import frame, load
    from bench.report.figures import token_maps
    from bench.report.figures.style import use
    from bench.report.page import markdown, page
    from bench.report.paper import paper

    _check("format", formats, FORMATS)
    records, notes = load.read(results)
    _check("profile", profiles, {record.cell.profile for record in records})
    records = [record for record in records if not profiles or record.cell.profile in profiles]
    frames = frame.build(records, baseline=baseline, notes=notes, methods=methods)
    writers = {
        "csv": markdown.write_csv,
        "latex": markdown.write_latex,
        "html": page.write,
        "markdown": markdown.write,
        "paper": paper.write,
    }
    out = Path(out)
    scratch = _scratch(out)
    try:
        with use(style):
            fates = token_maps.read(results, frames.records)
            parts = content(frames, fates, figures)
            for name in FORMATS:
                if name in formats:
                    writers[name](parts, scratch)
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    made = [part for part in _PARTS[::-1] if any(part in _MAKES[name] for name in formats)]
    return out / made[0]


def _check(what: str, names: Sequence[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise BenchError(f"no {what} '{name}' here{near_miss(name, sorted(known))}")


def _scratch(out: Path) -> Path:
    """Make a folder beside the old report, on its file system, to build the new one in."""
    from bench.report.page import page

    try:
        out.mkdir(parents=True, exist_ok=True)
        old = out / page.NAME
        if old.exists() and page.MARK not in old.read_text(encoding="utf-8", errors="replace"):
            raise BenchError(f"{old} exists but is not part of a report: choose another --out")
        for part in _PARTS if not _is_report(out) else ():
            if (out / part).exists():
                raise BenchError(
                    f"{out / part} exists but is not part of a report: choose another --out"
                )
        return Path(tempfile.mkdtemp(prefix=".report-", dir=out))
    except OSError as error:
        raise BenchError(
            f"cannot write a report to {out} ({error.strerror}): choose a writable --out"
        ) from error


def _is_report(out: Path) -> bool:
    """Whether a folder holds a report that may be replaced, in whatever format."""
    tables = list((out / "tables").glob("*--*.csv")) + list((out / "tables").glob("*--*.tex"))
    ours = ("report.md", "index.html", "paper/main.tex")
    return bool(tables) or any((out / name).exists() for name in ours)


def _swap(scratch: Path, out: Path) -> None:
    """Put the new files in the old ones' place, report.md last: it is what names the others."""
    old = scratch / "old"
    old.mkdir()
    for part in _PARTS:
        if (scratch / part).exists():
            if (out / part).exists():
                os.replace(out / part, old / part)
            os.replace(scratch / part, out / part)
