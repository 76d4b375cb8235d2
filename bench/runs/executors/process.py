"""A worker process of this machine: it is given jobs through a pipe and answers through it."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil

from bench.runs.jobs import Done, Job

Do = Callable[[Job, Callable[[str], None]], Done]  # a job, told what of it is being done
Make = Callable[[], Do]

ENDING_SECONDS = 5.0  # after which a worker that was asked to end is killed


class Died(Exception):
    """A worker's process ended before its job did; `out_of_memory` if the system killed it so."""

    def __init__(self, how: str, out_of_memory: bool) -> None:
        """Say how it ended."""
        super().__init__(how)
        self.out_of_memory = out_of_memory


class Worker:
    """A process, started when it gets its first job, and again after it was ended.

    Attributes:
        where: its name.
        job: what it does; None if it is free.
        ours: this side of the pipe.
        since: when it was given its job, by `time.monotonic`.
        deadline: when the job must have ended, by the same clock.
    """

    def __init__(self, number: int, gpu: int | None, make: Make) -> None:
        """Name it; it sees one GPU alone, where it has one. `make` runs in the process, once."""
        self.where = f"process {number}" if gpu is None else f"GPU {gpu}"
        self.gpu, self.make = gpu, make
        self.job: Job | None = None
        self.since = 0.0
        self.deadline: float | None = None
        self._process: mp.process.BaseProcess | None = None
        self._ooms = 0

    def give(self, job: Job, time_limit: float | None) -> None:
        """Have the process do a job."""
        if self._process is None or not self._process.is_alive():
            self._spawn()
        self._ooms = _oom_kills()
        self.job, self.since = job, time.monotonic()
        self.deadline = None if time_limit is None else self.since + time_limit
        with contextlib.suppress(OSError):  # it died meanwhile, which `hear` finds
            self.ours.send(job)

    @property
    def late(self) -> bool:
        """Whether its job is past its deadline."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def hear(self) -> str | Done:
        """Return what it says: what of the job is being done, or what came of it.

        Raises:
            Died: it is dead.
        """
        try:
            said: str | Done = self.ours.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(said, Done) and self.job is not None:
            said = replace(said, job=self.job, where=self.where)
            self.job = self.deadline = None
        return said

    def end(self) -> None:
        """End the process, and what it started; the next job starts another."""
        process, self._process, self.job, self.deadline = self._process, None, None, None
        if process is None or process.pid is None:
            return
        children = _children(process.pid)
        process.terminate()
        process.join(ENDING_SECONDS)
        process.kill()
        process.join()
        self.ours.close()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()

    def _spawn(self) -> None:
        context = mp.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.make), name=self.where)
        with _visible(self.gpu):
            self._process.start()
        theirs.close()

    def _death(self) -> Died:
        assert self._process is not None
        self._process.join(ENDING_SECONDS)
        code = self._process.exitcode
        if _oom_kills() > self._ooms and code == -signal.SIGKILL:
            return Died("the system killed its process for want of memory", True)
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return Died(f"its process died ({how})", False)


@contextlib.contextmanager
def _visible(gpu: int | None) -> Iterator[None]:
    """Let processes that are started in the block see one GPU alone."""
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    if gpu is not None:
        seen = before.split(",") if before else []
        os.environ[name] = seen[gpu] if gpu < len(seen) else str(gpu)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif gpu is not None:
            del os.environ[name]


def _children(process: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(process).children(recursive=True))
    return []


def _oom_kills() -> int:
    """Return how many processes the system has killed for want of memory; 0 where nothing tells."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def measuring(threads: int) -> Do:
    """Return what does jobs in a worker, on so many threads."""
    import torch

    from bench.runs.measuring import Measurer
    from bench.runs.resources import Resources

    torch.set_num_threads(threads)
    return Measurer(Resources(), alone=True).do


def _serve(pipe: Connection, make: Make) -> None:
    """Run in the process: do jobs until the pipe is closed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        do = make()
        while True:
            job: Job = pipe.recv()
            done = do(job, pipe.send)
            pipe.send(replace(done, job=replace(job, answers=())))  # the driver has them


def _end_with_parent() -> None:
    """End this process, and what it started, once the driver is dead."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        for child in _children(os.getpid()):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(1)
