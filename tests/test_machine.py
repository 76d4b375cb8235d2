"""What a record says of the machine it was made on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.measure import machine


def test_free_memory_is_what_is_available_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable: 300 kB\n")
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / Path(name).name)
    assert machine.free_memory("cpu") == 300 * 1024


def test_threads_tell_machines_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_name", lambda: "AMD EPYC 7B13")
    assert machine.slug("cpu", 2) == "cpu-amd-epyc-7b13-2t"
    assert machine.slug("cpu", 16) == "cpu-amd-epyc-7b13-16t"
    monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA H200")
    assert machine.slug("cuda", 16) == "nvidia-h200"


def test_what_was_measured_on_the_cpu_names_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA H200")
    cpu, cuda = (machine.environment("m", device, 3) for device in ("cpu", "cuda"))
    assert (cpu["gpu"], cuda["gpu"]) == (None, "NVIDIA H200")
    assert cpu["threads"] == 3 and cpu["machine"] == "m" and cpu["torch"]


def test_a_changed_checkout_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bench" / "records" / "machine.py"
    monkeypatch.setattr(machine, "__file__", str(file))
    state = machine.git_state.__wrapped__
    assert state() is None
    file.parent.mkdir(parents=True)
    file.write_text("one")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    record = tmp_path / "results" / "record.json"
    record.parent.mkdir()
    record.write_text("{}")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "--short", "HEAD")
    assert state() == commit
    record.write_text("[]")  # a run itself writes records
    assert state() == commit
    file.write_text("two")
    assert state() == commit + "+"
