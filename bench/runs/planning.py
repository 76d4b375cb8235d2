"""From a suite to this machine's cells, each with the key of all that its result depends on."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.runs import budgets, solving
from bench.records import machine, profiles
from bench.models import catalogue
from bench.core import registry
from bench import tasks
from bench.core import Learner
from bench.core.errors import BenchError, near_miss
from bench.models.files import check_file, hash_files
from bench.models.loading import COSTS_ALONE
from bench.records.profiles import Profile
from bench.records.record import COST_ONLY, SCHEMA, Cell
from bench.runs.session import Session, parameters, settings, threads_of
from bench.records.sources import library_versions, measurement_hash
from bench.runs.spec import Document, MethodEntry, Options, Suite, Where
from bench.tasks import Task

# what a method's entry may have beside the method's own parameters
BUDGETS = ("r", "keep_rate", "layers", "budget")


@dataclass(frozen=True)
class Planned:
    """A cell ready to run."""

    cell: Cell
    key: str
    profile: Profile
    provenance: dict[str, Any]
    refused: str | None = None  # why the cell cannot be run
    missing: str | None = None  # what its accuracy would need
    counted: str | None = None  # why it is counted from its shape alone, neither timed nor run
    broken: str = ""  # what is wrong with its data or weights


@dataclass
class Plan:
    """Cells in running order, the tasks they need, and the model that is loaded at present."""

    cells: list[Planned]
    tasks: dict[str, Task]
    session: Session | None = None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)  # by model or task: why
    bytes: dict[str, int] = dataclasses.field(default_factory=dict)  # of models' weights

    def session_for(self, cell: Cell, profile: Profile) -> Session:
        """Return the loaded model of a cell; the one before it is let go first."""
        if self.session is None or self.session.opened_for != Session.key(cell, profile):
            self.session = None
            gc.collect()
            self.session = Session.open(cell, profile)
        return self.session


def check(suite: Suite, origin: Document | Options) -> None:
    """Raise BenchError, with its line, for a name or a parameter that does not exist."""
    for i, model in enumerate(suite.models):
        random = suite.random_weights if model.random_weights is None else model.random_weights
        _at(origin, ("models", i), catalogue.check_name, model.name, random)
        for j, task in enumerate(model.tasks or []):
            if task != COST_ONLY:
                _at(origin, ("models", i, "tasks", j), tasks.check_name, task)
    for j, task in enumerate(suite.tasks):
        if task != COST_ONLY:
            _at(origin, ("tasks", j), tasks.check_name, task)
    for i, profile in enumerate(suite.profiles):
        _at(origin, ("profiles", i), profiles.load, profile)
    for i, entry in enumerate(suite.methods):
        _check_parameters(entry, i, origin)
        for j, name in enumerate(entry.models or []):
            names = [model.name for model in suite.models]
            if name not in names:
                hint = near_miss(name, names)
                raise origin.error(
                    ("methods", i, "models", j), f"no model '{name}' in this suite{hint}"
                )


def _check_parameters(entry: MethodEntry, i: int, origin: Document | Options) -> None:
    method = _at(origin, ("methods", i), registry.method, entry.name)
    known = [f.name for f in dataclasses.fields(method)]
    both = [key for key in ("r", "keep_rate") if key in (entry.model_extra or {})]
    if both and "budget" in (entry.model_extra or {}):
        message = f"method '{entry.name}' has a budget, which says what {both[0]} is: give one"
        raise origin.error(("methods", i, "budget"), message)
    for key, value in (entry.model_extra or {}).items():
        if key not in (*known, *BUDGETS):
            hint = near_miss(key, [*BUDGETS, *known, "models"])
            message = f"method '{entry.name}' has no parameter '{key}'{hint}"
            raise origin.error(("methods", i, key), message)
        if key == "budget":
            for text in value if isinstance(value, list) else [value]:
                _at(origin, ("methods", i, key), budgets.parse, text)
        for given in value if isinstance(value, list) else [value]:
            learner = issubclass(method, Learner) and key == method.learns
            if learner and isinstance(given, str):
                _at(origin, ("methods", i, key), _check_learned, method, given)


def _check_learned(method: type[Learner], given: str) -> None:
    """Let a method read what training learned for it; only the method knows if it is a file."""
    if Path(given).is_file():
        check_file(Path(given))
    method(**{method.learns: given})


def _at(origin: Document | Options, where: Where, look: Any, *arguments: Any) -> Any:
    try:
        return look(*arguments)
    except BenchError as error:
        raise origin.error(where, str(error)) from error


def plan(suite: Suite, name: str | None, solved: Path | None = None) -> tuple[Plan, dict[str, str]]:
    """Return the suite's cells with their keys, and the machine name of each profile.

    Solved budgets are kept in the file `solved`, so that the same command plans the same cells. A
    suite may say that where weights or data are out of reach the costs alone are taken.

    A cell whose data or weights are of no use is there with the reason, and fails alone.

    Raises:
        BenchError: no cell has what it needs.
    """
    found = Plan([], {})
    machines: dict[str, str] = {}
    hashes: dict[Any, str] = {}
    wrong: dict[Any, str] = {}
    for cell in suite.cells():
        profile = profiles.load(cell.profile)
        machines[profile.name] = name or machine.slug(profile.device, threads_of(profile))
        dtype, backend = settings(cell, profile)
        cell = dataclasses.replace(cell, profile=profile.name, dtype=dtype, backend=backend)
        missing = _missing(cell, profile, found, suite) if suite.missing == "cost" else None
        if missing:
            cell = dataclasses.replace(cell, random_weights=True)
        which = (cell.model, cell.random_weights, cell.seed)
        broken = ""
        if cell.task != COST_ONLY and not cell.random_weights:
            broken = _once(found.tasks, wrong, cell.task, partial(tasks.load, cell.task))
        broken = _once(hashes, wrong, which, partial(_weights, cell, profile, found)) or broken
        task = found.tasks.get(cell.task)
        refused = None
        if "budget" in cell.params and not broken:
            place = [machines[profile.name], machine.hardware()]
            cell, refused = solving.within_budget(
                cell, profile, hashes[which], place, found, solved
            )
        provenance = {
            "measurement_sha256": measurement_hash(),
            "weights_sha256": hashes.get(which),
            "method_source_sha256": registry.source_hash(cell.method, cell.params),
            "task_version": task.version if task else None,
            **_files(cell),
        }
        key = key_of(cell, profile, machines[profile.name], provenance)
        counted = _too_large(cell, profile, found) if missing else None
        found.cells.append(
            Planned(cell, key, profile, provenance, refused, missing, counted, broken)
        )
    if all(planned.broken for planned in found.cells):
        raise BenchError("; ".join(dict.fromkeys(wrong.values())))
    return found, machines


def _once(known: dict[Any, Any], wrong: dict[Any, str], key: Any, get: Callable[[], Any]) -> str:
    """Note what is asked for the first time, or what is wrong with it; return the latter."""
    if key not in known and key not in wrong:
        try:
            known[key] = get()
        except BenchError as error:
            wrong[key] = str(error)
    return wrong.get(key, "")


def _weights(cell: Cell, profile: Profile, found: Plan) -> str:
    sha = catalogue.fingerprint(cell.model, random_weights=cell.random_weights, seed=cell.seed)
    if sha is not None:
        return sha
    session = found.session_for(cell, profile)  # weights from a hub: only loading them tells
    return str(session.loaded.provenance["sha256"])


def _missing(cell: Cell, profile: Profile, found: Plan, suite: Suite) -> str | None:
    """Return what a cell's accuracy needs and is out of reach; None where all is there."""
    had = {cell.task: next(model.data for model in suite.models if model.name == cell.model)}
    needs: dict[str, Any] = {
        cell.task: lambda: found.tasks.setdefault(cell.task, tasks.load(cell.task)),
        cell.model: lambda: _fitting_weights(cell, profile, found),
    }
    for name, get in needs.items():
        if name not in found.missing and name != COST_ONLY:
            try:
                get()
                found.missing[name] = ""
            except BenchError as error:
                why = str(error).removesuffix(COSTS_ALONE)  # which is what the cell gets
                found.missing[name] = "; ".join(filter(None, (why, had.get(name))))
    return "; ".join(filter(None, (found.missing.get(name) for name in needs))) or None


