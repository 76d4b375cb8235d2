"""From a suite to this machine's cells, each with the key of all that its result depends on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, Unsupported
from bench.measure import engines
from bench.measure.profiles import Profile
from bench.models import catalogue
from bench.records.record import COST_ONLY, Cell
from bench.runs import budgets, keys, solved_budgets
from bench.runs.checking import placed
from bench.runs.resources import Resources, out_of_reach
from bench.runs.session import Session, settings
from bench.runs.spec import Document, Options, Suite

NOWHERE = Options()


@dataclass(frozen=True)
class PlannedCell:
    """A cell ready to run, or with the reason why it cannot."""

    cell: Cell
    key: str
    profile: Profile
    machine: str
    provenance: dict[str, Any]
    refused: str | None = None  # why the cell cannot be run
    missing: str | None = None  # what its accuracy would need
    counted: str | None = None  # why it is counted from its shape alone, neither timed nor run
    broken: str = ""  # what is wrong with its data or weights


@dataclass(frozen=True)
class Agenda:
    """The cells of a run in their order, and what they need."""

    cells: list[PlannedCell]
    resources: Resources
    notes: list[str] = dataclasses.field(default_factory=list)  # lines about what stands in


def plan(
    suite: Suite,
    machine_name: str | None,
    solved: Path | None = None,
    origin: Document | Options = NOWHERE,
) -> Agenda:
    """Return the suite's cells with their keys.

    Solved budgets are kept in the file `solved`, so that the same command plans the same cells. A
    suite may say that where weights or data are out of reach the costs alone are taken.

    A cell whose data or weights are of no use is there with the reason, and fails alone.

    Raises:
        BenchError: no cell has what it needs, or a budget is wanted of what makes no sense, which
            begins with the place in `origin`.
    """
    resources = Resources(machine_name)
    cells = []
    for cell in suite.cells():
        if "budget" in cell.params:
            check_request(cell, suite, origin, resources)
        cells.append(_planned(cell, suite, resources, solved))
    if all(planned.broken for planned in cells):
        raise BenchError("; ".join(resources.problems))
    return Agenda(cells, resources)


def with_stand_ins(suite: Suite) -> tuple[Suite, list[str]]:
    """Return the suite with models in the place of those out of reach, and a line about each."""
    models, notes = [], []
    for model in suite.models:
        stand_in = model.instead
        reason = stand_in and out_of_reach(partial(catalogue.fingerprint, model.name))
        if stand_in and reason:
            notes.append(f"{stand_in.name} runs in place of {model.name}: {reason}")
            model = stand_in
        models.append(model)
    return suite.model_copy(update={"models": models}), notes


def check_request(
    cell: Cell, suite: Suite, origin: Document | Options, resources: Resources
) -> None:
    """Raise BenchError, with its place, where a method cannot do in a model what a cell asks of it.

    What a method cannot do in a model at all is no mistake: its cell says so.
    """
    places = (
        i
        for i, entry in enumerate(suite.methods)
        if entry.name == cell.method and entry.asks_for(cell.params)
    )
    i = next(places, None)
    if cell.baseline or i is None:  # a budget that is solved was checked as it was asked for
        return
    with placed(origin, i, cell.params), contextlib.suppress(Unsupported):
        resources.check_request(cell)


def check(
    todo: Sequence[PlannedCell], suite: Suite, resources: Resources, origin: Document | Options
) -> None:
    """Raise BenchError for what can be known to be a mistake before any of the cells is measured.

    That includes a model that cannot be loaded if it is the only one, which leaves nothing to run.
    """
    for planned in todo:
        check_request(planned.cell, suite, origin, resources)
    ready = [p for p in todo if not (p.broken or p.refused or p.counted)]
    if len({Session.key(p.cell, p.profile) for p in ready}) != 1 or len(ready) < len(todo):
        return
    with contextlib.suppress(Unsupported, MemoryError, RuntimeError):  # which each cell records
        resources.session_for(ready[0].cell, ready[0].profile)


def _planned(cell: Cell, suite: Suite, resources: Resources, solved: Path | None) -> PlannedCell:
    profile = resources.profile(cell.profile)
    machine = resources.machine(profile)
    dtype, backend = settings(cell, profile)
    engines.require(cell.engine, profile.device)
    cell = dataclasses.replace(cell, profile=profile.name, dtype=dtype, backend=backend)
    missing = None
    if suite.missing == "cost":
        source = next(model.data for model in suite.models if model.name == cell.model)
        missing = resources.missing_for(cell, profile, source)
    if missing:
        cell = dataclasses.replace(cell, random_weights=True)
    weights, broken = _weights_and_data(cell, profile, resources)
    refused, budget = None, {}
    if "budget" in cell.params and not broken:
        budget = {"budget": str(budgets.parse(cell.params["budget"]))}
        cell, refused = solved_budgets.within_budget(cell, profile, resources, solved)
    provenance = keys.provenance_of(cell, weights, resources.tasks.get(cell.task))
    return PlannedCell(
        cell=cell,
        key=keys.key_of(cell, profile, machine, provenance),
        profile=profile,
        machine=machine,
        provenance=provenance | budget,  # which is no part of the key
        refused=refused,
        missing=missing,
        counted=resources.too_large(cell, profile) if missing else None,
        broken=broken,
    )


def _weights_and_data(cell: Cell, profile: Profile, resources: Resources) -> tuple[str | None, str]:
    """Return the hash of a cell's weights, and what is wrong with them or with its data."""
    broken, weights = "", None
    if cell.task != COST_ONLY and not cell.random_weights:
        try:
            resources.task(cell.task)
        except BenchError as error:
            broken = str(error)
    try:
        weights = resources.weights(cell, profile)
    except BenchError as error:
        broken = str(error)
    return weights, broken
