"""The leaderboard as a static site: one page that needs no other file, and the records beside it.

It is made of the parts of a report's page: its style sheet, its table, its policy, which forbids
the page to ask the network for anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.records import audit
from bench.records.record import Record
from bench.report import TITLE, replacing
from bench.report.data import disturbed, equal, load
from bench.report.data.frame import Frames, timings_of
from bench.report.data.mixture import is_older
from bench.report.data.rows import Row
from bench.report.data.templates import environment
from bench.report.data.ties import BEST
from bench.report.leaderboard import standings
from bench.report.leaderboard.contributions import Contributed, read
from bench.report.page import page, page_data

SCRIPTS = ("base.js", "state.js", *page.TABLE, "board.js")
FOLDER = "records"
Place = tuple[str, str]  # hardware and engine, which a timing goes with


def build(folders: Sequence[Path], out: Path) -> Path:
    """Write the site of some contributions; the same records give the same bytes.

    Args:
        folders: Results folders or record files, of any machines.
        out: Folder of the site; made if missing. An earlier site in it is replaced.

    Returns:
        The path of ``index.html``.

    Raises:
        BenchError: A record is refused (see `contributions.read`), none has an accuracy, or ``out``
            is not writable or has something else in it.
    """
    contributed = read(folders)
    ranked = [one for one in contributed if standings.competes(one.record)]
    if not ranked:
        raise BenchError("no record has an accuracy of true weights: nothing can be ranked")
    frames = standings.frames_of([one.record for one in ranked])
    with replacing(out, ["leaderboard"]) as scratch:
        text = _page(contributed, ranked, frames)
        (scratch / page.NAME).write_text(text, encoding="utf-8", newline="\n")
        for one in ranked:
            file = scratch / FOLDER / one.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(one.record.to_json() + "\n", encoding="utf-8", newline="\n")
    return out / page.NAME


def _page(contributed: list[Contributed], ranked: list[Contributed], frames: Frames) -> str:
    panels, cells = _entries(ranked, frames)
    about = [_about([one for one in contributed if one.folder == f]) for f in _folders(contributed)]
    data = {"baseline": frames.baseline, "panels": panels, "cells": cells}
    text: str = (
        environment(autoescape=True)
        .get_template("page/board.html.j2")
        .render(
            **page.parts(*SCRIPTS),
            title=f"{TITLE}: leaderboard",
            data=page_data.text(data | {"looks": page_data.looks(frames)}),
            rankings=standings.rankings(frames),
            contributions=about,
            ranked=len(ranked),
            disturbed=disturbed.LEGEND,
        )
    )
    return text


def _folders(contributed: Sequence[Contributed]) -> list[str]:
    return sorted({one.folder for one in contributed})


def _about(contributed: Sequence[Contributed]) -> Row:
    """Describe one contribution."""
    records = [one.record for one in contributed]
    dates = [record.created[:10] for record in records]
    return {
        "name": contributed[0].folder,
        "records": len(records),
        "ranked": sum(map(standings.competes, records)),
        "machines": ", ".join(sorted(set(map(load.machine, records)))),
        "dates": " to ".join(dict.fromkeys((min(dates), max(dates)))),
        "older": sum(map(is_older, records)),
    }


def _entries(ranked: Sequence[Contributed], frames: Frames) -> tuple[list[Row], list[Row]]:
    """Return the contests, and one entry a setting with all of its records, the newest first."""
    spreads = equal.spreads([one.record for one in ranked])
    by_setting: dict[str, list[Row]] = {}
    for one in reversed(ranked):
        timings = page_data.speeds_of(timings_of(one.record, spreads))
        entry = _record(one) | {"speeds": next(iter(timings.values()), {})}
        by_setting.setdefault(standings.identity(one.record), []).append(entry)
    panels, cells, _ = page_data.cells(frames)
    rows = [row for rows in frames.by_group.values() for row in rows]
    contests: dict[tuple[str, str], list[Row]] = {}
    for row, entry in zip(rows, cells, strict=True):
        setting = standings.identity(frames.by_uid[row["key"]])
        entry |= {"band": row["band"], "best": row[BEST], "dtype": str(row["dtype"])}
        entry["records"] = by_setting[setting]
        contests.setdefault((row["group"], row["band"]), []).append(entry)
    for members in contests.values():
        best = [entry for entry in members if entry["best"]]
        for entry in members:
            entry["tied"] = len(best)
        _crown(best)
    return [panel | {"mixed": ""} for panel in panels], cells


def _record(one: Contributed) -> Row:
    """Return what the page says of one record; the file has the rest."""
    record, env = one.record, one.record.env
    primary, macs = record.accuracy.primary, record.cost.macs
    assert primary is not None and macs is not None
    return {
        "file": f"{FOLDER}/{one.file}",
        "machine": load.machine(record),
        "hardware": _hardware(env),
        "engine": record.cell.engine,
        "created": record.created[:10],
        "versions": _versions(record),
        "value": record.accuracy.metrics[primary].value,
        "gmacs": macs.total / 1e9,
        "command": record.command,
        "unchecked": audit.unchecked(record),
    }


def _hardware(env: Mapping[str, Any]) -> str:
    return str(env.get("gpu") or f"{env.get('cpu')}, {env.get('threads')} threads")


def _versions(record: Record) -> str:
    """Name the code and the library that took a record."""
    code = str(record.provenance.get("measurement_sha256"))[:8]
    earlier = " (earlier)" if is_older(record) else ""
    return f"code {code}{earlier}, torch {record.env.get('torch')}"


def _crown(best: Sequence[Row]) -> None:
    """Mark the fastest of the most accurate, by hardware, engine and batch size.

    What other load disturbed wins nothing, and nobody wins alone.
    """
    timed: dict[tuple[str, str, str], list[list[Any]]] = {}
    for entry in best:
        newest: dict[Place, Row] = {}
        for record in reversed(entry["records"]):
            newest[record["hardware"], record["engine"]] = record
        for place, record in newest.items():
            for batch, values in record["speeds"].items():
                if not values[5]:
                    timed.setdefault((*place, batch), []).append(values)
    for speeds in timed.values():
        if len(speeds) > 1:
            max(speeds, key=lambda values: values[1]).append(1)
