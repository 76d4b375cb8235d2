"""Budgets of cells: solved once a results folder, for what the cell will be measured on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.runs import budgets
from bench.models import catalogue
from bench.core import Learner, registry
from bench.runs.cell import Examples
from bench.core.errors import BenchError
from bench.core.kinds import is_adaptive
from bench.core.learner import needs_training
from bench.records.profiles import Profile
from bench.records.record import Cell
from bench.runs.session import settings, threads_of
from bench.records.sources import library_versions, measurement_hash
from bench.records.record import label
from bench.records.store import write_atomic
from bench.tasks import Task

if TYPE_CHECKING:
    from bench.runs.planning import Plan


def within_budget(
    cell: Cell, profile: Profile, weights: str, place: list[str], plan: Plan, file: Path | None
) -> tuple[Cell, str | None]:
    """Return a cell with its `budget` solved for, or as it is with the reason why not.

    Args:
        cell: with a `budget` among its parameters.
        profile: the cell's.
        weights: the hash of the model's weights.
        place: the machine, where a latency is asked for.
        plan: for its tasks.
        file: keeps the answers.
    """
    target = budgets.parse(cell.params["budget"])
    task = plan.tasks.get(cell.task)
    on: list[Any] = ["meta"]  # counting needs shapes alone
    if target.of == "latency":
        batch = max(cell.batch_sizes or profile.batch_sizes)
        on = [profile.device, cell.dtype, cell.backend, batch, threads_of(profile), *place]
    seen = task is not None and not cell.random_weights and _adaptive(cell)
    if task is not None and seen:
        on += [weights, task.version, cell.limit, cell.dtype, profile.device]
    question = [cell.model, cell.method, cell.params, on, registry.source_hash(cell.method)]
    question += [measurement_hash(), library_versions()]
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    known = json.loads(file.read_text()) if file and file.is_file() else {}
    if key not in known:
        known[key] = _solved(cell, profile, target, task if seen else None, plan)
        if file:
            write_atomic(file, json.dumps(known, indent=1) + "\n")
    answer = known[key]
    if "refused" in answer:
        return cell, answer["refused"]
    params = answer["params"]
    return dataclasses.replace(cell, params=params, label=label(cell.method, params)), None


def _adaptive(cell: Cell) -> bool:
    """Whether what the method keeps depends on the image."""
    method = registry.method(cell.method)
    known = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    return is_adaptive(method(**{k: v for k, v in cell.params.items() if k in known}))


def _solved(
    cell: Cell, profile: Profile, target: budgets.Target, task: Task | None, plan: Plan
) -> dict[str, Any]:
    """Solve for the budget of a cell.

    On images of `task` where there is one, else on the model's shape alone: MACs and tokens on the
    meta device, a latency on random weights.
    """
    params = {key: value for key, value in cell.params.items() if key != "budget"}
    method = registry.method(cell.method)
    needed: dict[str, Any] = {}
    if task is not None:
        learned = catalogue.learned(cell.model).get(cell.method)
        if learned and issubclass(method, Learner) and method.learns not in params:
            needed = {method.learns: learned}
    elif needs_training(method) and method.learns not in params:
        needed = {method.learns: "random"}
    try:
        with _examples(cell, profile, target, task, plan) as (model, inputs):
            solved = budgets.solve(model, cell.method, target, inputs, {**needed, **params})
    except BenchError as error:
        return {"cell": cell.label, "model": cell.model, "refused": str(error)}
    params = {key: value for key, value in solved.params.items() if key not in needed}
    return {
        "cell": cell.label,
        "model": cell.model,
        "params": params,
        "percent": round(solved.percent, 2),
    }


@contextlib.contextmanager
def _examples(
    cell: Cell, profile: Profile, target: budgets.Target, task: Task | None, plan: Plan
) -> Iterator[tuple[Any, Any]]:
    """Give the unreduced model that a budget is solved on, and its inputs."""
    import torch

    from bench.runs import cost

    batch = max(cell.batch_sizes or profile.batch_sizes)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if task is not None:
            session = plan.session_for(cell, profile)
            images = Examples(session.loaded, True, session.pixels(task, cell.limit))
            timed = target.of == "latency"
            yield session.loaded.model, images.batch(batch) if timed else list(images.singles())
            return
        device, dtype, backend = "meta", "float32", "sdpa"
        if target.of == "latency":
            device, (dtype, backend) = profile.device, settings(cell, profile)
        with torch.device(device):
            loaded = catalogue.load(
                cell.model, random_weights=True, device=device, dtype=dtype, backend=backend
            )
            inputs = loaded.example_inputs(batch) if device != "meta" else None
        if inputs is None:
            inputs = stack.enter_context(cost.prompted(loaded))
        yield loaded.model, inputs
