"""Jobs as Ray's tasks: a few ahead of those that run, ended when late, run again when one died."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bench.runs.board import Board
from bench.runs.jobs import POLL_SECONDS, Done, Failure, Job, Jobs, Results, Retries, Watch, late

AHEAD = 4  # jobs handed to Ray for each processor of the cluster
MOST_AHEAD = 256  # each of which holds its cell's lock file
BOARD_SECONDS = 10.0  # after which a board that does not answer is left alone for once
DEATHS = (  # Ray's errors where a process or a node died, and with it a job or its result
    "ActorDiedError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectLostError",
    "OwnerDiedError",
    "WorkerCrashedError",
)


@dataclass(frozen=True)
class Ask:
    """What a job takes of a node: processors, GPUs, and of what else the node offers."""

    processors: float
    gpus: int = 0
    resources: dict[str, float] = field(default_factory=dict)


@dataclass
class Flight:
    """A job that Ray has; `since` when it runs, by the driver's clock, once that is known."""

    job: Job
    where: str = ""
    since: float | None = None
    late: bool = False


class Tasks:
    """Has Ray run a function on jobs.

    Attributes:
        flights: the jobs that Ray has, by what will have their results.
    """

    def __init__(
        self,
        function: Callable[[Job, Any], Done],
        ask: Callable[[Job], Ask],
        failed: Callable[[Job, Failure, str, float], Done],
        time_limit: float | None,
        watch: Watch,
    ) -> None:
        """Nothing runs yet.

        Args:
            function: of a job and the board; runs on a node.
            ask: what a job takes of its node.
            failed: what came of a job without a result: why, where, after how many seconds.
            time_limit: seconds that a job may run.
            watch: is told what runs where.
        """
        import ray  # an extra
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.function = ray, ray.remote(function)
        self.ask, self.failed, self.time_limit, self.watch = ask, failed, time_limit, watch
        here = ray.get_runtime_context().get_node_id()
        beside = NodeAffinitySchedulingStrategy(node_id=here, soft=True)
        self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=beside).remote()
        processors = ray.cluster_resources().get("CPU", 1)
        self.ahead = int(min(max(16, AHEAD * processors), MOST_AHEAD))
        self.flights: dict[Any, Flight] = {}
        self.again: deque[Job] = deque()
        self.retries = Retries()
        self._looked = 0.0

    def execute(self, jobs: Jobs) -> Results:
        """Do jobs; closing it ends what still runs."""
        more = True
        try:
            while True:
                more = self._submit(jobs, more)
                if self.flights:
                    refs, _ = self.ray.wait(list(self.flights), timeout=POLL_SECONDS)
                    self._look()
                    for ref in refs:
                        yield from self._landed(ref)
                elif not more and not self.again:
                    return
                else:
                    time.sleep(POLL_SECONDS)
        finally:
            for ref in self.flights:
                self.ray.cancel(ref, force=True)
            self.ray.kill(self.board)

    def _submit(self, jobs: Jobs, more: bool) -> bool:
        """Hand jobs to Ray, some ahead; returns whether `jobs` may have more."""
        while len(self.flights) < self.ahead:
            if self.again:
                job: Job | None = self.again.popleft()
            elif more:
                try:
                    job = next(jobs)
                except StopIteration:
                    return False
            else:
                return False
            if job is None:
                return more
            self.flights[self._remote(job)] = Flight(job)
        return more

    def _remote(self, job: Job) -> Any:
        ask = self.ask(job)
        task = self.function.options(
            num_cpus=ask.processors,
            num_gpus=ask.gpus,
            resources=ask.resources,
            max_retries=0,  # of Ray's own, which would run what is out of memory again
            name=job.name,
        )
        return task.remote(job, self.board)

    def _look(self) -> None:
        """Read the board, and end what is late; every second."""
        if time.monotonic() - self._looked < POLL_SECONDS:
            return
        self._looked = time.monotonic()
        flights = {flight.job.name: flight for flight in self.flights.values()}
        try:
            news = self.ray.get(self.board.read.remote(), timeout=BOARD_SECONDS)
        except self.ray.exceptions.RayError:
            news = []
        for kind, name, what in news:
            flight = flights.get(name)
            if flight is None:
                continue
            if kind == "begin":
                flight.where, flight.since = what, time.monotonic()
                self.watch.begin(flight.job, what)
            else:
                self.watch.stage(flight.job, what)
        self._end_late()

    def _end_late(self) -> None:
        for ref, flight in self.flights.items():
            if self.time_limit is None or flight.since is None or flight.late:
                continue
            if time.monotonic() - flight.since > self.time_limit:
                flight.late = True
                self.ray.cancel(ref, force=True)

    def _landed(self, ref: Any) -> Iterator[Done]:
        """Yield what came of a job, unless it runs again."""
        flight = self.flights.pop(ref)
        try:
            done = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            failure = self._failure(flight, error)
        else:
            if flight.since is None:  # it was faster than its news
                self.watch.begin(flight.job, done.where)
            yield replace(done, job=flight.job)
            return
        if failure is None:
            place = f" on {flight.where}" if flight.where else ""
            self.watch.note(f"{flight.job.planned.cell.label}: died{place}; it runs again")
            self.again.append(flight.job)
            return
        seconds = time.monotonic() - (flight.since or time.monotonic())
        yield self.failed(flight.job, failure, flight.where, seconds)

    def _failure(self, flight: Flight, error: Exception) -> Failure | None:
        """Return why a job has no result; None where it is to run again."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if flight.late:
            return late(self.time_limit or 0.0)
        if "OutOfMemoryError" in kinds:
            return Failure("oom", "Ray ended its process for want of memory on the node")
        if kinds & set(DEATHS):
            again = self.retries.again(flight.job)
            return None if again else self.retries.failure(flight.job, type(error).__name__)
        lines = str(error).strip().splitlines() or [""]
        return Failure("failed", f"{type(error).__name__}: {lines[-1][:300]}")
