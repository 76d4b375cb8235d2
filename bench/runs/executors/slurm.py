"""A suite as an array of Slurm jobs: ordinary runners, which share the results folder.

Each claims cells as any runner does; this process submits them, waits, and counts what they wrote.
The results folder and the project must be reachable under the same paths on every node.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError
from bench.records.files import temporary
from bench.runs.jobs import POLL_SECONDS

DEFAULT_WORKERS = 4
HOUR = 60  # minutes
TIME = {"time": "timeout_min", "timeout_min": "timeout_min"}  # as users and submitit call it
LOCAL = "local"  # the value of `cluster` that runs the array on this machine
LOGS = ".slurm"


class Array:
    """An array of jobs that all run the same function, each with its number.

    Attributes:
        folder: of submitit's files: what is run, and what it printed.
        jobs: submitit's handles.
    """

    def __init__(self, results: Path, asked: dict[str, str]) -> None:
        """Ask for the array's settings; nothing is submitted yet.

        Args:
            results: the folder that all nodes share.
            asked: Slurm's settings by name: partition, time (minutes), gpus_per_node, …; `cluster`
                is "slurm" or, for trying out, "local".

        Raises:
            BenchError: a setting is unknown, or there is no Slurm here.
        """
        import submitit

        self.folder = results / LOGS / temporary(results).name[1:].removesuffix(".tmp")
        settings: dict[str, Any] = {TIME.get(k, k): _number(v) for k, v in asked.items()}
        cluster = settings.pop("cluster", None)
        try:
            self.executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=cluster)
            settings.setdefault("timeout_min", 24 * HOUR)
            if self.executor.cluster == "slurm":  # timing needs the node for itself
                settings.setdefault("slurm_exclusive", True)
            self.executor.update_parameters(**_named(settings))
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            line = (str(error).strip().splitlines() or [""])[0]
            raise BenchError(f"--slurm: {line}") from error
        if cluster is None and self.executor.cluster != "slurm":
            raise BenchError("--on slurm: there is no sbatch here; --slurm cluster=local tries out")
        self.jobs: list[Any] = []

    def submit(self, function: Any, count: int) -> None:
        """Submit an array of so many jobs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.jobs = self.executor.map_array(function, range(count))

    def waited(self) -> Iterator[int]:
        """Yield every second, until all jobs have ended, how many run."""
        while left := [job for job in self.jobs if not job.done()]:
            yield sum(job.state.upper() == "RUNNING" for job in left)
            time.sleep(POLL_SECONDS)

    def results(self) -> list[Any]:
        """Return what the function returned in the jobs that came to their end."""
        return [job.result() for job in self.jobs if job.exception() is None]

    def failures(self) -> list[str]:
        """Return why jobs of the array themselves failed, a line each."""
        lines = []
        for job in self.jobs:
            with contextlib.suppress(Exception):
                error = job.exception()
                if error is not None:
                    said = (str(error).strip().splitlines() or [""])[-1][:200]
                    lines.append(f"job {job.job_id}: {said}")
        return lines

    def cancel(self) -> None:
        """End all jobs of the array."""
        for job in self.jobs:
            with contextlib.suppress(Exception):
                job.cancel(check=False)
        for job in self.jobs:
            with contextlib.suppress(Exception):
                job.wait()

    def clean(self) -> None:
        """Remove what submitit wrote."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


def _number(text: str) -> Any:
    return int(text) if text.isdecimal() else text


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings by submitit's names: Slurm's own begin with `slurm_`."""
    shared = {"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
    return {
        key if key in shared or key.startswith("slurm_") else f"slurm_{key}": value
        for key, value in settings.items()
    }
