"""Decide which cells may stand in one table, and name the tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from bench.records.record import Record
from bench.records.store import slug
from bench.report.data import load

MAX_NAME = 120  # characters of a table's name, to which file names add a little
# Cells that agree in all of these may stand in one table; a column never mixes them.
GROUP = (
    "machine",
    "profile",
    "model",
    "task",
    "random_weights",
    "limit",
    "dtype",
    "backend",
    "how",
    "macs_scope",
)


def _group_values(record: Record, scopes: dict[tuple[Any, ...], set[str]]) -> tuple[Any, ...]:
    values = _unscoped(record)
    known = scopes.get(values, set())
    macs = record.cost.macs
    # A cell whose MACs are missing joins its siblings' table instead of opening one of its own.
    scope = macs.scope if macs else next(iter(known)) if len(known) == 1 else ""
    return (*values, scope)


def _unscoped(record: Record) -> tuple[Any, ...]:
    cell = record.cell
    how = str(record.provenance.get("how") or "measured")
    return (
        load.machine(record),
        cell.profile,
        cell.model,
        cell.task,
        cell.random_weights,
        cell.limit,
        cell.dtype,
        cell.backend,
        how,
    )


def tables(records: Sequence[Record]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the name of each record's table, and what all of its cells agree in, by uid."""
    scopes: dict[tuple[Any, ...], set[str]] = {}
    for record in records:
        if record.cost.macs:
            scopes.setdefault(_unscoped(record), set()).add(record.cost.macs.scope)
    values = {load.uid(record): _group_values(record, scopes) for record in records}
    names: dict[str, tuple[str, dict[str, Any]]] = {}
    owners: dict[str, tuple[Any, ...]] = {}
    everyone = set(values.values())
    plain = {value: _name(value, everyone) for value in everyone}
    for key in sorted(values, key=lambda key: str(values[key])):
        value = values[key]
        name = plain[value]
        while owners.setdefault(name, value) != value:  # two scopes may differ in punctuation only
            name += "-2"
        names[key] = (name, dict(zip(GROUP, value, strict=True)))
    return names


def _name(value: tuple[Any, ...], everyone: set[tuple[Any, ...]]) -> str:
    """Name a table after model and task, and after what tells it from others of these two."""
    here = GROUP.index("model"), GROUP.index("task")
    like = [other for other in everyone if all(other[i] == value[i] for i in here)]
    telling = [i for i in range(len(GROUP)) if len({other[i] for other in like}) > 1]
    name = "--".join(slug(_word(GROUP[i], value[i])) for i in (*here, *telling))
    if len(name) > MAX_NAME:  # a file name must stay one; the hash keeps it unique
        name = name[:MAX_NAME] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return name


def _word(name: str, value: Any) -> str:
    if name == "random_weights":
        return "random-weights" if value else "real-weights"
    if name == "limit":
        return "all" if value is None else f"n={value}"
    return "default" if value is None else str(value)


def show_seed(records: Sequence[Record]) -> dict[str, bool]:
    """Tell for which records the seed must be named: those whose twin differs in it alone."""
    twins: dict[str, set[int]] = {}
    names = {}
    for record in records:
        cell = record.cell
        names[load.uid(record)] = f"{_unscoped(record)} {cell.method} {cell.params}"
        twins.setdefault(names[load.uid(record)], set()).add(cell.seed)
    return {key: len(twins[name]) > 1 for key, name in names.items()}
