"""What is handed to whoever runs a suite, and what comes back: a job in, what was done out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.records.record import Accuracy, Cell, Cost, Record, Status
from bench.runs.planning import PlannedCell
from bench.runs.shards import Shard

RETRIES = 2  # of a job whose process or machine died
POLL_SECONDS = 1.0  # between looks at what others hold, where nothing else is to be done


@dataclass(frozen=True)
class Baseline:
    """What an earlier cell says of the unreduced model: its cost, and the host it was on.

    Of a cell with a precision also which one it is and what it scored: others are paired with it.
    """

    fingerprint: str
    cost: Cost
    scored: tuple[Cell, Accuracy] | None = None


@dataclass(frozen=True)
class Job:
    """A cell to be measured, or a shard of its accuracy.

    Attributes:
        planned: the cell.
        shard: of its accuracy; None is the cell itself.
        answers: of a cell whose accuracy was taken in shards, theirs (`Share.to_bytes`).
        baselines: what is known of the unreduced model; None where the suite has none.
        command: for the record.
    """

    planned: PlannedCell
    shard: Shard | None = None
    answers: tuple[bytes, ...] = ()
    baselines: tuple[Baseline, ...] | None = None
    command: str = ""

    @property
    def name(self) -> str:
        """A short name, of this job alone."""
        return self.planned.key[:12] + (f".{self.shard}" if self.shard else "")

    @property
    def timed(self) -> bool:
        """Whether the job times something, and wants its machine for itself."""
        planned = self.planned
        idle = planned.broken or planned.refused or planned.counted
        return self.shard is None and not idle


@dataclass(frozen=True)
class Done:
    """What came of a job.

    Attributes:
        job: which one.
        record: of a cell, however it ended; of a shard, where it has no answers.
        answers: of a shard, see `Share.to_bytes`.
        undivided: the shard's cell cannot be divided.
        where: the machine or the process that did it.
    """

    job: Job
    record: Record | None = None
    answers: bytes | None = None
    undivided: bool = False
    where: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a job has no record of its own: its process died, or took too long."""

    status: Status
    reason: str


class Watch(Protocol):
    """Told what runs where."""

    def begin(self, job: Job, where: str) -> None:
        """A job is under way."""

    def stage(self, job: Job, what: str) -> None:
        """What of the job is being done."""

    def note(self, message: str) -> None:
        """Something that is not about one job's result."""


Jobs = Iterator[Job | None]  # None: nothing at the moment, ask again later
Results = Generator[Done]  # in any order; closing it ends what still runs
Execute = Callable[[Jobs, Watch], Results]  # the seam: jobs in, records out


@dataclass
class Retries:
    """How often jobs were tried, by their names."""

    died: dict[str, int] = field(default_factory=dict)

    def again(self, job: Job) -> bool:
        """Count a death of the process that ran a job; return whether to run the job again."""
        self.died[job.name] = self.died.get(job.name, 0) + 1
        return self.died[job.name] <= RETRIES

    def failure(self, job: Job, how: str) -> Failure:
        """Return why a job is given up after its last death."""
        return Failure("failed", f"its process died {self.died[job.name]} times ({how})")


def late(seconds: float) -> Failure:
    """Return why a job that ran past its limit has no result."""
    return Failure("failed", f"ended after {seconds:g} s: its time limit (--time-limit)")


Facts = dict[str, Any]  # about a machine, as in a record's `env`
