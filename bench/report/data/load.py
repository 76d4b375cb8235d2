"""Collect the records of a report from results folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.core.errors import BenchError
from bench.records.record import Record
from bench.records.store import Store

# What does not tell two measurements apart: a suite lends a cell its name and its patience only.
_NOT_IDENTITY = ("suite", "label", "names", "baseline", "latency_seconds")


def read(results: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """Read every record under some folders (or single files).

    Args:
        results: Results folders, searched recursively, or record files.

    Returns:
        The records from old to new, and one note for each file that could not be used.

    Raises:
        BenchError: If a path does not exist, or no usable record was found.
    """
    records: list[Record] = []
    notes: set[str] = set()
    for root in map(Path, results):
        if not root.exists():
            raise BenchError(
                f"no results at {root}: run `python run_bench.py run` first, "
                "or name an existing results folder"
            )
        if root.is_file():
            records.append(Record.read(root))
            continue
        store = Store(root)
        records += store.read_all()
        # Relative paths: a report must not depend on where the folder lies.
        notes |= {problem.replace(f"{root}/", "") for problem in store.problems}
    if not records:
        where = ", ".join(map(str, results)) or "(no folder given)"
        raise BenchError(
            f"no records in {where}: run `python run_bench.py run --suite quick` first"
        )
    records.sort(key=lambda record: (record.created, record.key, record.cell.suite))
    return records, sorted(notes)


def machine(record: Record) -> str:
    """Name the machine a record was taken on."""
    return str(record.env.get("machine") or "unknown machine")


def uid(record: Record) -> str:
    """Name a record among all machines' records: the key does not hold the machine."""
    return f"{machine(record)}/{record.key}"


def cell_identity(record: Record) -> str:
    """Name what a record measured, on whatever machine.

    A changed method gives a new key, and another suite's folder may keep the record of the old one:
    the key cannot serve here.
    """
    cell = {name: value for name, value in vars(record.cell).items() if name not in _NOT_IDENTITY}
    return json.dumps(cell, sort_keys=True, default=str)


def newest(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Keep the newest record of each machine and cell.

    Args:
        records: Records sorted from old to new, as `read` returns them.

    Returns:
        The records that count, and how many older results were set aside (copies of one and the
        same record, say in two suites, are not counted).
    """
    kept: dict[tuple[str, str], Record] = {}
    outdated = 0
    for record in records:
        name = machine(record), cell_identity(record)
        old = kept.pop(name, None)
        outdated += old is not None and old.key != record.key
        kept[name] = record
    return list({uid(record): record for record in kept.values()}.values()), outdated
