"""Blocks of pairs: what their interval covers, and what is taken again because of other load."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain, repeat

import numpy as np
import pytest

from bench.core.errors import BenchError
from bench.measure import blocks, load
from bench.measure.blocks import Blocks, Limits
from bench.measure.load import Snapshot
from bench.measure.timing import Block, Timing, speedup_of

WATCH = load.disturbance  # conftest.py puts a blind one in its place
LOOK = load.look


def test_a_block_halves_what_the_order_of_the_sides_does() -> None:
    # whoever runs second takes 10 % longer: pairs alone would say 1.1 and 1 / 1.1
    block = Block((10.0, 11.0), (11.0, 10.0))
    assert block.ratios == pytest.approx([1.0])


def test_the_interval_is_students_of_the_blocks() -> None:
    ratios = (1.10, 1.20, 1.30, 1.25)
    found = speedup_of([Block((r,) * 4, (1.0,) * 4) for r in ratios])  # two quadruples each
    assert found.blocks == pytest.approx(ratios)
    assert found.median == pytest.approx(1.225)
    reach = 3.182446 * np.std(np.log(ratios), ddof=1) / 2  # t of 3 degrees of freedom
    assert found.ci95 == pytest.approx((1.225 * np.exp(-reach), 1.225 * np.exp(reach)), rel=1e-6)


def test_one_block_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two blocks"):
        speedup_of([Block((1.0, 1.0), (1.0, 1.0))])


def test_the_interval_covers_what_changes_from_block_to_block() -> None:
    """Equal sides, whose ratio drifts by 2 % from block to block and by 1 % within one."""
    rng = np.random.default_rng(0)
    hits, by_pairs_alone = 0, 0
    for _ in range(400):
        drift = np.exp(rng.normal(0, 0.02, 4))
        own = []
        for factor in drift:
            a, b = np.exp(rng.normal(0, 0.01, (2, 20)))
            own.append(Block(tuple(factor * a), tuple(b)))
        found = speedup_of(own)
        hits += found.ci95[0] <= 1 <= found.ci95[1]
        ratios = [ratio for block in own for ratio in block.ratios]
        reach = 2 * np.std(np.log(ratios)) / len(ratios) ** 0.5
        by_pairs_alone += abs(np.log(found.median)) <= reach
    assert hits >= 0.93 * 400
    assert by_pairs_alone < 0.85 * 400  # what an interval of the pairs' spread would do


def test_dispersion_is_that_of_the_middle_samples() -> None:
    assert Timing(tuple(float(ms) for ms in range(1, 12))).dispersion == pytest.approx(8 / 6)


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"pairs": 7}, {"blocks": 1}, {"min_pairs": 0}])
def test_limits_that_give_no_interval_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BenchError, match="an interval needs"):
        Limits(**wrong)


def test_a_block_has_its_part_of_pairs_and_seconds() -> None:
    limits = Limits(pairs=40, min_seconds=4.0, max_seconds=8.0, min_pairs=16)
    assert limits.goes_on(3, 100.0)  # whatever the time, 16 pairs in 4 blocks
    assert not limits.goes_on(4, 2.0)
    assert limits.goes_on(9, 1.9) and limits.goes_on(10, 0.9)
    assert not limits.goes_on(10, 1.0)


# --- load --------------------------------------------------------------------------------------


def test_what_others_use_is_all_less_what_this_process_uses() -> None:
    before, after = Snapshot(10.0, 100.0, 5.0), Snapshot(12.0, 103.5, 6.5)
    assert after.others_since(before) == pytest.approx(1.0)
    assert Snapshot(12.0, 101.0, 7.0).others_since(before) == 0.0  # never below nothing


def test_a_busy_process_beside_is_seen() -> None:
    spin = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        seen = max(LOOK() for _ in range(10))
        other.kill()
    assert seen > 0.4


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


STEADY = [10.0, 10.2, 10.1, 9.9, 10.0, 10.1, 10.0, 10.0]


@pytest.mark.parametrize(
    ("busy", "samples", "usual", "words"),
    [
        (0.39, STEADY, None, None),
        (0.41, STEADY, None, "other processes kept 0.4 of 4 processors busy"),
        (0.0, [10.0, 31.0] * 4, None, "80 % of the unreduced model's times span 102 %"),
        (0.0, STEADY, 5.1, None),
        (0.0, STEADY, 4.9, "the unreduced model took 10 ms, usually 4.9"),
        (0.0, STEADY, 20.0, None),  # faster than usual is no disturbance
    ],
)
@pytest.mark.usefixtures("cores")
def test_a_timing_is_judged_by_three_signs(
    busy: float, samples: list[float], usual: float | None, words: str | None
) -> None:
    reason = WATCH(busy, samples, usual)
    assert reason is None if words is None else reason is not None and words in reason


class Machine:
    """Sides that are timed on a machine whose load is set, block by block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loads: Iterator[float]) -> None:
        self.loads, self.pauses, self.calls = loads, [], 0
        monkeypatch.setattr(load, "look", lambda: next(self.loads))
        monkeypatch.setattr(load, "disturbance", WATCH)
        monkeypatch.setattr(Snapshot, "take", lambda: Snapshot(0.0, 0.0, 0.0))
        monkeypatch.setattr(blocks.time, "sleep", self.pauses.append)

    def blocks(self, **changes: float) -> Blocks:
        def sample() -> dict[str, float]:
            self.calls += 1
            return {"pass": 10.0}

        return Blocks(sample, sample, Limits(8, min_pairs=8, warmup=0), "pass", **changes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    return lambda *loads: Machine(monkeypatch, chain(loads, repeat(0.0)))


@pytest.mark.usefixtures("cores")
def test_a_disturbed_block_is_taken_again_after_a_pause(machine: Callable[..., Machine]) -> None:
    here = machine(0.0, 3.0, 3.0)
    timing = here.blocks()
    for _ in range(4):
        timing.add()
    assert timing.attempts == 3 and here.pauses == [0.5, 1.0]
    assert timing.disturbance is None and timing.loads == [0.0] * 4
    pair = timing.paired("pass", 1, "clock")
    assert len(pair.a.samples_ms) == 8  # those of the disturbed ones are gone


@pytest.mark.usefixtures("cores")
def test_lasting_load_is_kept_and_told(machine: Callable[..., Machine]) -> None:
    here = machine(*[2.0] * 100)
    timing = here.blocks()
    for _ in range(4):
        timing.add()
    assert timing.attempts == 4 and here.pauses == [0.5, 1.0, 2.0]
    assert timing.loads == [2.0] * 4
    assert timing.disturbance == "other processes kept 2.0 of 4 processors busy"


@pytest.mark.usefixtures("cores")
def test_a_slow_baseline_is_taken_again(machine: Callable[..., Machine]) -> None:
    timing = machine().blocks(usual_ms=4.0)
    timing.add()
    assert timing.attempts == 4
    assert timing.disturbance == "the unreduced model took 10 ms, usually 4"


@pytest.mark.usefixtures("cores")
def test_who_does_not_watch_takes_a_block_once(machine: Callable[..., Machine]) -> None:
    here = machine(3.0, 3.0)
    timing = here.blocks(watched=False)
    timing.add()
    assert here.calls == 4 and not here.pauses and timing.attempts == 1


@pytest.mark.usefixtures("cores")
def test_load_during_a_block_is_seen(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = machine().blocks()
    snapshots = iter([Snapshot(0.0, 0.0, 0.0), Snapshot(1.0, 3.0, 1.0)] * 4)
    monkeypatch.setattr(Snapshot, "take", lambda: next(snapshots))
    timing.add()
    assert timing.loads == [2.0] and timing.attempts == 4
    assert timing.disturbance == "other processes kept 2.0 of 4 processors busy"


@pytest.mark.usefixtures("cores")
def test_it_is_the_baseline_that_is_judged(machine: Callable[..., Machine]) -> None:
    timing = machine().blocks(usual_ms=9.0)
    timing.sample_b = lambda: {"pass": 20.0}  # a method may well be slow
    timing.add()
    assert timing.attempts == 1 and timing.disturbance is None
    timing.sample_a = lambda: {"pass": 20.0}
    timing.add()
    assert timing.disturbance == "the unreduced model took 20 ms, usually 9"
