"""Budgets of cells: solved once a results folder, for what the cell will be measured on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.core import Learner, registry
from bench.core.documents import read_json
from bench.core.errors import BenchError
from bench.core.kinds import is_adaptive
from bench.core.learner import needs_training
from bench.measure import machine
from bench.measure.profiles import Profile
from bench.models import catalogue
from bench.models.loaded import Loaded
from bench.records.files import write_atomic
from bench.records.record import EAGER, Cell, label
from bench.records.sources import family_hash, library_versions, measurement_hash
from bench.runs import budgets, shape_only
from bench.runs.cell import Examples
from bench.runs.resources import Resources
from bench.runs.session import settings, threads_of
from bench.tasks import Task


def within_budget(
    cell: Cell, profile: Profile, resources: Resources, file: Path | None
) -> tuple[Cell, str | None]:
    """Return a cell with its `budget` solved for, or as it is with the reason why not.

    Args:
        cell: with a `budget` among its parameters.
        profile: the cell's.
        resources: for its weights and its task.
        file: keeps the answers.
    """
    target = budgets.parse(cell.params["budget"])
    if target.of == "latency" and cell.engine != EAGER:
        return cell, "a latency is solved for with the eager engine: leave --engine out"
    task = resources.tasks.get(cell.task)
    if task is not None and (cell.random_weights or not _adaptive(cell)):
        task = None  # counting needs shapes alone
    known = _known(file)
    key = _key(cell, profile, target, task, resources)
    if key not in known:
        solved = {key: _solved(cell, profile, target, task, resources)}
        known = solved | _known(file)  # which other runners have added to meanwhile
        if file:
            write_atomic(file, json.dumps(known, indent=1) + "\n")
    answer = known[key]
    if "refused" in answer:
        return cell, answer["refused"]
    params = answer["params"]
    return dataclasses.replace(cell, params=params, label=label(cell.method, params)), None


def _known(file: Path | None) -> dict[str, dict[str, Any]]:
    """Return the answers in a file by key; one that is of no use is set aside, with a line."""
    if file is None or not file.exists():
        return {}
    try:
        known = read_json(file)
        if not isinstance(known, dict) or not all(map(_is_answer, known.values())):
            raise BenchError(f"{file}: not a file of solved budgets")
        return known
    except BenchError as error:
        aside = file.with_name(f"{file.name}.unreadable-{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):  # another runner was faster
            file.rename(aside)
        print(f"{error}; set aside as {aside.name}, budgets are solved anew", file=sys.stderr)
        return {}


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return isinstance(value.get("refused"), str) or isinstance(value.get("params"), dict)


def _key(
    cell: Cell, profile: Profile, target: budgets.Target, task: Task | None, resources: Resources
) -> str:
    """Return the hash of all that an answer depends on."""
    conditions: list[Any] = ["meta"]
    if target.of == "latency":
        batch = max(cell.batch_sizes or profile.batch_sizes)
        conditions = [profile.device, cell.dtype, cell.backend, batch, threads_of(profile)]
        conditions += [resources.machine(profile), machine.hardware()]
    if task is not None:
        conditions += [resources.weights(cell, profile), task.version, cell.limit]
        conditions += [cell.dtype, profile.device]
    question = [cell.model, cell.method, cell.params, conditions, registry.source_hash(cell.method)]
    question += [measurement_hash(), family_hash(catalogue.family_of(cell.model))]
    question += [library_versions()]
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def _adaptive(cell: Cell) -> bool:
    """Whether what the method keeps depends on the image."""
    method = registry.method(cell.method)
    known = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    return is_adaptive(method(**{k: v for k, v in cell.params.items() if k in known}))


def _solved(
    cell: Cell, profile: Profile, target: budgets.Target, task: Task | None, resources: Resources
) -> dict[str, Any]:
    """Solve for the budget of a cell.

    On images of `task` where there is one, else on the model's shape alone: MACs and tokens on the
    meta device, a latency on random weights.
    """
    params = {key: value for key, value in cell.params.items() if key != "budget"}
    method = registry.method(cell.method)
    needed: dict[str, Any] = {}  # what the method cannot do without, and no part of the answer
    if task is not None:
        learned = catalogue.learned(cell.model).get(cell.method)
        if learned and issubclass(method, Learner) and method.learns not in params:
            needed = {method.learns: learned}
    elif needs_training(method) and method.learns not in params:
        needed = {method.learns: "random"}
    answer = {"cell": cell.label, "model": cell.model}
    try:
        with _examples(cell, profile, target, task, resources) as (model, inputs):
            solved = budgets.solve(model, cell.method, target, inputs, {**needed, **params})
    except BenchError as error:
        return {**answer, "refused": str(error)}
    params = {key: value for key, value in solved.params.items() if key not in needed}
    return {**answer, "params": params, "percent": round(solved.percent, 2)}


@functools.lru_cache(maxsize=1)
def _on_meta(model: str) -> Loaded:
    return shape_only.on_meta(model, "float32")


@contextlib.contextmanager
def _examples(
    cell: Cell, profile: Profile, target: budgets.Target, task: Task | None, resources: Resources
) -> Iterator[tuple[Any, Any]]:
    """Give the unreduced model that a budget is solved on, and its inputs."""
    batch = max(cell.batch_sizes or profile.batch_sizes)
    timed = target.of == "latency"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if task is not None:
            session = resources.session_for(cell, profile)
            images = Examples(session.loaded, True, session.pixels(task, cell.limit))
            yield session.loaded.model, images.batch(batch) if timed else list(images.singles())
        elif timed:
            dtype, backend = settings(cell, profile)
            device = profile.device
            with torch.device(device):
                loaded = catalogue.load(
                    cell.model, random_weights=True, device=device, dtype=dtype, backend=backend
                )
                inputs = loaded.example_inputs(batch)
            yield loaded.model, inputs
        else:
            loaded = _on_meta(cell.model)
            yield loaded.model, stack.enter_context(loaded.valueless_inputs())
