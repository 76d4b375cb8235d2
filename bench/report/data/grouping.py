"""Decide which cells may stand in one table, and name the tables.

Models that were fine-tuned with a method at work, and measured as they were trained, share the
table of the model that they started from, beside which it says "fine-tuned".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.record import Record
from bench.records.store import slug
from bench.report.data import load
from bench.report.data.names import setting
from bench.report.data.rows import Row

MAX_NAME = 120  # characters of a table's name, to which file names add a little
# Cells that agree in all of these may stand in one table; a column never mixes them.
TUNED = ", fine-tuned"  # behind the name of a model whose fine-tuning is a table of its own
GROUP = (
    *("machine", "profile", "model", "task", "random_weights", "limit", "precision", "dtype"),
    *("backend", "engine", "how", "recipe", "macs_scope"),
)
Training = dict[str, Any]  # how a model was fine-tuned, as its record tells
RECIPE = ("data", "epochs", "steps", "batch", "rank", "rate")


def training(record: Record) -> Training | None:
    """Return how a record's model was fine-tuned; None if it was not, or is measured otherwise."""
    about = record.provenance.get("training")
    if not isinstance(about, dict):
        return None
    params = {**(about.get("budget") or {}), **(about.get("params") or {})}
    same = params_key(params) == params_key(record.cell.params)
    return about if same and about.get("method") == record.cell.method else None


def params_key(params: Mapping[str, Any]) -> str:
    """Write parameters such that equal ones read the same, in whatever order they came."""
    return setting(dict(sorted(params.items())))


def recipe(about: Training) -> str:
    """Say what all models of one fine-tuning have in common."""
    return ", ".join(f"{key} {about[key]}" for key in RECIPE if about.get(key) not in (None, ""))


@dataclass(frozen=True)
class Place:
    """Where a cell stands.

    Attributes:
        group: The table's name.
        common: What all cells of the table agree in.
        seed: The cell's seed; of a fine-tuned model, its training's.
        extra: What tells the cell from its twins: its share of the method's own loss, its seed.
    """

    group: str
    common: Row
    seed: int
    extra: str


def places(records: Sequence[Record]) -> dict[str, Place]:
    """Return where each record's cell stands, by uid."""
    otherwise = {record.cell.model for record in records if training(record) is None}
    abouts = [training(r) if r.cell.model not in otherwise else None for r in records]
    unscoped = [_unscoped(r, about) for r, about in zip(records, abouts, strict=True)]
    scopes: dict[tuple[Any, ...], set[str]] = {}
    for record, value in zip(records, unscoped, strict=True):
        if record.cost.macs:
            scopes.setdefault(value, set()).add(record.cost.macs.scope)
    values = []
    for record, value in zip(records, unscoped, strict=True):
        macs, siblings = record.cost.macs, scopes.get(value, set())
        # A cell whose MACs are missing joins its siblings' table instead of opening one of its own.
        values.append((*value, macs.scope if macs else min(siblings) if len(siblings) == 1 else ""))
    names, extras = _names(set(values)), _extras(records, abouts, unscoped)
    result = {}
    for record, about, value, extra in zip(records, abouts, values, extras, strict=True):
        common = dict(zip(GROUP, value, strict=True))
        if not about:
            del common["recipe"]
        result[load.uid(record)] = Place(names[value], common, _seed(record, about), extra)
    return result


def _unscoped(record: Record, about: Training | None) -> tuple[Any, ...]:
    """Return the values of `GROUP`, but for the scope of the MACs."""
    cell = record.cell
    model = f"{about['model']}{TUNED}" if about else cell.model
    how = str(record.provenance.get("how") or "measured")
    place = (load.machine(record), cell.profile, model, cell.task, cell.random_weights)
    run = cell.limit, cell.precision, cell.dtype, cell.backend, cell.engine
    return (*place, *run, how, recipe(about) if about else None)


def _seed(record: Record, about: Training | None) -> int:
    return int(about.get("seed") or 0) if about else record.cell.seed


def _extras(
    records: Sequence[Record], abouts: Sequence[Training | None], groups: Sequence[object]
) -> list[str]:
    names = [f"{g} {r.cell.method} {r.cell.params}" for g, r in zip(groups, records, strict=True)]
    facts_of = [
        {"loss": (about or {}).get("weight"), "seed": _seed(record, about)}
        for record, about in zip(records, abouts, strict=True)
    ]
    values: dict[tuple[str, str], set[Any]] = {}
    for name, facts in zip(names, facts_of, strict=True):
        for word, value in facts.items():
            values.setdefault((name, word), set()).add(value)
    return [
        ", ".join(f"{w} {v}" for w, v in facts.items() if len(values[name, w]) > 1)
        for name, facts in zip(names, facts_of, strict=True)
    ]


def _names(everyone: set[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    names: dict[tuple[Any, ...], str] = {}
    taken: set[str] = set()
    for value in sorted(everyone, key=str):
        name = _name(value, everyone)
        while name in taken:  # two scopes may differ in punctuation only
            name += "-2"
        taken.add(name)
        names[value] = name
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
    if name == "precision":
        return "fixed" if value is None else f"until={value:g}"
    return "default" if value is None else str(value)
