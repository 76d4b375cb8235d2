"""What was contributed: folders of records, each of which is audited before anything is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.audit import audit_all
from bench.records.record import Record
from bench.records.store import slug


@dataclass(frozen=True)
class Contributed:
    """A record that passed its audit, and its file within the site."""

    record: Record
    folder: str
    file: str


def read(folders: Sequence[Path]) -> list[Contributed]:
    """Return the records under some results folders (or single files), from old to new.

    Raises:
        BenchError: as `audit_all` does; one refused record refuses all.
    """
    contributed: dict[Path, Contributed] = {}
    taken: set[str] = set()
    for folder in folders:
        name = _unused(slug(folder.resolve().name), taken)
        for path, record in audit_all(folder).items():
            place = path.resolve()
            file = "/".join((name, *place.parts[-3:]))
            contributed.setdefault(place, Contributed(record, name, file))
    return sorted(contributed.values(), key=lambda one: (one.record.created, one.file))


def _unused(name: str, taken: set[str]) -> str:
    """Return a folder's name, with a number where another contribution has that name."""
    number, unused = 1, name
    while unused in taken:
        number += 1
        unused = f"{name}-{number}"
    taken.add(unused)
    return unused
