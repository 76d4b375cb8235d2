"""A real run of two cells that gets a signal in a chosen phase; prints what became of it as JSON.

    python phases.py FOLDER

Each run is a fork of this process, which has loaded torch, in a session of its own: who is left in
that session when the run has ended is a child that it left behind.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dying
import folders
import psutil
import torch._dynamo  # noqa: F401 - in forks it would take seconds each time

import bench
from bench import report
from bench.cli import app
from bench.measure import blocks, load, memory
from bench.models import catalogue
from bench.records import files
from bench.report.figures import plots
from bench.report.page import page
from bench.runs import cell, planning, runner, session

SECONDS = 10.0  # within which a child has ended


def sleeper(started: Path) -> Callable[[], object]:
    """A workload that runs for a minute, in the fresh process that measures memory."""

    def run() -> None:
        started.touch()
        time.sleep(60)

    return run


def hit(module: Any, name: str, number: int, call: int = 1) -> None:
    """Have this process get a signal at the given call of a function."""
    real, calls = getattr(module, name), iter(range(1, 1000))

    @functools.wraps(real)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return real(*arguments, **named)

    setattr(module, name, wrapped)


def hit_memory(root: Path, number: int) -> None:
    """Have this process get a signal while its child measures memory."""
    started = root / "started"
    started.unlink(missing_ok=True)
    memory._PRELOAD = ()
    build = functools.partial(sleeper, started)
    session.peak = lambda *_, **__: memory.peak(build)  # type: ignore[attr-defined]

    def watch() -> None:
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


# Calls are counted such that the first cell is finished and the second is not, where there is one.
PHASES: dict[str, Callable[[Path, int], None]] = {
    "planning": lambda root, number: hit(planning, "_planned", number, 2),
    "loading": lambda root, number: hit(catalogue, "load", number),
    "measuring": lambda root, number: hit(cell, "accuracy", number, 2),
    "memory": hit_memory,
    "writing": lambda root, number: hit(files.os, "replace", number, 2),
    "written": lambda root, number: hit(runner.Store, "write", number, 2),
    "report": lambda root, number: hit(page, "write", number),
}


CASES = [
    *((phase, signal.SIGTERM) for phase in ("planning", "measuring", "memory", "writing")),
    *((phase, signal.SIGINT) for phase in ("loading", "memory", "report")),
    *((phase, signal.SIGKILL) for phase in ("memory", "written", "report")),
]


def run(root: Path, arguments: list[str]) -> None:
    """Run the command line as its entry point does, its output into a file."""
    sys.argv = ["run_bench.py", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as started from a terminal
    with (root / "out.txt").open("w") as sys.stdout:
        app.main()


def quiet() -> None:
    """Leave out what takes time and is no part of any phase here."""
    plots.save = lambda plot, folder: None
    blocks.PAUSES_S = ()
    load.look = lambda: 0.0
    load.disturbance = lambda *_: None  # type: ignore[assignment]
    session.peak = lambda *_, **__: memory.PeakMemory(2, 1, 1, "fake")  # type: ignore[attr-defined]


def left_behind(session_id: int) -> list[str]:
    """Return the processes of a session that are there after a while."""
    deadline = time.monotonic() + SECONDS
    while True:
        left = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            try:
                if os.getsid(process.pid) == session_id and process.info["status"] != "zombie":
                    left.append(" ".join(process.info["cmdline"] or [])[:100])
            except OSError:
                continue
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def records(results: Path) -> dict[str, str]:
    """Return when each cell was recorded, by its label, from all record files."""
    found = [json.loads(path.read_text()) for path in results.glob("*/*/*.json")]
    assert all(record["status"] == "ok" for record in found), found
    assert len({record["cell"]["label"] for record in found}) == len(found), "a cell is there twice"
    return {record["cell"]["label"]: record["created"] for record in found}


def case(root: Path, arguments: list[str], phase: str, number: int) -> dict[str, Any]:
    """Run with a signal, then once more without; return what is to be judged."""

    def prepare() -> None:
        quiet()
        PHASES[phase](root, number)

    ended = dying.forked(lambda: run(root, arguments), before=prepare, session=True)
    before = records(root / "results")
    answer = {
        "ended": [ended.code, ended.signal],
        "errors": ended.errors,
        "done": len(before),
        "left": left_behind(ended.process),
    }
    again = dying.forked(lambda: run(root, arguments), before=quiet)
    after = records(root / "results")
    litter = [path for kind in ("*.tmp", "*.lock") for path in root.rglob(kind)]
    return answer | {
        "again": again.code,
        "again_errors": again.errors,
        "lost": [label for label in before if after.get(label) != before[label]],
        "cells": len(after),
        "litter": [str(path) for path in litter],
        "report": (root / "report" / "index.html").is_file(),
    }


def main(base: Path) -> None:
    """Run every case."""
    vit, images = folders.vit(base / "vit"), folders.images(base / "images")
    quiet()
    suites = (Path(bench.__file__).parents[1] / "results").glob("*/quick")
    report.build([*suites], base / "any")
    catalogue.load(str(vit))  # all is imported, for all forks
    command = ["run", "--model", str(vit), "--task", f"imagefolder:{images}", "--method", "tome"]
    command += ["--r", "4", "--profile", "cpu", "--batch", "1", "--seconds", "0.02"]
    gc.freeze()  # or each fork's collections would copy all that was imported
    cases = {}
    for phase, number in CASES:
        root = base / f"{phase}-{number.name}"
        root.mkdir()
        places = ["--results", str(root / "results"), "--report", str(root / "report")]
        cases[root.name] = case(root, [*command, *places, "--machine", "m"], phase, number)
    print(json.dumps(cases))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
