"""Kill runners at random moments for a while, then count what was lost: nothing should be.

Several runners share one results folder. Each is sent SIGKILL, SIGTERM or Ctrl-C after a random
time; a suite that is complete is begun anew. In the end one runner completes it undisturbed.

    python benchmarks/faults.py --minutes 30 --runners 3

Exit code 1 where a count that should be 0 is not.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
folders: Any = importlib.import_module("folders")  # a tiny model, as a user would have one

COMMAND = ["run", "--suite", "tiny.yaml", "--results", "results", "--machine", "m"]
CELLS = 5  # of this suite
SUITE = folders.SUITE.replace("profiles:", '  - {{name: tome, budget: "80% gmacs"}}\nprofiles:')
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 900.0  # seconds after which a run that nobody disturbs counts as blocked
BAD = ("cells lost", "cells twice", "leftovers", "blocked runs", "tracebacks", "children left")


@dataclass
class Scene:
    """The folder that the runners share, and what became of it so far.

    Attributes:
        folder: holds `results`.
        dice: draws the moments.
        counts: of kills by signal, and of what went wrong.
        finished: when each cell was recorded, by its file's name.
        sessions: of all runners.
    """

    folder: Path
    dice: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    finished: dict[str, str] = field(default_factory=dict)
    sessions: list[int] = field(default_factory=list)

    @property
    def records(self) -> list[Path]:
        """The record files, whole or not."""
        return sorted(self.folder.glob("results/*/*/*.json"))

    def look(self) -> None:
        """Count cells that were finished and are lost, measured again, or not whole."""
        now = {}
        for path in self.records:
            try:
                record = json.loads(path.read_text())
            except ValueError:
                self.counts["cells lost"] += 1
                continue
            if record["status"] == "ok":
                now[path.name] = record["created"]
        self.counts["cells lost"] += len(self.finished.keys() - now.keys())
        again = [name for name, when in now.items() if self.finished.get(name, when) != when]
        self.counts["cells twice"] += len(again)
        self.counts["cells finished"] += len(now.keys() - self.finished.keys())
        self.finished = now

    def start(self) -> subprocess.Popen[str]:
        """Start a runner in a session of its own."""
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_bench.py"), *COMMAND],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.sessions.append(process.pid)
        return process

    def end(self, process: subprocess.Popen[str], patience: float) -> str:
        """Wait for a runner; return what it printed last."""
        try:
            output, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.counts["blocked runs"] += 1
            process.kill()
            output, errors = process.communicate()
        self.counts["tracebacks"] += "Traceback" in errors
        if "Traceback" in errors:
            print(errors, file=sys.stderr)
        return output

    def left(self) -> int:
        """Return how many processes of the runners' sessions are still there, after a while."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(map(_members, self.sessions)):
            time.sleep(0.2)
        return sum(map(_members, self.sessions))


def _members(session: int) -> int:
    count = 0
    for process in psutil.process_iter(["status"]):
        try:
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            count += alive and os.getsid(process.pid) == session
        except OSError:
            continue
    return count


def disturb(scene: Scene, runners: int, longest: float) -> None:
    """Start some runners and send each a signal at a moment of its own."""
    processes = [scene.start() for _ in range(runners)]
    ends = sorted((scene.dice.uniform(0.1, longest), i) for i in range(runners))
    start = time.monotonic()
    for moment, i in ends:
        time.sleep(max(0.0, start + moment - time.monotonic()))
        number = scene.dice.choice(SIGNALS)
        if processes[i].poll() is None:
            processes[i].send_signal(number)
            scene.counts[f"kills by {number.name}"] += 1
        else:
            scene.counts["runs completed"] += 1
    for process in processes:
        scene.end(process, PATIENCE)
    scene.look()


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to disturb.")] = 30.0,
    runners: Annotated[int, typer.Option(min=1, help="At the same time.")] = 3,
    longest: Annotated[
        float, typer.Option(min=0.1, help="Seconds until a runner gets its signal, at most.")
    ] = 25.0,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Disturb runners, then count."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        scene = Scene(Path(folder), random.Random(seed))
        vit, images = folders.vit(scene.folder / "vit"), folders.images(scene.folder / "images")
        (scene.folder / "tiny.yaml").write_text(SUITE.format(vit=vit, images=images))
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            disturb(scene, runners, longest)
            if len(scene.finished) == CELLS:  # begin anew
                for path in (*scene.records, scene.folder / "results/budgets.json"):
                    path.unlink()
                scene.finished = {}
                scene.counts["suites completed"] += 1
        output = scene.end(scene.start(), PATIENCE)
        scene.look()
        scene.counts["cells lost"] += CELLS - len(scene.finished)
        scene.counts["blocked runs"] += not output
        litter = [path for kind in ("*.tmp", "*.lock") for path in scene.folder.rglob(kind)]
        scene.counts["leftovers"] += len(litter)
        scene.counts["children left"] += scene.left()
        for name, count in sorted(scene.counts.items()):
            print(f"{count:6}  {name}")
        raise typer.Exit(any(scene.counts[name] for name in BAD))


if __name__ == "__main__":
    typer.run(main)
