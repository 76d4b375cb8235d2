"""What became of the tokens of sample images, for the page and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.records import fates
from bench.records.fates import Fates
from bench.records.record import Record
from bench.report.data.names import task_name


def read(results: Sequence[Path], records: Sequence[Record]) -> list[Fates]:
    """Return the tokens under some results folders of the cells that a report shows.

    Files of several suites with the same images become one.
    """
    labels = {(record.cell.model, record.cell.task, record.cell.label) for record in records}
    groups: dict[Any, Fates] = {}
    for group in fates.read([path for path in map(Path, results) if path.is_dir()]):
        place = (group.model, group.task, tuple(group.samples))
        known = {cell.label: cell for cell in (groups[place].cells if place in groups else [])}
        cells = [cell for cell in group.cells if (group.model, group.task, cell.label) in labels]
        merged = {**known, **{cell.label: cell for cell in cells}}
        if merged:
            groups[place] = replace(
                group, cells=[merged[label] for label in sorted(merged, key=_order)]
            )
    return [groups[place] for place in sorted(groups, key=str)]


def _order(label: str) -> tuple[bool, str]:
    return label != "none", label


def outdated(group: Fates, records: Sequence[Record]) -> set[str]:
    """Return the labels of cells that none of their records was measured like: other code, say."""
    made: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if (record.cell.model, record.cell.task) == (group.model, group.task):
            made.setdefault(record.cell.label, []).append(record.provenance)
    return {
        cell.label
        for cell in group.cells
        if not any(cell.made.items() <= one.items() for one in made[cell.label])
    }


def for_page(shown: Sequence[Fates], records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the data of the page's viewer; maps stay packed, the browser unpacks them."""
    pages = []
    for group in shown:
        old = outdated(group, records)
        cells = [asdict(cell) | {"made": None, "old": cell.label in old} for cell in group.cells]
        title = f"{group.model} · {task_name(group.task)}"
        pages.append(asdict(group) | {"title": title, "cells": cells})
    return pages
