"""Who does the jobs of a run: this machine, a Ray cluster. One seam: jobs in, records out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bench.core.errors import BenchError, near_miss
from bench.runs.jobs import Jobs, Results, Watch
from bench.runs.planning import Agenda, PlannedCell
from bench.runs.shards import MOST_SHARDS, Shard
from bench.runs.spec import Document, Options, Suite

BACKENDS = ("local", "ray", "slurm")
EXTRAS = {"ray": ("ray", "ray"), "slurm": ("submitit", "slurm")}  # module, and the extra with it


@dataclass(frozen=True)
class How:
    """Where and in which pieces a suite is run.

    Attributes:
        on: one of `BACKENDS`.
        address: of a Ray cluster; None is a Ray of this machine.
        workers: processes at once; None leaves that to the hardware.
        shards: into which each cell's accuracy is divided; 1 leaves cells whole.
        shard: the one to run, and nothing else; its answers are kept for `merge`.
        time_limit: seconds that a job may take; None is no limit.
        events: print a line of JSON for each thing that happens.
        slurm: what an array of Slurm jobs asks for: partition, time, account, …
    """

    on: str = "local"
    address: str | None = None
    workers: int | None = None
    shards: int = 1
    shard: Shard | None = None
    time_limit: float | None = None
    events: bool = False
    slurm: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise BenchError, in a line that begins with the option, for what cannot be meant."""
        if self.on not in BACKENDS:
            raise BenchError(f"--on: no backend '{self.on}'{near_miss(self.on, BACKENDS)}")
        if self.address is not None and self.on != "ray":
            raise BenchError("--address: names a Ray cluster; add --on ray")
        if not 1 <= self.shards <= MOST_SHARDS:
            raise BenchError(f"--shards: from 1 to {MOST_SHARDS:,}, not {self.shards}")
        if self.shard is not None and (self.on != "local" or self.shards != 1):
            raise BenchError("--shard: runs one shard here; leave --on and --shards out")
        if self.on == "slurm" and self.shards != 1:
            raise BenchError("--shards: the runners of an array divide cells; leave it out")
        if self.slurm and self.on != "slurm":
            raise BenchError("--slurm: says what an array asks for; add --on slurm")
        module, extra = EXTRAS.get(self.on, ("", ""))
        if module and find_spec(module) is None:
            raise BenchError(
                f"--on {self.on}: needs the extra '{extra}': pip install 'crossget-bench[{extra}]'"
            )


LOCAL = How()


def how(
    *,
    shard: str | None = None,
    slurm: Sequence[str] | None = None,
    **options: Any,
) -> How:
    """Return what the options of `run` say, by their names there.

    Raises:
        BenchError: one of them means nothing.
    """
    asked = [one.partition("=") for one in slurm or ()]
    for name, equals, value in asked:
        if not (name and equals and value):
            raise BenchError(f"--slurm: '{name}' has no value: write NAME=VALUE")
    chosen = Shard.parse(shard) if shard is not None else None
    made = How(**options, shard=chosen, slurm={name: value for name, _, value in asked})
    made.check()
    return made


class Backend(Protocol):
    """Plans a suite where its cells will be measured, and does its jobs."""

    def plan(
        self, suite: Suite, machine: str | None, solved: Path, origin: Document | Options
    ) -> Agenda:
        """Return the suite's cells, see `planning.plan`; names are checked."""

    def check(self, todo: Sequence[PlannedCell]) -> None:
        """Raise BenchError for what is a mistake in the cells that are to run."""

    def execute(self, jobs: Jobs, watch: Watch) -> Results:
        """Do jobs; yield what came of each, in any order. Closing it ends what still runs."""


@contextlib.contextmanager
def opened(how: How) -> Iterator[Backend]:
    """Give the backend that is asked for; what it started is ended behind it."""
    with _backend(how) as backend:
        yield backend


def _backend(how: How) -> AbstractContextManager[Backend]:
    if how.on == "ray":
        from bench.runs.executors import cluster

        return cluster.connected(how.address, how.workers, how.time_limit)
    from bench.runs.executors import local

    return contextlib.nullcontext(local.Local(how.workers, how.time_limit))
