"""The driver of a run: claims cells, hands out their jobs, writes the records that come back."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any

from bench.records.record import COST_ONLY, Accuracy, Cost, Record
from bench.records.store import Store
from bench.runs.executors import How
from bench.runs.jobs import Baseline, Done, Job
from bench.runs.measuring import now
from bench.runs.planning import Agenda, PlannedCell
from bench.runs.progress import Display
from bench.runs.session import Session
from bench.runs.shards import Shard

MOST_WAITING = 64  # cells whose shards are done, before one of them is handed out


@dataclass
class Summary:
    """What a run did; the command line prints it as its last line."""

    suite: str
    cells: int = 0
    ran: int = 0
    skipped: int = 0
    failed: int = 0  # out of memory included
    unsupported: int = 0
    interrupted: bool = False
    records: str = ""
    report: str | None = None
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


@dataclass
class Open:
    """A cell that is claimed and not done: its shards' answers, and how many are still to come."""

    planned: PlannedCell
    claim: ExitStack
    answers: dict[int, bytes] = field(default_factory=dict)
    missing: int = 0
    failed: Record | None = None  # of a shard that has no answers


class Driver:
    """Hands out jobs and takes what comes of them; it also passes on what is said of them.

    Cells are claimed as their first job is handed out, and free again once their record is written.
    Leaving its block frees what is still claimed.
    """

    def __init__(
        self,
        store: Store,
        agenda: Agenda,
        command: str,
        display: Display,
        summary: Summary,
        how: How,
    ) -> None:
        """Nothing is handed out yet."""
        self.store, self.command, self.display, self.summary = store, command, display, summary
        self.how = how
        self.measured: list[Record] = []
        self.started = now()
        self.open: dict[str, Open] = {}  # by key
        self.ready: list[Open] = []  # whose shards are all there
        self._baselines: dict[str, list[PlannedCell]] = {}  # of the unreduced model, by session
        self._known: dict[str, Baseline] = {}
        for planned in agenda.cells:
            if planned.cell.baseline:
                self._baselines.setdefault(_session(planned), []).append(planned)

    def __enter__(self) -> Driver:
        """Hand out jobs in the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free what is claimed."""
        for cell in self.open.values():
            cell.claim.close()

    # --- jobs out ------------------------------------------------------------------------------

    def jobs(self, todo: list[PlannedCell]) -> Generator[Job | None]:
        """Yield the jobs of each cell that nobody else holds.

        Comes back to those until they are done or free; None says that there is nothing meanwhile.
        """
        waiting, told = todo, False
        while waiting or self.open:
            held = []
            for planned in waiting:
                claim = ExitStack()
                if not claim.enter_context(self._claim(planned)):
                    held.append(planned)
                elif self._taken_care_of(planned):
                    claim.close()
                    self.summary.skipped += 1
                    self.display.begin(planned.cell)
                    self.display.end("done by another runner", None)
                else:
                    yield from self._jobs_of(planned, claim)
                while len(self.ready) >= MOST_WAITING:
                    yield self._cell(self.ready.pop(0))
            if held and not told:
                told = True
                self.display.note(
                    "another runner works on these results: timings of both are disturbed by "
                    "each other"
                )
            while self.ready:
                yield self._cell(self.ready.pop(0))
            if self.open or (held and len(held) == len(waiting)):
                yield None
            waiting = held

    def _claim(self, planned: PlannedCell) -> Any:
        part = f".{self.how.shard.number}-{self.how.shard.of}" if self.how.shard else ""
        return self.store.claim(planned.cell, planned.key, planned.machine, part)

    def _taken_care_of(self, planned: PlannedCell) -> bool:
        """Whether another runner has finished the cell meanwhile, be it with a failure."""
        record = self.store.get(planned.cell, planned.key, planned.machine)
        return record is not None and (record.done or record.created >= self.started)

    def _jobs_of(self, planned: PlannedCell, claim: ExitStack) -> Iterator[Job]:
        """Yield the jobs of a cell, all but the last of one in shards."""
        cell = self.open[planned.key] = Open(planned, claim)
        if self.how.shards == 1 or not divisible(planned):
            yield self._cell(cell)
            return
        cell.missing = self.how.shards
        for number in range(1, self.how.shards + 1):
            yield Job(planned, Shard(number, self.how.shards), command=self.command)

    def _cell(self, cell: Open) -> Job:
        answers = tuple(answers for _, answers in sorted(cell.answers.items()))
        return Job(
            cell.planned,
            answers=answers,
            baselines=self._recalled(cell.planned),
            command=self.command,
        )

    def _recalled(self, planned: PlannedCell) -> tuple[Baseline, ...] | None:
        """Return what is recorded of a cell's unreduced model; None where the suite has none."""
        of_model = self._baselines.get(_session(planned))
        if of_model is None:
            return None
        for other in of_model:
            record = self.store.get(other.cell, other.key, other.machine)
            if other.key not in self._known and record is not None and record.done:
                self._known[other.key] = _baseline(record)
        return tuple(self._known[other.key] for other in of_model if other.key in self._known)

    # --- what came of them ---------------------------------------------------------------------

    def finish(self, done: Done) -> None:
        """Take what came of a job: write a cell's record, keep a shard's answers."""
        cell = self.open[done.job.planned.key]
        if done.job.shard is None:
            assert done.record is not None
            self._write(cell, done.record, done)
            return
        cell.missing -= 1
        if done.answers is not None:
            cell.answers[done.job.shard.number] = done.answers
        elif done.record is not None:
            cell.failed = cell.failed or done.record
        self.display.end("shard", None, done.job.name)
        if cell.missing:
            return
        if cell.failed is not None:
            self._write(cell, cell.failed, done)
            return
        if len(cell.answers) < done.job.shard.of:  # it cannot be divided
            cell.answers.clear()
        self.ready.append(cell)

    def _write(self, cell: Open, record: Record, done: Done) -> None:
        """Write a cell's record, and free the cell."""
        try:
            path = self.store.write(record)
        except ValueError as error:  # JSON has no NaN, and a table should have none
            reason = f"a measurement is not a number ({error})"
            empty = Accuracy(None, reason="not measured")
            record = replace(record, status="failed", reason=reason, accuracy=empty, cost=Cost())
            path = self.store.write(record)
        self.measured.append(record)
        self.summary.ran += 1
        self.summary.failed += record.status in ("failed", "oom")
        self.summary.unsupported += record.status == "unsupported"
        if record.reason:
            self.summary.reasons[path.name] = record.reason
        scored = record.accuracy
        note = scored.reason if scored.outcomes else None
        if cell.planned.missing:
            note = "costs alone"
        self.display.end(record.status, record.reason or note, done.job.name)
        del self.open[record.key]
        cell.claim.close()

    # --- what is said of them ------------------------------------------------------------------

    def begin(self, job: Job, where: str) -> None:
        """Show that a job is under way."""
        part = f", shard {job.shard}" if job.shard else ""
        self.display.begin(job.planned.cell, job.name, part, where, counts=job.shard is None)

    def stage(self, job: Job, what: str) -> None:
        """Show what of a job is being done."""
        self.display.stage(what, job.name)

    def note(self, message: str) -> None:
        """Say something that is not about one job's result."""
        self.display.note(message)


def divisible(planned: PlannedCell) -> bool:
    """Whether a cell has an accuracy that could be taken in shards, as far as its plan tells.

    One with a precision is taken whole: how many samples it needs, the first of them tell.
    """
    nothing = planned.broken or planned.refused or planned.counted or planned.missing
    whole = planned.cell.precision is not None or planned.cell.random_weights
    return not (nothing or whole or planned.cell.task == COST_ONLY)


def _session(planned: PlannedCell) -> str:
    return repr(Session.key(planned.cell, planned.profile))


def _baseline(record: Record) -> Baseline:
    cell, scored = record.cell, record.status == "ok" and record.cell.precision is not None
    pair = (cell, record.accuracy) if scored else None
    return Baseline(str(record.env.get("fingerprint")), record.cost, pair)
