"""Jobs on this machine: in this process, or in one spawned process a GPU.

With several processes a job that times something runs alone: it starts when all others have ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import torch

from bench.measure import machine as this
from bench.runs import checking, planning
from bench.runs.executors.process import Died, Make, Worker, measuring
from bench.runs.jobs import POLL_SECONDS, Done, Failure, Job, Jobs, Results, Retries, Watch, late
from bench.runs.measuring import Measurer, failed
from bench.runs.planning import Agenda, PlannedCell
from bench.runs.resources import Resources
from bench.runs.spec import Document, Options, Suite


class Local:
    """The backend of this machine."""

    def __init__(self, workers: int | None = None, time_limit: float | None = None) -> None:
        """Take so many processes at once; by default one a GPU, and on a CPU this one.

        With a limit of seconds a job always has a process of its own, which can be ended.
        """
        self.workers, self.time_limit = workers, time_limit
        self.resources, self.gpus = Resources(), False

    def plan(
        self, suite: Suite, machine: str | None, solved: Path, origin: Document | Options
    ) -> Agenda:
        """Return the suite's cells as this machine has them."""
        checking.check(suite, origin)
        self.suite, stand_ins = planning.with_stand_ins(suite)
        self.origin = origin
        agenda = planning.plan(self.suite, machine, solved, origin)
        self.resources = agenda.resources
        self.gpus = any(planned.profile.device == "cuda" for planned in agenda.cells)
        return dataclasses.replace(agenda, notes=stand_ins)

    def check(self, todo: Sequence[PlannedCell]) -> None:
        """Raise BenchError for mistakes in cells, see `planning.check`."""
        planning.check(todo, self.suite, self.resources, self.origin)

    def execute(self, jobs: Jobs, watch: Watch) -> Results:
        """Do jobs here."""
        count = self.workers or (torch.cuda.device_count() if self.gpus else 1)
        if count == 1 and self.time_limit is None:
            return in_process(jobs, watch, self.resources)
        self.resources.session = None  # the memory is for the workers
        return Pool(count, self.gpus, self.time_limit, watch).execute(jobs)


def in_process(jobs: Jobs, watch: Watch, resources: Resources) -> Results:
    """Do one job after the other in this process."""
    measurer = Measurer(resources)
    for job in jobs:
        if job is None:
            time.sleep(POLL_SECONDS)
            continue
        watch.begin(job, "")
        yield measurer.do(job, lambda what, job=job: watch.stage(job, what))  # type: ignore[misc]


class Pool:
    """Worker processes, each with a GPU of its own where there are any."""

    def __init__(
        self,
        count: int,
        gpus: bool,
        time_limit: float | None,
        watch: Watch,
        make: Make | None = None,
    ) -> None:
        """Nothing is started yet; `make` returns in a worker what does jobs there."""
        make = make or partial(measuring, torch.get_num_threads())
        self.workers = [Worker(i, i if gpus else None, make) for i in range(count)]
        self.time_limit, self.watch = time_limit, watch
        self.retries = Retries()
        self.again: deque[Job] = deque()
        self.next: Job | None = None  # pulled, and waiting for a worker or for quiet

    def execute(self, jobs: Jobs) -> Results:
        """Do jobs; ends the workers when it is closed."""
        with ExitStack() as stack:
            for worker in self.workers:
                stack.callback(worker.end)
            yield from self._work(jobs)

    def _work(self, jobs: Jobs) -> Iterator[Done]:
        more = True
        while True:
            more = self._start(jobs, more)
            busy = [worker for worker in self.workers if worker.job]
            if not busy:
                if not more and self.next is None and not self.again:
                    return
                time.sleep(POLL_SECONDS)
                continue
            for worker in self._spoke(busy):
                yield from self._heard(worker)

    def _start(self, jobs: Jobs, more: bool) -> bool:
        """Give jobs to free workers; returns whether `jobs` may have more."""
        while free := [worker for worker in self.workers if worker.job is None]:
            if self.next is None and self.again:
                self.next = self.again.popleft()
            if self.next is None and more:
                try:
                    self.next = next(jobs)
                except StopIteration:
                    more = False
            if self.next is None or not self._may_start(self.next):
                return more
            free[0].give(self.next, self.time_limit)
            self.watch.begin(self.next, free[0].where)
            self.next = None
        return more

    def _may_start(self, job: Job) -> bool:
        """Whether a job may run beside what runs: what is timed runs alone."""
        running = [worker.job for worker in self.workers if worker.job]
        return not running if job.timed else not any(other.timed for other in running)

    def _spoke(self, busy: list[Worker]) -> list[Worker]:
        """Return the workers that have something to say, died or are late, after a moment."""
        said = wait([worker.ours for worker in busy], self._patience(busy))
        return [worker for worker in busy if worker.ours in said or worker.late]

    def _patience(self, busy: list[Worker]) -> float:
        ends = [worker.deadline for worker in busy if worker.deadline is not None]
        return max(0.0, min([POLL_SECONDS, *(end - time.monotonic() for end in ends)]))

    def _heard(self, worker: Worker) -> Iterator[Done]:
        job = worker.job
        assert job is not None
        if worker.late:
            worker.end()
            yield self._given_up(worker, job, late(self.time_limit or 0.0))
            return
        try:
            said = worker.hear()
        except Died as death:
            worker.end()
            if death.out_of_memory:
                yield self._given_up(worker, job, Failure("oom", str(death)))
            elif self.retries.again(job):
                self.watch.note(f"{job.planned.cell.label}: {death}; it runs again")
                self.again.append(job)
            else:
                yield self._given_up(worker, job, self.retries.failure(job, str(death)))
            return
        if isinstance(said, str):
            self.watch.stage(job, said)
        else:
            yield said

    def _given_up(self, worker: Worker, job: Job, failure: Failure) -> Done:
        profile = job.planned.profile
        env = this.environment(job.planned.machine, profile.device, torch.get_num_threads())
        record = failed(job, failure, env, time.monotonic() - worker.since)
        return Done(job, record, where=worker.where)
