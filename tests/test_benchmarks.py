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


SMALL = {"batch": 2, "width": 32, "heads": 2, "repeats": 2, "threads": 1}


def test_matching_times_both_methods(
    matching: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    matching.main(tokens="17,40", **SMALL, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert [(row["tokens"], row["r"], row["pairs"]) for row in said["rows"]] == [
        (17, 1, 2),
        (40, 3, 2),
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
