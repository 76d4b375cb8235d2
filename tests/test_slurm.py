"""A suite as an array of runners, by submitit's executor of this machine.

Skipped without the extra `slurm`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import folders
import psutil
import pytest

from bench.core.errors import BenchError
from bench.records.store import Store
from bench.runs import arrays, spec
from bench.runs.executors import How

pytest.importorskip("submitit", reason="needs the extra 'slurm'")

pytestmark = pytest.mark.slow

HERE = {"cluster": "local"}


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suite")
    vit, images = folders.vit(root / "vit"), folders.images(root / "images")
    (root / "tiny.yaml").write_text(folders.SUITE.format(vit=vit, images=images))
    return root / "tiny.yaml"


def command(repo: Path, suite_file: Path, folder: Path) -> list[str]:
    places = ["--results", str(folder / "results"), "--machine", "m", "--workers", "2"]
    on = ["--on", "slurm", "--slurm", "cluster=local", "--slurm", "time=30"]
    return [sys.executable, str(repo / "run_bench.py"), "run", "--suite", str(suite_file)] + [
        *places, *on,
    ]  # fmt: skip


def test_an_array_of_two_runners_writes_every_record_once(
    repo: Path, suite_file: Path, tmp_path: Path
) -> None:
    line = command(repo, suite_file, tmp_path)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repo), *sys.path])}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["cells"], summary["ran"], summary["failed"]) == (4, 4, 0)
    records = Store(tmp_path / "results").read_all()
    assert sorted(record.cell.label for record in records) == [
        "evit keep_rate=0.5", "none", "tome r=4", "tome r=8",
    ]  # fmt: skip
    assert "2 runners submitted" in done.stderr
    assert not (tmp_path / "results" / ".slurm").exists()


def left(folder: Path) -> list[str]:
    """The processes that have to do with a folder."""
    commands = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command]


def test_ctrl_c_ends_the_array(repo: Path, suite_file: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repo), *sys.path])}
    line = command(repo, suite_file, tmp_path)
    driver = subprocess.Popen(
        line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "results").glob("*/*/*.json")) and driver.poll() is None:
        time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["interrupted"]
    deadline = time.monotonic() + 15
    while left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left(tmp_path)
    Store(tmp_path / "results").clean()
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.lock"))


def test_mistakes_are_one_line(suite_file: Path, tmp_path: Path) -> None:
    suite, origin = spec.load(str(suite_file))
    for asked, says in (
        ({**HERE, "slurm_cat": "1"}, "--slurm: "),
        ({"cluster": "slrm"}, "--slurm: "),
        ({}, "there is no sbatch here"),
    ):
        with pytest.raises(BenchError, match=says) as error:
            arrays.run(suite, origin, tmp_path, quiet=True, how=How(on="slurm", slurm=asked))
        assert len(str(error.value).splitlines()) == 1
    wrong = suite.model_copy(update={"profiles": ["h100"]})
    with pytest.raises(BenchError, match="needs a CUDA device"):  # as the runners say
        how = How(on="slurm", workers=1, slurm=HERE)
        arrays.run(wrong, origin, tmp_path, quiet=True, how=how)
