"""Jobs that only pretend, for the tests of who does jobs: what each does is its cell's label."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.measure import profiles
from bench.records.record import Cell
from bench.runs.cell import Measurement
from bench.runs.jobs import Done, Failure, Job
from bench.runs.measuring import failed
from bench.runs.planning import PlannedCell
from bench.runs.shards import Shard


def job(label: str, shard: Shard | None = None, task: str = "t", profile: str = "cpu") -> Job:
    """A job that does what its label says."""
    cell = Cell("s", "model", task, "tome", {}, label, profile)
    key = hashlib.sha256(label.encode()).hexdigest()
    return Job(PlannedCell(cell, key, profiles.get(profile), "m", {}), shard)


def one(*jobs: Job) -> Iterator[Job | None]:
    """Jobs as a driver hands them out."""
    yield from jobs


def pretended(job: Job, seen: dict[str, Any]) -> Done:
    """What came of a pretended job, with what its process has seen."""
    record = failed(job, Failure("ok", "pretended"), {"seen": seen}, 0.0)
    assert record.cost == Measurement().cost
    return Done(job, record)


def pretend(job: Job, tell: Callable[[str], None] = lambda what: None) -> Done:
    """Do what a label says: "sleep 3", "die FILE", "die once FILE"."""
    begun = time.time()
    word, _, rest = job.planned.cell.label.partition(" ")
    tell(word)
    if word == "sleep":
        time.sleep(float(rest.split()[0]))
    if word == "die":
        once, _, file = rest.rpartition(" ")
        times = Path(file)
        count = len(times.read_text()) if times.exists() else 0
        times.write_text("x" * (count + 1))
        if not once or count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    return pretended(job, {"gpu": gpu, "process": os.getpid(), "time": [begun, time.time()]})


def make() -> Callable[[Job, Callable[[str], None]], Done]:
    """What does jobs in a worker process."""
    return pretend


def measuring(threads: int) -> Callable[[Job, Callable[[str], None]], Done]:
    """What measures in a worker process, see `quietly`."""
    from bench.runs.executors import process

    quietly()
    return process.measuring(threads)


def quietly() -> None:
    """Have nothing disturb this process, no process be for memory, and batches be of three."""
    from bench.measure import load
    from bench.measure.memory import PeakMemory
    from bench.runs import cell, session

    cell.EVALUATION_PIXELS = 3 * 32**2
    load.look = lambda: 0.0
    load.disturbance = lambda *arguments: None  # type: ignore[assignment]
    session.peak = lambda *a, **k: PeakMemory(2, 1, 1, "fake")  # type: ignore[attr-defined]


def on_node(job: Job, board: Any) -> Done:
    """Measure on a node of a Ray cluster, see `quietly`."""
    from bench.runs.executors import on_node

    quietly()
    return on_node.do(job, board)


def pretend_on_node(job: Job, board: Any) -> Done:
    """A pretended job, on a node of a Ray cluster."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    board.begin.remote(job.name, node)
    done = pretend(job)
    assert done.record is not None
    done.record.env["seen"]["node"] = node
    return done


class Heard:
    """What a run says of its jobs."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.stages: list[str] = []
        self.notes: list[str] = []

    def begin(self, job: Job, where: str) -> None:
        self.begun.append((job.planned.cell.label, where))

    def stage(self, job: Job, what: str) -> None:
        self.stages.append(what)

    def note(self, message: str) -> None:
        self.notes.append(message)
