"""Paired timing. Durations are made with busy waits of known ratio, never compared with a clock."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.core import observe
from bench.core.errors import BenchError
from bench.measure import latency, profiles
from bench.measure.latency import paired, reduction_share, utilisation
from bench.measure.timing import Timing


def busy(ms: float) -> None:
    """Use `ms` milliseconds of this process's own processor time, however loaded the machine is."""
    end = time.process_time() + ms / 1e3
    while time.process_time() < end:
        pass


class Recorder:
    """Two callables that note who ran, and under what conditions."""

    def __init__(self) -> None:
        self.calls = ""
        self.conditions: set[Any] = set()

    def side(self, name: str) -> Any:
        def run() -> None:
            self.calls += name
            self.conditions.add(
                (torch.is_inference_mode_enabled(), gc.isenabled(), torch.get_num_threads())
            )

        return run


def test_the_sides_take_turns_in_quadruples_of_each_block() -> None:
    seen = Recorder()
    result = paired(seen.side("a"), seen.side("b"), repeats=16, warmup=2)
    assert seen.calls == "abab" + "abba" * 2 + ("ab" + "abba" * 2) * 3
    assert len(result.a.samples_ms) == len(result.b.samples_ms) == 16
    assert len(result.speedup.blocks) == 4
    assert result.clock == "perf_counter"


def test_what_takes_all_the_time_there_is_warms_up_once() -> None:
    seen = Recorder()
    paired(seen.side("a"), seen.side("b"), repeats=8, min_pairs=8, warmup=3, max_seconds=0.0)
    assert seen.calls == ("ab" + "abba") * 4


def test_conditions_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    seen = Recorder()
    wanted = before + 1
    result = paired(seen.side("a"), seen.side("b"), repeats=8, threads=wanted)
    assert seen.conditions == {(True, False, wanted)}
    assert result.threads == wanted
    assert torch.get_num_threads() == before
    assert gc.isenabled() and not torch.is_inference_mode_enabled()


def test_conditions_come_back_after_an_error() -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="boom"):
        paired(fail, fail, threads=before + 1)
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_the_ratio_says_how_much_faster_b_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # a b b a: pairs of 8/2 and 1/1, 2/1 and 8/4, 6/2 and 3/1, 18/2 and 4/4
    first, *others = [(8, 2, 1, 1), (2, 1, 4, 8), (6, 2, 1, 3), (18, 2, 4, 4)]
    warmed = [ms for four in others for ms in (99, 99, *four)]  # an untimed pair ahead of a block
    durations = iter([float(ms) for ms in (*first, *warmed)])
    monkeypatch.setattr(latency, "_time_ms", lambda run, device: next(durations))
    result = paired(int, int, repeats=8, min_pairs=8, warmup=0, max_seconds=0.0)
    assert result.a.samples_ms == (8.0, 1.0, 2.0, 8.0, 6.0, 3.0, 18.0, 4.0)
    assert result.b.samples_ms == (2.0, 1.0, 1.0, 4.0, 2.0, 1.0, 2.0, 4.0)
    assert result.speedup.blocks == pytest.approx((2.0, 2.0, 3.0, 3.0))
    assert result.speedup.median == pytest.approx(2.5)


def test_a_sleep_is_timed_in_milliseconds() -> None:
    (ms,) = latency.sampler(lambda: time.sleep(0.02), "cpu")().values()
    assert 20 <= ms < 20_000  # in microseconds it would be 20,000 and more


def test_a_real_difference_is_found() -> None:
    result = paired(lambda: busy(20), lambda: busy(4), repeats=8, warmup=0)
    assert result.speedup.ci95[0] > 1


@pytest.mark.parametrize(
    ("limits", "pairs"),
    [
        ({"repeats": 20}, 24),  # whole quadruples in each of four blocks
        ({"repeats": 24}, 24),
        ({"repeats": 400, "max_seconds": 0.0}, 16),
        ({"repeats": 8, "max_seconds": 0.0}, 8),
        ({"repeats": 400, "max_seconds": 0.0, "min_pairs": 20}, 24),
    ],
)
def test_the_time_budget_stops_early_but_not_below_the_minimum(
    limits: dict[str, Any], pairs: int
) -> None:
    assert len(paired(int, int, warmup=0, **limits).a.samples_ms) == pairs


def test_min_seconds_takes_more_pairs() -> None:
    result = paired(lambda: busy(1), lambda: busy(1), repeats=8, min_seconds=0.1)
    assert len(result.a.samples_ms) > 8


