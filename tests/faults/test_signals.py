"""Ctrl-C, SIGTERM and SIGKILL in each phase of a run, and the run after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from commands import Server

CASES = {  # and the cells that are finished when the signal comes
    "planning-SIGTERM": 0, "loading-SIGINT": 0, "measuring-SIGTERM": 1,
    "memory-SIGTERM": 0, "memory-SIGINT": 0, "memory-SIGKILL": 0,
    "writing-SIGTERM": 1, "written-SIGKILL": 1, "report-SIGINT": 2, "report-SIGKILL": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, repo: Path, commands: Server) -> dict[str, Any]:
    places = [repo, repo / "tests", repo / "tests/faults"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    script = repo / "tests/faults/phases.py"
    done = commands.run(script, tmp_path_factory.mktemp("signals"), env=env)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", CASES)
def test_a_signal_leaves_no_child_and_loses_no_cell(name: str, cases: dict[str, Any]) -> None:
    case = cases[name]
    assert case["ended"] == ([None, 9] if name.endswith("SIGKILL") else [130, None]), case
    assert "Traceback" not in case["errors"] and not case["left"], case
    assert case["done"] == CASES[name], case
    assert case["again"] == 0 and not case["lost"] and case["cells"] == 2, case
    assert not case["litter"] and case["report"], case
