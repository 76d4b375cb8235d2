"""The report as one HTML page that needs nothing else: table, trade-off plot, tokens, records.

The page is `templates/page/`: a skeleton, a style sheet and a few scripts, put into one file with
the data as JSON. It asks the network for nothing, and its policy forbids it to.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from bench.records.record import Record
from bench.report.content import Content
from bench.report.data import disturbed, load
from bench.report.data.frame import Frames
from bench.report.data.templates import environment
from bench.report.figures import token_maps
from bench.report.page import page_data, study
from bench.report.tables import provenance
from bench.report.tables.table import unescape

NAME = "index.html"
TABLE = ("filter.js", "csv.js", "table.js")
SCRIPTS = ("base.js", "state.js", "record.js", "plot.js", "tokens.js", *TABLE, "cells.js")


def write(content: Content, folder: Path) -> None:
    """Write a report's page; the same records give the same bytes."""
    templates = environment(autoescape=True)
    templates.filters |= {"unescaped": unescape, "bold": study.bold}
    frames = content.frames
    tokens = token_maps.for_page(content.fates, frames.records)
    panels, cells, records = page_data.cells(frames)
    data = {
        "baseline": frames.baseline,
        "panels": panels,
        "cells": cells,
        "looks": page_data.looks(frames),
        "tokens": tokens,
    }
    text = templates.get_template("page/index.html.j2").render(
        **parts(*SCRIPTS),
        data=page_data.text(data),
        records=page_data.packed(records),
        counts=_counts(frames),
        older=frames.older,
        findings=[(title, study.bold(text)) for title, text in _findings(content)],
        tokens=bool(tokens),
        notes=frames.notes,
        study=study.parts(content),
        failed=frames.failed,
        machines=_machines(frames.records),
        conventions=[study.bold(line) for line in provenance.conventions(frames)],
        equal=content.equal,
        disturbed=disturbed.LEGEND if disturbed.note(frames.records) else "",
    )
    (folder / NAME).write_text(text, encoding="utf-8", newline="\n")


def parts(*scripts: str) -> dict[str, str]:
    """Return the style sheet and some scripts, as a page's template takes them."""
    assets = files("bench.assets") / "templates" / "report" / "page"
    css, *js = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", *scripts))
    return {"css": css, "js": "\n".join(js)}


def _findings(content: Content) -> list[tuple[str, str]]:
    """Return the headlines (Markdown), each with its model and task; "" where it is of all."""
    groups = [(unescape(s.title), s.headline) for s in content.groups if s.headline]
    return [*(("", text) for text in content.findings), *groups]


def _counts(frames: Frames) -> str:
    cells = [record.cell for record in frames.records]
    counts = {
        "finished cell": len(frames.cells),
        "method": len(frames.methods),
        "model": len(frames.models),
        "task": len({cell.task for cell in cells}),
        "machine": len({load.machine(record) for record in frames.records}),
    }
    return " · ".join(f"{n:,} {word}" + "s" * (n != 1) for word, n in counts.items())


def _machines(records: Sequence[Record]) -> list[str]:
    """Describe each machine in a line."""
    lines: dict[str, None] = {}
    for record in records:
        env = record.env
        facts = [load.machine(record), env.get("cpu"), env.get("gpu")]
        facts += [f"{env[k]} threads" for k in ("threads",) if env.get(k)]
        facts += provenance.host(env)
        facts += [f"{name} {env[name]}" for name in ("torch", "python") if env.get(name)]
        lines[" · ".join(str(fact) for fact in facts if fact)] = None
    return sorted(lines)
