"""Reports from recorded cells: Markdown, CSV, PNG, SVG and a page, without what measured them.

Example:
    >>> from pathlib import Path
    >>> from bench.report import build
    >>> build([Path("results")], Path("reports/quick"))  # doctest: +SKIP
    PosixPath('reports/quick/report.md')
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.report.frame import Frames
    from bench.report.plots import Plot

__all__ = ["build"]

_FOLDERS = ("figures", "tables")
FORMATS = ("md", "html")


def build(
    results: Sequence[Path],
    out: Path,
    *,
    baseline: str = "none",
    formats: Sequence[str] = FORMATS,
) -> Path:
    """Write a report: ``report.md`` with its ``figures/`` and ``tables/``, and ``index.html``.

    The same records give the same bytes. A report that was there is replaced only once the new one
    is complete; other files in ``out`` are left alone.

    Args:
        results: Results folders (searched recursively) or record files; machines are merged.
        out: Folder of the report; made if missing.
        baseline: Method, or label of a cell, that accuracies are compared with.
        formats: Which of `FORMATS` to write; what else of a report is there stays as it is.

    Returns:
        The path of ``report.md``, or of ``index.html`` where that is all that was written.

    Raises:
        BenchError: If there are no records, the baseline is unknown, or ``out`` is not writable.
    """
    from bench.report import frame, load, page, token_figure, token_maps

    _check_formats(formats)
    records, notes = load.read(results)
    frames = frame.build(records, baseline=baseline, notes=notes)
    shown = token_maps.read(results, frames.records)
    out = Path(out)
    scratch = _scratch(out)
    try:
        if "html" in formats:
            page.write(frames, scratch, token_maps.for_page(shown, frames.records))
        if "md" in formats:
            _write(frames, scratch, token_figure.plots(shown, frames.records))
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out / ("report.md" if "md" in formats else page.NAME)


def _check_formats(formats: Sequence[str]) -> None:
    for name in formats:
        if name not in FORMATS:
            from bench.registry import near_miss

            raise BenchError(f"no report format '{name}'{near_miss(name, FORMATS)}")


def _scratch(out: Path) -> Path:
    """Make a folder beside the old report, on its file system, to build the new one in."""
    from bench.report import page

    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "report.md").exists():
            for name in _FOLDERS:
                if (out / name).exists():
                    raise BenchError(
                        f"{out / name} exists but is not part of a report: choose another --out"
                    )
        old = out / page.NAME
        if old.exists() and page.MARK not in old.read_text(encoding="utf-8", errors="replace"):
            raise BenchError(f"{old} exists but is not part of a report: choose another --out")
        return Path(tempfile.mkdtemp(prefix=".report-", dir=out))
    except OSError as error:
        raise BenchError(
            f"cannot write a report to {out} ({error.strerror}): choose a writable --out"
        ) from error


def _swap(scratch: Path, out: Path) -> None:
    """Put the new files in the old ones' place, report.md last: it is what names the others."""
    old = scratch / "old"
    old.mkdir()
    for name in (*_FOLDERS, "index.html", "report.md"):
        if (scratch / name).exists():
            if (out / name).is_dir():
                os.replace(out / name, old / name)
            os.replace(scratch / name, out / name)


def _write(frames: Frames, folder: Path, tokens: Sequence[Plot]) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from bench.report import latex, plots, provenance, tuned_section

    for name in _FOLDERS:
        (folder / name).mkdir()
    groups = [_group(frames, group) for group in frames.groups()]
    studies = tuned_section.sections(frames.records)
    failed = _failed(frames)
    tables = [group[name] for group in groups for name in ("main", "answers", "accuracy")]
    tables += [table for group in groups for table in group["timings"]] + [failed]
    for table in (table for study in studies for table in tuned_section.tables(study)):
        tables.append(table)
        text = latex.latex(table)
        (folder / "tables" / f"{table.name}.tex").write_text(text, encoding="utf-8", newline="\n")
    for table in tables:
        if table is not None:
            path = folder / "tables" / f"{table.name}.csv"
            table.data.to_csv(path, index=False, lineterminator="\n")
    overviews = plots.overviews(frames)
    for plot in [
        *overviews,
        *tokens,
        *(plot for part in (*studies, *groups) for plot in part["plots"]),
    ]:
        plots.save(plot, folder / "figures")
    environment = Environment(
        loader=PackageLoader("bench.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("report.md.j2").render(
        counts=_counts(frames),
        groups=groups,
        studies=studies,
        overviews=overviews,
        tokens=tokens,
        failed=failed,
        notes=frames.notes,
        conventions=provenance.CONVENTIONS,
        machines=provenance.machines(frames),
        weights=provenance.weights(frames),
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    (folder / "report.md").write_text(text, encoding="utf-8", newline="\n")


def _group(frames: Frames, group: str) -> dict[str, Any]:
    from bench.report import answers, comparison, plots, timings
    from bench.report.tables import escape, group_rows

    rows = group_rows(frames, group)
    bare = [row | {"why": row["accuracy_reason"] or "no reason recorded"} for row in rows]
    flawed = [row for row in bare if row["accuracy_value"] is not None and row["accuracy_reason"]]
    bare = [row for row in bare if row["accuracy_value"] is None]
    partly = [row | {"why": row["not_measured"]} for row in rows if row["not_measured"]]
    return {
        "title": escape(comparison.title(rows, frames)),
        "headline": comparison.headline(frames, group),
        "main": comparison.main_table(frames, group),
        "accuracy": comparison.accuracy_table(frames, group),
        "answers": answers.answer_table(frames, group),
        "timings": timings.timing_tables(frames, group),
        "plots": plots.plots(frames, group),
        "gaps": [
            *(f"No accuracy for {text}" for text in _by_reason(bare, len(rows))),
            *(f"Accuracy of {text}" for text in _by_reason(flawed, len(rows))),
            *(f"Cost of {text}" for text in _by_reason(partly, len(rows))),
        ],
    }


def _by_reason(rows: Sequence[dict[str, Any]], everything: int) -> list[str]:
    """Say for each reason which cells it holds for, as Markdown."""
    from bench.report.tables import escape

    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["why"], []).append(f"{row['method']} {row['setting']}".strip())
    return [
        f"{'any cell' if len(cells) == everything else escape(', '.join(cells))}: {escape(reason)}"
        for reason, cells in reasons.items()
    ]


def _failed(frames: Frames) -> Any:
    from bench.report.tables import Column, escape, rows_of, table_of

    if not len(frames.failed):
        return None

    def column(name: str) -> Column:
        return Column(name, name, lambda row: escape(row[name] or "–"), text=True)

    columns = [column(name) for name in frames.failed.columns]
    rows = [row | {"is_baseline": False, "band": ""} for row in rows_of(frames.failed)]
    return table_of("failed", "", columns, rows)


def _counts(frames: Frames) -> str:
    def several(count: int, word: str) -> str:
        return f"{count} {word}" + ("" if count == 1 else "s")

    done, failed = len(frames.cells), len(frames.failed)
    cells = [record.cell for record in frames.records]
    models, methods = len({cell.model for cell in cells}), len({cell.method for cell in cells})
    text = f"{several(done, 'finished cell')} of {several(models, 'model')} and "
    text += several(methods, "method")
    return text + (f"; {failed} did not finish (listed below)." if failed else ".")
