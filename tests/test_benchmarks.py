"""The scripts in benchmarks/ run and say what they promise; how fast things are is not tested."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import typer


@pytest.fixture
def matching(repo: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("matching")


SMALL = {"batch": 2, "width": 32, "heads": 2, "repeats": 8, "threads": 1}


def test_matching_times_both_methods(
    matching: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    matching.main(tokens="17,40", **SMALL, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert [(row["tokens"], row["r"], row["pairs"]) for row in said["rows"]] == [
        (17, 1, 8),
        (40, 3, 8),
    ]
    for row in said["rows"]:
        low, high = row["ratio_ci95"]
        assert row["tome_ms"] > 0 and row["crossget_ms"] > 0
        assert 0 < low <= row["ratio"] <= high
    assert set(said["growth"]) == {"tome", "crossget"}
    assert said["threads"] == 1
    matching.main(tokens="17", **SMALL)
    table = capsys.readouterr().out
    assert "crossget ms" in table and "growth" not in table  # one number of tokens has no growth


def test_matching_times_the_real_steps(matching: ModuleType) -> None:
    """Both drop `r`, and CrossGET carries its cross token, protected like the class token."""
    for name, left in (("tome", 36), ("crossget", 37)):
        x, size = matching.step(name, 40, 4, 2, width=32, heads=2, dtype=matching.torch.float32)()
        assert x.shape == (2, left, 32)
        assert size.sum(1).flatten().tolist() == [left + 4] * 2
        assert size[:, 0].flatten().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("wrong", "says"), [({"r": 9}, "cannot remove r=9 of 17"), ({"dtype": "int8"}, "dtype 'int8'")]
)
def test_matching_names_what_cannot_be(
    matching: ModuleType, wrong: dict[str, object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        matching.main(tokens="17", **SMALL, **wrong)
    assert says in capsys.readouterr().err


@pytest.fixture
def calibration(repo: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("calibration")


def test_calibration_measures_equal_things_and_the_harness(
    calibration: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"measurements": 3, "batch": 1, "seconds": 0.0, "threads": 1}
    calibration.main(**small, method="tome", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in said["rows"]] == ["A/A", "pass that removes nothing", "tome"]
    for row in said["rows"]:
        assert row["measurements"] == 3 and row["disturbed"] == 0
        assert row["held_pct"] in (0, 100 / 3, 200 / 3, 100) and row["width_pct"] > 0


def test_coverage_counts_the_intervals_that_hold_the_truth(calibration: ModuleType) -> None:
    from bench.measure.timing import Block, paired_of

    def pair(*ratios: float) -> object:
        return paired_of([Block((r, r), (1.0, 1.0)) for r in ratios], 1, "clock")

    wide, narrow = pair(0.9, 1.2, 1.0, 1.1), pair(1.10, 1.11, 1.10, 1.11)
    found = calibration.coverage("x", [(wide, False), (narrow, False), (wide, True)], 1.0)
    assert (found.measurements, found.disturbed, found.held_pct) == (3, 1, 50.0)
    assert found.spread_pct == pytest.approx(100 * 0.0998, abs=0.5)  # log 1.105


def test_what_removes_nothing_is_installed_and_changes_nothing(calibration: ModuleType) -> None:
    import bench
    from bench import cell, models

    loaded = models.load("embedded:vit-fashion")
    inputs = loaded.example_inputs(2)
    before = loaded.model(**inputs)
    with bench.reduced(loaded.model, calibration.Idle(), r=1):
        assert cell.runs(loaded.model)
        assert (loaded.model(**inputs) == before).all()
