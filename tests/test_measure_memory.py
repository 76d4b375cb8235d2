"""Peak memory of a fresh process: workloads of known size, and how failures are told."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.core.errors import BenchError
from bench.measure import memory

MB = 1_000_000


def build(weights_mb: int, scratch_mb: int) -> Callable[[], None]:
    """A workload that holds so much and needs so much more while it runs."""
    weights = torch.ones(weights_mb * MB // 4)

    def run() -> None:
        scratch = torch.ones(scratch_mb * MB // 4)
        scratch.add_(weights[0])

    return run


def build_wasteful() -> Callable[[], None]:
    """Building takes 300 MB for a moment, running takes nothing."""
    torch.ones(300 * MB // 4).sum()
    return lambda: None


def build_growing() -> Callable[[], None]:
    def run() -> None:
        for size_mb in range(1, 21):
            torch.ones(size_mb * MB // 4)

    return run


def build_reporting(path: Path) -> Callable[[], None]:
    def run() -> None:
        with path.open("a") as file:
            inference = torch.is_inference_mode_enabled()
            print(os.getpid(), torch.get_num_threads(), inference, file=file)

    return run


def build_broken() -> Callable[[], None]:
    raise ValueError("no such\n  model")


def build_deadly() -> Callable[[], None]:
    os._exit(7)


def build_killed() -> Callable[[], None]:
    os.kill(os.getpid(), 9)
    return lambda: None


def build_huge() -> Callable[[], object]:
    return lambda: torch.ones(10**15)


def build_slow() -> Callable[[], None]:
    return lambda: time.sleep(60)


def test_weights_and_activations_are_told_apart() -> None:
    seen = memory.peak(functools.partial(build, 60, 150))
    assert 55 * MB < seen.weights_bytes < 110 * MB
    assert 140 * MB < seen.activation_bytes < 190 * MB
    assert seen.peak_bytes > seen.weights_bytes + seen.activation_bytes
    assert "fresh process" in seen.how


def test_what_was_freed_is_not_counted_twice() -> None:
    """Many short-lived blocks of growing size, which an allocator likes to keep in pieces."""
    seen = memory.peak(build_growing)
    assert 18 * MB < seen.activation_bytes < 30 * MB


def test_each_call_starts_afresh_whatever_this_process_holds() -> None:
    ballast = torch.ones(400 * MB // 4)
    small = memory.peak(functools.partial(build, 1, 20))
    assert small.activation_bytes < 60 * MB
    assert small.weights_bytes < 60 * MB
    del ballast


def test_what_building_took_for_a_moment_is_not_a_peak() -> None:
    seen = memory.peak(build_wasteful)
    if "reset" in seen.how:
        assert seen.activation_bytes < 50 * MB
    assert seen.weights_bytes < 100 * MB


def test_the_workload_runs_twice_elsewhere_in_inference_mode(tmp_path: Path) -> None:
    log = tmp_path / "log"
    memory.peak(functools.partial(build_reporting, log), threads=3)
    first, second = (line.split() for line in log.read_text().splitlines())
    assert first == second
    pid, threads, inference = first
    assert int(pid) != os.getpid()
    assert (threads, inference) == ("3", "True")  # 1 is the default of the tests


class Allocator:
    """A GPU's, of which a workload holds 100, sets up 20 more, and needs 50 while it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = self.high = 0
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.high)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def reset(self, device: object) -> None:
        self.high = self.allocated

    def need(self, size: int) -> None:
        self.high = max(self.high, self.allocated + size)

    def build(self) -> Callable[[], None]:
        self.allocated = 100
        self.need(900)  # a checkpoint read twice, say
        return self.run

    def run(self) -> None:
        if self.allocated == 100:
            self.need(400)
            self.allocated = 120
        self.need(50)


def test_a_gpus_peak_is_of_the_second_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = memory.peak(Allocator(monkeypatch).build, device="cuda")
    assert (seen.weights_bytes, seen.activation_bytes, seen.peak_bytes) == (120, 50, 170)


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        (build_broken, r"ValueError: no such model \(test_measure_memory\.py:\d+\)"),
        (build_deadly, r"died \(exit code 7"),
        (build_killed, r"died \(killed, probably for want of memory"),
        (lambda: None, "module-level function"),
    ],
)
def test_a_failing_workload_gives_its_reason(workload: memory.Build, words: str) -> None:
    with pytest.raises(BenchError, match=words) as error:
        memory.peak(workload)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workload", [build_huge, build_killed])
def test_want_of_memory_is_told_from_other_failures(workload: memory.Build) -> None:
    with pytest.raises(memory.OutOfMemory) as error:
        memory.peak(workload)
    assert isinstance(error.value, MemoryError) and isinstance(error.value, BenchError)


def test_a_hanging_workload_is_given_up() -> None:
    with pytest.raises(BenchError, match="longer than 1.5 s"):
        memory.peak(build_slow, timeout=1.5)
    assert multiprocessing.active_children() == []
