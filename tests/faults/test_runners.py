"""Several runners on one results folder, of which one is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import folders
from commands import Server

from bench.records.store import Store

# A fresh process for memory takes seconds to start; test_cli.py has one run with all of it real.
PATCH = """
import sys, time
from pathlib import Path
from bench.runs import cell, runner, session, spec
from bench.measure import blocks
from bench.measure.memory import PeakMemory
blocks.PAUSES_S = ()  # tests run beside each other: nothing is taken again
session.peak = lambda *a, **k: PeakMemory(2, 1, 1, "fake")
real = cell.accuracy
def slow(*a):
    time.sleep(float(sys.argv[3]))
    return real(*a)
cell.accuracy = slow
suite, origin = spec.load(sys.argv[1])
summary = runner.run(suite, origin, Path(sys.argv[2]), machine="m", command="test")
print(summary.ran, summary.skipped)
"""


def test_of_three_runners_one_is_killed_and_two_share_the_rest(
    tmp_path: Path, repo: Path, commands: Server
) -> None:
    """Each cell is measured once, but for the one that was open in the runner that was killed."""
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    file, results = tmp_path / "tiny.yaml", tmp_path / "results"
    file.write_text(folders.SUITE.format(vit=vit, images=images))
    env = {**os.environ, "PYTHONPATH": str(repo)}
    slower = "0.5"  # seconds by which a cell takes longer
    runners = [commands.start("-c", PATCH, file, results, slower, env=env) for _ in range(3)]
    deadline = time.monotonic() + 300
    owners: set[str] = set()
    while not owners and time.monotonic() < deadline:  # until some runner has a cell open
        time.sleep(0.02)
        owners = {text.split()[0] for lock in results.rglob("*.lock") if (text := _read(lock))}
    (killed, *_) = [runner for runner in runners if str(runner.process) in owners]
    before = {record.cell.label: record for record in Store(results).read_all()}
    os.kill(killed.process, signal.SIGKILL)
    ended = {runner: runner.wait() for runner in runners}
    assert ended.pop(killed).returncode == -signal.SIGKILL
    assert [one.returncode for one in ended.values()] == [0, 0], ended
    counts = [tuple(map(int, one.stdout.split())) for one in ended.values()]
    assert all(ran + skipped == 4 for ran, skipped in counts)
    assert 4 - len(before) >= sum(ran for ran, _ in counts) >= 3 - len(before)
    store = Store(results)
    after = {record.cell.label: record for record in store.read_all()}
    assert len(after) == len(list(results.rglob("*.json"))) == 4 and not store.problems
    assert all(after[label] == record for label, record in before.items())
    store.clean()
    assert not list(results.rglob("*.lock")) and not list(results.rglob("*.tmp"))


def _read(lock: Path) -> str:
    try:
        return lock.read_text()
    except FileNotFoundError:  # unlocked meanwhile
        return ""
