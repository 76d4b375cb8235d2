r"""A small paper: the tables, the figures and the protocol of a report, with its references.

The folder is complete: pdflatex main, bibtex main, pdflatex main (twice) need nothing else.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from bench.report.content import Content, Section, counts
from bench.report.data.grouping import training
from bench.report.figures import plots, style
from bench.report.tables import latex, provenance


@cache
def references() -> dict[str, tuple[str, str]]:
    """Return the key and the entry of each method's paper, by the method's name."""
    text = files("bench.assets.data").joinpath("references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^(@\w+\{([^,]+),\n.*?^\})", text, flags=re.MULTILINE | re.DOTALL)
    return {name: (key, entry) for entry, key in entries for name in key.split("+")}


def write(content: Content, folder: Path) -> None:
    """Write ``paper/``: what a page has room for."""
    paper, frames = folder / "paper", content.frames
    for name in ("tables", "figures"):
        (paper / name).mkdir(parents=True)
    top = [_printed(section) for section in (*content.across, content.overview)]
    groups = [_printed(section) for section in content.groups]
    shown = [table for section in (*top, *groups) for table in section.tables]
    for table in (*shown, content.equal, content.origins):
        if table:
            path = paper / "tables" / f"{table.name}.tex"
            path.write_text(latex.latex(table), encoding="utf-8", newline="\n")
    for plot in (plot for section in (*top, *groups) for plot in section.plots):
        plots.save_pdf(plot, paper / "figures")
    known = references()
    text = (
        latex.templates()
        .get_template("paper.tex.j2")
        .render(
            counts=counts(frames),
            methods=[(name, known[name][0] if name in known else None) for name in frames.methods],
            machines=provenance.machines(frames),
            weights=provenance.weights(r for r in frames.records if not training(r)),
            older=frames.older,
            notes=frames.notes,
            conventions=provenance.conventions(frames),
            content=content,
            top=top,
            groups=groups,
            page=style.active(),
        )
    )
    (paper / "main.tex").write_text(text, encoding="utf-8", newline="\n")
    cited = dict.fromkeys(known[name][1] for name in frames.methods if name in known)
    (paper / "references.bib").write_text("\n\n".join(cited) + "\n", encoding="utf-8")


def _printed(section: Section) -> Section:
    """Return the section without what a page has no room for."""
    blocks = (block for block in section.blocks if block.paper)
    shown = (replace(b, text="") if b.tables or b.plots else b for b in blocks)
    return replace(section, blocks=tuple(shown))
