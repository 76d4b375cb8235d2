r"""A small paper: a report's findings, two figures and two tables, and all else in an appendix.

The folder is complete: pdflatex main, bibtex main, pdflatex main (twice) need nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path

from bench.report.content import Block, Content, Section, counts
from bench.report.data.grouping import training
from bench.report.figures import plots, style
from bench.report.figures.plots import Plot
from bench.report.tables import latex, provenance
from bench.report.tables.table import Table

BODY = 2  # tables, and figures, that stand in the body
MOST_LINES = 48  # of a table there: it shares no page with text otherwise
HEADLINES = 3  # of models and tasks, in the abstract


@cache
def references() -> dict[str, tuple[str, str]]:
    """Return the key and the entry of each method's paper, by the method's name."""
    text = files("bench.assets.data").joinpath("references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^(@\w+\{([^,]+),\n.*?^\})", text, flags=re.MULTILINE | re.DOTALL)
    return {name: (key, entry) for entry, key in entries for name in key.split("+")}


def write(content: Content, folder: Path) -> None:
    """Write ``paper/``: a body of a page or two, and all else in its appendix."""
    paper, frames, known = folder / "paper", content.frames, references()
    sections = [*content.across, content.overview, *content.groups, content.tokens]
    sections = [_printed(section) for section in sections]
    body = _body(sections)
    _save(paper, content, sections, body)
    told = [section for section in content.groups if section.headline]
    template = latex.templates().get_template("paper.tex.j2")
    text = template.render(
        counts=counts(frames),
        methods=[(name, known[name][0] if name in known else None) for name in frames.methods],
        machines=provenance.machines(frames),
        weights=provenance.weights(r for r in frames.records if not training(r)),
        older=frames.older,
        notes=frames.notes,
        conventions=provenance.conventions(frames),
        content=content,
        abstract=told[:HEADLINES],
        further=told[HEADLINES:],
        body=body,
        appendix=[(s, rest) for s in sections if (rest := _without(s, body)).blocks],
        see=_see,
        page=style.active(),
    )
    (paper / "main.tex").write_text(text, encoding="utf-8", newline="\n")
    cited = dict.fromkeys(known[name][1] for name in frames.methods if name in known)
    (paper / "references.bib").write_text("\n\n".join(cited) + "\n", encoding="utf-8")


def _width_pt() -> float:
    return 72 * style.active().text_in


def _body(sections: Sequence[Section]) -> Block:
    """Return the tables and figures of the body: the first ones, of the tables those that fit."""
    tables = (table for section in sections for table in section.tables)
    short = (table for table in tables if latex.lines_of(table, _width_pt()) <= MOST_LINES)
    figures = (plot for section in sections for plot in section.plots)
    return Block(tables=tuple(islice(short, BODY)), plots=tuple(islice(figures, BODY)))


def _save(paper: Path, content: Content, sections: Sequence[Section], body: Block) -> None:
    """Write the files of all tables and figures."""
    for name in ("tables", "figures"):
        (paper / name).mkdir(parents=True)
    tables = [table for section in sections for table in section.tables]
    for table in (*tables, content.equal, content.origins):
        if table:
            text = latex.latex(table, _width_pt() if table in body.tables else None)
            path = paper / "tables" / f"{table.name}.tex"
            path.write_text(text, encoding="utf-8", newline="\n")
    with style.printed():
        for plot in (plot for section in sections for plot in section.plots):
            plots.save_pdf(plot, paper / "figures")


def _printed(section: Section) -> Section:
    """Return the section without what a page has no room for."""
    blocks = (block for block in section.blocks if block.paper)
    shown = (replace(b, text="") if b.tables or b.plots else b for b in blocks)
    return replace(section, blocks=tuple(shown))


def _without(section: Section, body: Block) -> Section:
    """Return the section without what stands in the body."""
    blocks = [
        replace(
            block,
            tables=tuple(table for table in block.tables if table not in body.tables),
            plots=tuple(plot for plot in block.plots if plot not in body.plots),
        )
        for block in section.blocks
    ]
    return replace(section, blocks=tuple(b for b in blocks if b.text or b.tables or b.plots))


def _see(tables: Sequence[Table], figures: Sequence[Plot]) -> str:
    """Refer to tables and figures in a sentence, as LaTeX; empty of none."""

    def listed(word: str, labels: Sequence[str]) -> str:
        *others, last = (rf"\ref{{{label}}}" for label in labels)
        return f"{word}s~{', '.join(others)} and~{last}" if others else f"{word}~{last}"

    parts = [listed("Table", [f"tab:{table.label}" for table in tables])] if tables else []
    parts += [listed("Figure", [f"fig:{plot.name}" for plot in figures])] if figures else []
    return f"See {' and '.join(parts)}." if parts else ""
