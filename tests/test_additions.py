"""What an addition costs: each test makes its files in a copy of the project and counts them.

A method, a task: one file. Another distribution adds the same by entry point, without touching the
project at all. What is added has to work through the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

METHOD = '''"""Keeps the first tokens: a baseline that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.core import Plan, Reducer, Site, register


@register("first", source="this test")
@dataclass(frozen=True)
class First(Reducer):
    """Keeps the first tokens of a sequence.

    Departures: none.
    """

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the N - r first tokens, the protected ones among them."""
        last = site.protect.long().argsort(dim=1, descending=True, stable=True)
        return Plan(last[:, : site.x.shape[1] - r].sort(1).values)
'''

TASK = '''"""Labels by a rule: is a picture of Fashion-MNIST bright?"""

from __future__ import annotations

from bench.assets import embedded
from bench.tasks import Task, task
from bench.tasks.base import hash_of
from bench.tasks.classification import Classification
from bench.tasks.pictures import Arrays


@task("bright", "classification of 2,000 images by whether they are bright")
def bright() -> Task:
    """Return the embedded images, labelled by their mean."""
    images, _ = embedded.fashion_test()
    labels = [int(image.mean() > 128) for image in images]
    return Classification("bright", hash_of(labels), Arrays(images), labels, 10)
'''


# run_bench.py, without the fresh process for memory and without taking timings again that other
# tests disturb: test_cli.py has one run with all of it real.
DRIVER = """
import runpy, sys
if "run" in sys.argv:
    from bench.measure import blocks
    from bench.measure.memory import PeakMemory
    from bench.runs import session
    blocks.PAUSES_S = ()
    session.peak = lambda *a, **k: PeakMemory(2, 1, 1, "fake")
runpy.run_path("run_bench.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Copy:
    """A copy of the project, to which things are added."""

    root: Path

    def run(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line in the copy."""
        paths = os.pathsep.join(filter(None, (str(self.root), path)))
        return subprocess.run(
            [sys.executable, "-c", DRIVER, *arguments],
            cwd=self.root, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip

    def files(self) -> dict[str, bytes]:
        """Return what the files of the project hold."""
        kept = ("bench", "methods", "crossget")
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for room in kept
            for path in (self.root / room).rglob("*.py")
        }


@pytest.fixture
def project(repo: Path, tmp_path: Path) -> Copy:
    """A copy; the assets, which are large, stay where they are."""
    root = tmp_path / "project"
    for room in ("bench", "methods", "crossget"):
        skipped = shutil.ignore_patterns("assets", "__pycache__")
        shutil.copytree(repo / room, root / room, ignore=skipped)
    (root / "bench" / "assets").symlink_to(repo / "bench" / "assets")
    shutil.copy(repo / "run_bench.py", root)
    return Copy(root)


def distribution(folder: Path, group: str, module: str, text: str) -> str:
    """Make an installed distribution with one module and one entry point; return its folder."""
    info = folder / "addition-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: addition\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {module}\n")
    return str(folder)


def measured(project: Copy, *arguments: str, path: str = "") -> dict[str, dict[str, object]]:
    """Run the embedded classifier and return its records by label."""
    done = project.run(
        "run", "--model", "embedded:vit-fashion", "--limit", "16", "--batch", "1", "--seconds",
        "0.05", "--profile", "cpu", "--machine", "m", *arguments, path=path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = (project.root / "results").rglob("*.json")
    records = [json.loads(file.read_text()) for file in files]
    return {record["cell"]["label"]: record for record in records}


def test_a_method_is_one_file(project: Copy) -> None:
    before = project.files()
    (project.root / "methods" / "first.py").write_text(METHOD)
    records = measured(project, "--method", "first", "--r", "2", "--task", "fashion-mnist")
    assert set(records) == {"none", "first r=2"}
    assert records["first r=2"]["status"] == "ok", records["first r=2"]["reason"]
    assert "Keeps the first tokens" in project.run("list", "methods").stdout
    assert set(project.files().items() ^ before.items()) == {("methods/first.py", METHOD.encode())}


def test_a_task_is_one_file(project: Copy) -> None:
    before = project.files()
    (project.root / "bench" / "tasks" / "bright.py").write_text(TASK)
    assert "whether they are bright" in project.run("list", "tasks").stdout
    records = measured(project, "--method", "none", "--task", "bright")
    assert scored(records["none"]) and "task_source_sha256" not in provenance(records["none"])
    assert set(project.files().items() ^ before.items()) == {
        ("bench/tasks/bright.py", TASK.encode())
    }


def test_a_task_of_another_distribution_is_an_entry_point(project: Copy, tmp_path: Path) -> None:
    before = project.files()
    path = distribution(tmp_path / "site", "crossget_bench.tasks", "brightness", TASK)
    assert "whether they are bright" in project.run("list", "tasks", path=path).stdout
    first = measured(project, "--method", "none", "--task", "bright", path=path)["none"]
    assert scored(first)
    # its code is no measuring code of ours: a change of it is in the key all the same
    (tmp_path / "site" / "brightness.py").write_text(TASK.replace("> 128", "> 127"))
    again = measured(project, "--method", "none", "--task", "bright", path=path)["none"]
    assert provenance(again)["task_source_sha256"] != provenance(first)["task_source_sha256"]
    assert again["key"] != first["key"] and project.files() == before
    unknown = project.run("run", "--model", "embedded:vit-fashion", "--task", "bright")
    assert unknown.returncode == 2 and "unknown task 'bright'" in unknown.stderr


def scored(record: dict[str, object]) -> bool:
    assert record["status"] == "ok", record["reason"]
    accuracy = record["accuracy"]
    return isinstance(accuracy, dict) and accuracy["metrics"]["top1"]["n"] == 16


def provenance(record: dict[str, object]) -> dict[str, str]:
    hashes = record["provenance"]
    assert isinstance(hashes, dict)
    return hashes
