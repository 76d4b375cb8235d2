"""What runs on a node of a cluster: what there is, planning, and jobs."""

from __future__ import annotations

import functools
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import BenchError
from bench.measure import machine as this
from bench.measure import profiles
from bench.records.sources import code_hash, library_versions
from bench.runs import checking, planning
from bench.runs.jobs import Done, Job
from bench.runs.measuring import Measurer
from bench.runs.planning import PlannedCell
from bench.runs.resources import Resources
from bench.runs.spec import Document, Options, Suite

TELL_SECONDS = 1.0  # between two things that are said of one job


@dataclass(frozen=True)
class NodeFacts:
    """What a node is.

    Attributes:
        host: its name.
        cpus, gpus: how many Ray counts.
        profile: the hardware profile that fits it.
        machines: the name of the machine under each profile that it offers.
        env: see `Record.env`.
        code: the hash of the measuring code.
        libraries: their versions.
    """

    host: str
    cpus: int
    gpus: int
    profile: str
    machines: dict[str, str]
    env: dict[str, Any]
    code: str
    libraries: dict[str, str]


@dataclass(frozen=True)
class Planned:
    """What planning on a node gave: the cells, what is missing, notes, and solved budgets."""

    cells: list[PlannedCell]
    missing: dict[str, str]
    notes: list[str]
    solved: str | None


def this_machine(workers: int | None) -> dict[str, Any]:
    """Return what a Ray of this machine offers, as arguments of `ray.init`."""
    offered = {"quiet": 1.0, "cpu": 1.0, "cpu-1-thread": 1.0}
    gpus = torch.cuda.device_count()
    if gpus:
        offered[profiles.detect().name] = 1.0
    return {"num_cpus": workers or torch.get_num_threads(), "num_gpus": gpus, "resources": offered}


def facts(offered: Sequence[str]) -> NodeFacts:
    """Return what this node is, under the profiles that it offers."""
    cpus, gpus = _counted()
    torch.set_num_threads(cpus)
    machines = {}
    for name in offered:
        profile = profiles.get(name)
        machines[name] = this.slug(profile.device, profile.threads or cpus)
    try:
        fitting = profiles.detect().name
    except BenchError:  # a GPU that no profile knows
        fitting = "cpu"
    env = this.environment("", "cuda" if gpus else "cpu", cpus)
    return NodeFacts(
        platform.node(), cpus, gpus, fitting, machines, env, code_hash(), library_versions()
    )


@functools.cache
def _counted() -> tuple[int, int]:
    """Return the processors and GPUs that Ray counts on this node."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    counted = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return max(1, int(counted.get("CPU", 1))), int(counted.get("GPU", 0))


def plan(
    suite: Suite, machine: str | None, solved: str | None, origin: Document | Options
) -> Planned | str:
    """Plan a suite as this node has it; return the cells, or what is wrong.

    Args:
        suite: of one profile.
        machine: a name for the machine; None names it after its hardware.
        solved: the file of solved budgets, where there is one.
        origin: where the suite was written.
    """
    torch.set_num_threads(_counted()[0])
    try:
        checking.check(suite, origin)
        suite, notes = planning.with_stand_ins(suite)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "budgets.json"
            if solved is not None:
                file.write_text(solved, encoding="utf-8")
            agenda = planning.plan(suite, machine, file, origin)
            for planned in agenda.cells:
                planning.check_request(planned.cell, suite, origin, agenda.resources)
            known = file.read_text(encoding="utf-8") if file.exists() else None
    except BenchError as error:
        return str(error)
    return Planned(agenda.cells, agenda.resources.missing, notes, known)


@functools.cache
def _measurer() -> Measurer:
    """What this process measures with; it keeps the model between jobs."""
    return Measurer(Resources(), alone=True)


def do(job: Job, board: Any) -> Done:
    """Do a job here, and tell the board what is being done of it."""
    cpus, gpus = _counted()
    share = cpus // gpus if gpus and not job.timed and _cuda(job) else cpus
    torch.set_num_threads(max(1, share))
    where, told = platform.node(), [0.0]
    board.begin.remote(job.name, where)

    def stage(what: str) -> None:
        if time.monotonic() - told[0] >= TELL_SECONDS:
            told[0] = time.monotonic()
            board.stage.remote(job.name, what)

    done = _measurer().do(job, stage, where)
    return replace(done, job=replace(job, answers=()))


def _cuda(job: Job) -> bool:
    return job.planned.profile.device == "cuda"
