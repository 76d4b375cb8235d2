r"""A small paper: the tables, the figures and the protocol of a report, with its references.

The folder is complete: pdflatex main, bibtex main, pdflatex main (twice) need nothing else.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.report.ablation import tuned_section
from bench.report.content import Content, counts
from bench.report.data.rows import rows_of
from bench.report.figures import plots, style
from bench.report.tables import latex, provenance
from bench.report.tables.table import Table, escape


@cache
def references() -> dict[str, tuple[str, str]]:
    """Return the key and the entry of each method's paper, by the method's name."""
    text = files("bench.assets.data").joinpath("references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^(@\w+\{([^,]+),\n.*?^\})", text, flags=re.MULTILINE | re.DOTALL)
    return {name: (key, entry) for entry, key in entries for name in key.split("+")}


def write(content: Content, folder: Path) -> None:
    """Write ``paper/``."""
    paper = folder / "paper"
    for name in ("tables", "figures"):
        (paper / name).mkdir(parents=True)
    groups = [_group(group) for group in content.groups]
    studies = [_study(study) for study in content.studies]
    shown = [*content.overview_tables, content.origins]
    shown += [content.equal] if content.equal else []
    shown += [table for part in (*groups, *studies) for table in part["tables"]]
    for table in shown:
        text = latex.latex(table)
        (paper / "tables" / f"{table.name}.tex").write_text(text, encoding="utf-8", newline="\n")
    figures = [
        *content.overviews,
        *(plot for part in (*groups, *studies) for plot in part["plots"]),
    ]
    for plot in figures:
        plots.save_pdf(plot, paper / "figures")
    known, frames = references(), content.frames
    tuned = {escape(r["model"]) for r in rows_of(frames.cells) if r["group"] in frames.apart}
    methods = sorted({record.cell.method for record in frames.records})
    text = (
        latex.environment()
        .get_template("paper.tex.j2")
        .render(
            counts=counts(frames),
            methods=[(name, known[name][0] if name in known else None) for name in methods],
            machines=provenance.machines(frames),
            weights=[row for row in provenance.weights(frames) if row[0] not in tuned],
            older=frames.older,
            notes=frames.notes,
            conventions=provenance.conventions(frames),
            content=content,
            groups=groups,
            studies=studies,
            page=style.active(),
        )
    )
    (paper / "main.tex").write_text(text, encoding="utf-8", newline="\n")
    cited = dict.fromkeys(known[name][1] for name in methods if name in known)
    (paper / "references.bib").write_text("\n\n".join(cited) + "\n", encoding="utf-8")


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """Return what a page has room for: the comparison, what papers print, an answer's cost."""
    tables: list[Table] = [group[name] for name in ("main", "published", "answers") if group[name]]
    return {name: group[name] for name in ("title", "headline", "plots")} | {"tables": tables}


def _study(study: dict[str, Any]) -> dict[str, Any]:
    tables = [table for table in tuned_section.tables(study) if not table.name.endswith("claims")]
    shown = {name: study[name] for name in ("title", "about", "sentences", "plots")}
    return shown | {"tables": tables}
