"""The scripts in benchmarks/ run and say what they promise; how fast things are is not tested."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml


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
        assert row["held_pct"] * 3 == pytest.approx(100 * round(row["held_pct"] * 3 / 100))
        assert row["width_pct"] > 0


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
    from bench.engine.forward import runs
    from bench.models import catalogue

    loaded = catalogue.load("embedded:vit-fashion")
    inputs = loaded.example_inputs(2)
    before = loaded.model(**inputs)
    with bench.reduced(loaded.model, calibration.Idle(), r=1):
        assert runs(loaded.model)
        assert (loaded.model(**inputs) == before).all()


@pytest.fixture
def mutants(repo: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("mutants")


def meaning(code: str) -> str:
    return ast.dump(ast.parse(code))


def test_every_fault_still_applies_and_changes_what_the_code_means(
    mutants: ModuleType, repo: Path
) -> None:
    faults = mutants.read(mutants.FAULTS)
    assert len(faults) >= 60
    for fault in faults:
        text = (repo / fault.file).read_text(encoding="utf-8")
        wrong = fault.planted(text)
        assert wrong is not None, f"{fault.file}: {fault.name}: {text.count(fault.old)} times"
        means = yaml.safe_load if fault.file.endswith(".yaml") else meaning
        assert means(wrong) != means(text), fault.name
        for test in fault.tests:
            file, _, function = test.partition("::")
            there = (repo / file).read_text(encoding="utf-8")
            assert f"def {function.partition('[')[0]}" in there, f"{fault.name}: no {test}"


TOY = """\
def double(x):
    return 2 * x

def halve(x):
    return x / 2
"""
TOY_FAULTS = """\
toy.py:
  - {name: thrice, old: 2 * x, new: 3 * x, tests: ["test_toy.py::test_double"]}
  - {name: lost, old: 2 * x, new: missing * x, tests: [test_toy.py]}
  - {name: not halved, old: x / 2, new: x, tests: [test_toy.py]}
  - {name: moved on, old: 4 * x, new: 5 * x, tests: [test_toy.py]}
  - {name: twice there, old: return, new: yield, tests: [test_toy.py]}
  - {name: no Python, old: 2 * x, new: 2 *, tests: [test_toy.py]}
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A project of two functions, of which one is tested; its faults lie beside it."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "toy.py").write_text(TOY)
    (root / "test_toy.py").write_text(
        "import toy\ndef test_double(): assert toy.double(3) == 6\n"
        "def test_halve(): assert toy.halve(0) == 0\n"
    )
    (root / ".gitignore").write_text("ignored\n")
    (root / "ignored").write_text("")
    (root / "results").mkdir()
    (root / "results" / "record.json").write_text("{}")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "toy.yaml").write_text(TOY_FAULTS)
    return root


@pytest.mark.parametrize("jobs", [1, 2])
def test_mutants_tells_what_was_noticed(
    mutants: ModuleType, toy: Path, jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end:
        mutants.main(root=toy, folder=toy.parent / "faults", as_json=True, jobs=jobs)
    assert end.value.exit_code == 1
    told = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["verdict"] for row in told["faults"]} == {
        "thrice": "killed",
        "lost": "killed",
        "not halved": "SURVIVED",
        "moved on": "STALE",
        "twice there": "STALE",
        "no Python": "STALE",
    }
    assert told["counts"] == {
        "killed": 2, "TIMEOUT": 0, "SURVIVED": 1, "STALE": 3, "UNCLEAR": 0,
    }  # fmt: skip
    assert (toy / "toy.py").read_text() == TOY


def test_mutants_prints_the_change_that_survived(
    mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = toy.parent / "faults"
    with pytest.raises(typer.Exit):
        mutants.main(root=toy, folder=faults, only="toy.py: not halved")
    assert "- x / 2\n+ x\n" in capsys.readouterr().out
    mutants.main(root=toy, folder=faults, only="thrice")  # all noticed: no exit status
    assert "1 killed, 0 TIMEOUT, 0 SURVIVED, 0 STALE, 0 UNCLEAR" in capsys.readouterr().out
    mutants.main(root=toy, folder=faults, list_them=True)
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_a_fault_that_hangs_is_noticed_and_taken_back(mutants: ModuleType, toy: Path) -> None:
    fault = mutants.Fault("endless", "toy.py", "return 2 * x", "while True: pass", ("test_toy.py",))
    assert mutants.plant(fault, toy, limit=3).verdict == "TIMEOUT"
    assert (toy / "toy.py").read_text() == TOY


def test_a_broken_pytest_is_not_taken_for_a_failing_test(
    mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "toy.py").write_text("STATUS = 0\n")
    (toy / "test_toy.py").write_text("import os, toy\nif toy.STATUS: os._exit(toy.STATUS)\n")
    tests = ("test_toy.py",)
    verdicts = [
        mutants.plant(mutants.Fault("x", "toy.py", "0", new, tests), toy, limit=60).verdict
        for new in ("3", "137", "missing")  # an internal error, no memory, no import
    ]
    assert verdicts == ["UNCLEAR", "UNCLEAR", "killed"]


def test_a_copy_is_the_working_tree_without_results(
    mutants: ModuleType, toy: Path, tmp_path: Path
) -> None:
    subprocess.run(["git", "add", "toy.py"], cwd=toy, check=True)
    (toy / "toy.py").write_text("changed = True")
    copied = mutants.copy(toy, tmp_path / "copy")
    assert {path.name for path in copied.iterdir()} == {"toy.py", "test_toy.py", ".gitignore"}
    assert (copied / "toy.py").read_text() == "changed = True"


def test_mutants_needs_tests_that_pass_and_a_list_that_can_be_read(
    mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = toy.parent / "faults"

    def fails(**options: object) -> str:
        with pytest.raises(typer.Exit) as end:
            mutants.main(root=toy, folder=faults, **options)
        assert end.value.exit_code == 2
        return capsys.readouterr().err

    assert "no fault matches 'nope': --list shows all 6" in fails(only="nope")
    assert "--only '(' is no regular expression" in fails(only="(")
    (toy / "toy.py").write_text(TOY.replace("2 * x", "4 * x"))
    assert "the tests do not pass without a fault" in fails(only="not halved")
    (faults / "odd.yaml").write_text("toy.py: [{name: x, old: a, new: b}]")
    assert "a fault of toy.py is not name, old, new, tests" in fails()
    (faults / "odd.yaml").write_text("toy.py: [{name: thrice, old: a, new: b, tests: [t]}]")
    assert "two faults are named 'thrice'" in fails()
    (faults / "odd.yaml").write_text("toy.py: [")
    assert "odd.yaml is not valid YAML" in fails()


# On a ViT at batch 1; the authors' ToMe adds 24.9.
CEILINGS = {
    "tome": 24, "crossget": 48, "evit": 18, "topk": 14, "random": 14, "tofu": 28, "pitome": 45,
    "diffrate": 45,
}  # fmt: skip


def test_methods_add_few_operators(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    operators = importlib.import_module("operators")
    operators.main(model="vit_tiny_patch16_224", methods=",".join(CEILINGS), as_json=True)
    added = {r["method"]: r["added"] for r in json.loads(capsys.readouterr().out)["rows"]}
    assert {name: count for name, count in added.items() if not 3 < count <= CEILINGS[name]} == {}
    operators.main(model="vit_tiny_patch16_224", methods="tome,downsample")
    table = capsys.readouterr().out
    assert "24.9" in table and "removes nothing inside the blocks" in table
    with pytest.raises(typer.Exit):
        operators.main(methods="tomee")
    assert "did you mean 'tome'" in capsys.readouterr().err
