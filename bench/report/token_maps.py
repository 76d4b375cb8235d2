"""What became of the tokens of sample images, for the page and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import fates
from bench.fates import Fate, Fates
from bench.record import Record
from bench.report.comparison import task_name


def read(results: Sequence[Path], records: Sequence[Record]) -> list[Fates]:
    """Return the tokens under some results folders of the cells that a report shows.

    Files of several suites with the same images become one.
    """
    labels = {(record.cell.model, record.cell.task, record.cell.label) for record in records}
    found: dict[Any, Fates] = {}
    for own in fates.read([path for path in map(Path, results) if path.is_dir()]):
        place = (own.model, own.task, tuple(own.samples))
        known = {cell.label: cell for cell in (found[place].cells if place in found else [])}
        cells = [cell for cell in own.cells if (own.model, own.task, cell.label) in labels]
        merged = {**known, **{cell.label: cell for cell in cells}}
        if merged:
            found[place] = replace(
                own, cells=[merged[label] for label in sorted(merged, key=_order)]
            )
    return [found[place] for place in sorted(found, key=str)]


def _order(label: str) -> tuple[bool, str]:
    return label != "none", label


def for_page(shown: Sequence[Fates], records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the data of the page's viewer; maps stay packed, the browser unpacks them."""
    provenance: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        cell = record.cell
        provenance.setdefault((cell.model, cell.task, cell.label), []).append(record.provenance)

    def outdated(own: Fates, cell: Fate) -> bool:
        made = provenance[own.model, own.task, cell.label]
        return not any(all(p.get(k) == v for k, v in cell.made.items()) for p in made)

    return [
        asdict(own)
        | {"title": f"{own.model} · {task_name(own.task)}"}
        | {"cells": [asdict(c) | {"made": None, "old": outdated(own, c)} for c in own.cells]}
        for own in shown
    ]