def _fitting_weights(cell: Cell, profile: Profile, found: Plan) -> str:
    too_large = _too_large(cell, profile, found)
    if too_large:  # loading them would have the system kill the run
        raise BenchError(f"{cell.model}: {too_large}; use more memory or --dtype bfloat16")
    return _weights(cell, profile, found)


def _too_large(cell: Cell, profile: Profile, found: Plan) -> str | None:
    """Return why weights cannot be made up for a cell on this machine; None where they can."""
    from bench.runs import cost

    if cell.model not in found.bytes:
        loaded = cost.on_meta(cell.model, cell.dtype or "float32")
        found.bytes[cell.model] = sum(
            p.numel() * p.element_size() for p in loaded.model.parameters()
        )
    need, have = found.bytes[cell.model], machine.free_memory(profile.device)
    if need <= 0.7 * have:  # activations, and what loading holds twice
        return None
    gib = [size / 2**30 for size in (need, have)]
    return (
        f"weights of {gib[0]:.0f} GiB do not fit the {gib[1]:.0f} GiB that are free here: counted "
        "from its shape, not timed"
    )


def _files(cell: Cell) -> dict[str, str]:
    """Return the hash of the files that a cell's parameters name; nothing where they name none."""
    values = [value for _, value in sorted(parameters(cell).items())]
    named = [Path(value) for value in values if isinstance(value, str | Path)]
    files = [file for file in named if file.is_file()]
    return {"files_sha256": hash_files(files)} if files else {}


def key_of(cell: Cell, profile: Profile, machine: str, provenance: Mapping[str, str | None]) -> str:
    """Return the sha256 over everything that a result depends on; the suite's name is not.

    `provenance` holds the hashes: of the measuring code, the method's, the weights', the task's.
    """
    parts = {
        "schema": SCHEMA,
        "libraries": library_versions(),
        "machine": machine,
        "cell": {k: v for k, v in dataclasses.asdict(cell).items() if k not in ("suite", "label")},
        "profile": dataclasses.asdict(profile),
        "threads": threads_of(profile),
        **provenance,
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