@pytest.mark.parametrize("repeats", [0, 7])
def test_too_few_pairs_for_an_interval_are_an_error(repeats: int) -> None:
    with pytest.raises(BenchError, match="an interval needs two blocks"):
        paired(int, int, repeats=repeats)


def test_percentiles_and_throughput_come_from_the_samples() -> None:
    timing = Timing(tuple(float(ms) for ms in range(1, 102)))
    assert (timing.p50_ms, timing.p95_ms, timing.p99_ms) == (51.0, 96.0, 100.0)
    assert timing.throughput_per_s(8) == pytest.approx(8000 / 51)


def test_the_share_of_the_reduction_is_its_part_of_the_time() -> None:
    def run() -> None:
        busy(5)
        for observer in observe.OBSERVERS:
            observer.enter("reduction")
        busy(15)
        for observer in observe.OBSERVERS:
            observer.exit("reduction")
            observer.enter("else")
        busy(5)
        for observer in observe.OBSERVERS:
            observer.exit("else")

    # 0.6 of the work; a loaded machine takes from both parts, so the median keeps near it
    assert 0.35 < reduction_share(run, repeats=5) < 0.8
    assert observe.OBSERVERS == []


def test_nested_regions_count_once_and_no_region_is_nothing() -> None:
    watch = latency._Stopwatch("reduction", torch.device("cpu"))
    for step in (watch.enter, watch.enter, watch.exit, watch.exit):
        step("reduction")
        busy(1)
    assert len(watch.marks) == 1
    assert watch.total_ms() > 2
    assert reduction_share(lambda: busy(1), repeats=2) == 0.0


def test_utilisation_is_of_the_dense_peak_at_two_operations_a_mac() -> None:
    h100 = profiles.get("h100")
    assert h100.peak_tflops is not None
    peak = h100.peak_tflops["bfloat16"]
    macs = int(peak * 1e12 / 2 * 0.010 * 0.25)  # a quarter of the peak for 10 ms
    assert utilisation(macs, 10.0, h100, "bfloat16") == pytest.approx(0.25)
    assert utilisation(macs, 10.0, h100, "float64") is None
    assert utilisation(macs, 10.0, profiles.get("cpu"), "float32") is None


def test_a_real_reduction_takes_a_share_of_the_time_and_none_takes_none() -> None:
    import timm

    model, x = timm.create_model("test_vit").eval(), torch.rand(1, 3, 160, 160)
    assert reduction_share(lambda: model(x), repeats=2) == 0.0
    with bench.reduced(model, "tome", r=8):
        assert 0 < reduction_share(lambda: model(x), repeats=3) < 1


def speed_script() -> Any:
    """`benchmarks/speed.py`, which is a script and no part of the package."""
    path = Path(__file__).parents[1] / "benchmarks" / "speed.py"
    spec = importlib.util.spec_from_file_location("speed", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed"] = module
    spec.loader.exec_module(module)
    return module


def test_the_speed_script_compares_time_with_the_mac_bound(capsys: Any) -> None:
    setting = {"model": "test_vit", "batches": "1,2", "r": 8, "repeats": 8, "threads": 1}
    speed_script().main(**setting, methods="tome,crossget", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1
    rows = [(row["batch"], row["method"]) for row in found["rows"]]
    assert rows == [(b, name) for b in (1, 2) for name in ("harness", "tome", "crossget")]
    for row in found["rows"]:
        if row["method"] == "harness":
            assert row["mac_ratio"] == 1 and row["reduction_macs_share"] == 0
            continue
        assert row["mac_ratio"] > 1.1
        assert row["of_bound"] == pytest.approx(row["speedup"] / row["mac_ratio"])
        assert 0 < row["reduction_share"] < 1
        assert 0 < row["reduction_macs_share"] < 0.5
        assert row["pairs"] == 8


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": "test_vti"}, "test_vit"),
        ({"model": "test_vit", "methods": "tomee"}, "tome"),
        ({"model": "test_vit", "batches": "1,x"}, "such as 1,8"),
    ],
)
def test_the_speed_script_names_the_near_miss(
    wrong: dict[str, str], words: str, capsys: Any
) -> None:
    script = speed_script()
    with pytest.raises(script.typer.Exit) as stop:
        script.main(**wrong)
    assert stop.value.exit_code == 2
    assert words in capsys.readouterr().err
