"""Reports from recorded cells: Markdown, CSV, PNG and SVG, without the libraries that measured.

Example:
    >>> from pathlib import Path
    >>> from bench.report import build
    >>> build([Path("results")], Path("reports/quick"))  # doctest: +SKIP
    PosixPath('reports/quick/report.md')
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.core.errors import BenchError, near_miss
from bench.records.files import check_writable, leftovers, remove, temporary, writing

__all__ = ["FORMATS", "build"]

# What each format makes, in the order in which they are written: Markdown links to the tables.
_MAKES = {
    "csv": ("tables",),
    "latex": ("tables",),
    "html": ("index.html",),
    "markdown": ("figures", "report.md"),
    "paper": ("paper",),
    "leaderboard": ("records", "index.html"),  # a site of its own
}
FORMATS = tuple(name for name in _MAKES if name != "leaderboard")
DEFAULT_FORMATS = FORMATS[:4]
MOST_FIGURES = 6  # models and tasks that figures are drawn for: drawing is what takes time
TITLE = "Token reduction: what it costs and what it keeps"  # tells our reports from other files
_TITLED = {  # the file with the title, for each part that has one
    "index.html": "index.html",
    "report.md": "report.md",
    "figures": "report.md",
    "paper": "paper/main.tex",
    "records": "index.html",
}
_OLD = "old"  # where the old parts go; made once the new ones are complete
_HEAD = 4096  # bytes of a file that the title is within
# in the order of their exchange: the last names the others
_PARTS = ("figures", "tables", "paper", "records", "index.html", "report.md")


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
    with replacing(out, formats) as scratch, use(style):
        fates = token_maps.read(results, frames.records)
        parts = content(frames, fates, figures)
        for name, write in zip(FORMATS, writers, strict=True):
            if name in formats:
                write(parts, scratch)
    made = {part for name in formats for part in _MAKES[name]}
    return out / next(part for part in reversed(_PARTS) if part in made)


@contextlib.contextmanager
def replacing(out: Path, formats: Sequence[str]) -> Iterator[Path]:
    """Give a folder to write a report's parts into; they take the old ones' place if all is well.

    Raises:
        BenchError: as `check_out` does, or there is no room.
    """
    check_out(out, formats)
    with writing(f"a report to {out}", "make room, or choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
        scratch = temporary(out)
        scratch.mkdir()
        try:
            yield scratch
            (scratch / _OLD).mkdir()  # from here on the new report takes the old one's place
        finally:
            _finish(scratch, out)


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise BenchError(f"no {what} '{name}' here{near_miss(name, known)}")


def check_out(out: Path, formats: Sequence[str]) -> None:
    """Make sure that a report can be written; finish or remove what a killed one left.

    Raises:
        BenchError: the folder is not writable, or something in it that is no report would be lost.
    """
    with writing(f"a report to {out}", "choose a writable --out"):
        for scratch in leftovers(out):
            _finish(scratch, out)
        for part in dict.fromkeys(part for name in formats for part in _MAKES[name]):
            if os.path.lexists(out / part) and not _is_ours(out, part):
                raise BenchError(
                    f"{out / part} exists but is not part of a report: choose another --out"
                )
        check_writable(out)


def _is_ours(out: Path, part: str) -> bool:
    """Whether a part of a report in a folder was written by this program."""
    if part == "tables":
        return any(any(out.glob(f"tables/*--*.{kind}")) for kind in ("csv", "tex"))
    path = out / _TITLED[part]
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return TITLE.encode() in file.read(_HEAD)


def _finish(scratch: Path, out: Path) -> None:
    """Put a report that is complete in the old one's place; remove what it was built in.

    report.md comes last: it is what names the others.
    """
    old = scratch / _OLD
    for part in _PARTS if old.is_dir() else ():
        if (scratch / part).exists():
            if os.path.lexists(out / part):
                os.replace(out / part, old / part)
            os.replace(scratch / part, out / part)
    remove(scratch)
