from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folders
import pytest
import torch
from safetensors.torch import load_file

from bench.core import registry
from bench.core.errors import BenchError, Unsupported
from bench.measure.memory import PeakMemory
from bench.models import catalogue
from bench.records.record import Cell, Record
from bench.records.store import Store
from bench.runs import cell, planning, runner, session, spec
from bench.runs.runner import Summary


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suite")
    vit, images = folders.vit(root / "vit"), folders.images(root / "images")
    file = root / "tiny.yaml"
    file.write_text(folders.SUITE.format(vit=vit, images=images))
    return file


@pytest.fixture(autouse=True)
def no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))


def go(suite_file: Path, results: Path, text: str | None = None) -> Summary:
    if text is not None:
        suite_file = results.parent / "other.yaml"
        suite_file.write_text(text)
    suite, origin = spec.load(str(suite_file))
    return runner.run(suite, origin, results, machine="m", command="test", quiet=True)


def records(results: Path) -> dict[str, Record]:
    store = Store(results)
    found = {r.cell.label: r for r in store.read_all()}
    assert not store.problems
    return found


def test_a_run_measures_every_part_and_a_second_run_does_nothing(
    suite_file: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    first = go(suite_file, results)
    assert (first.cells, first.ran, first.skipped, first.failed) == (4, 4, 0, 0)
    found = records(results)
    assert list(found) == ["evit keep_rate=0.5", "none", "tome r=4", "tome r=8"]
    record = found["tome r=8"]
    assert record.status == "ok" and record.accuracy.metrics["top1"].n == 8
    assert record.cost.macs is not None and record.cost.params is not None
    assert record.cost.macs.total < record.cost.macs.baseline_total
    assert abs(record.cost.macs.closed_form / record.cost.macs.total - 1) < 0.005
    assert record.cost.tokens["vision"] == [(65, 57), (57, 49), (49, 41), (41, 33)]
    (timing,) = record.cost.latency
    assert len(timing.samples_ms) == len(timing.baseline_samples_ms) >= 5
    assert timing.speedup.ci95[0] <= timing.speedup.median <= timing.speedup.ci95[1]
    assert timing.speedup_vs_fastest is not None and timing.attention_path == "mask"
    assert timing.reduction_share is not None and 0 < timing.reduction_share < 1
    assert record.cost.memory is not None
    assert set(record.env) >= {"machine", "cpu", "python", "torch", "timm", "threads"}
    assert all(record.provenance[k] for k in ("weights", "weights_sha256", "task_version"))
    assert found["none"].cell.baseline and found["none"].cost.macs.reduction == 0  # type: ignore[union-attr]
    assert found["none"].cost.latency[0].reduction_share == 0
    stamps = {p: p.stat().st_mtime_ns for p in results.rglob("*.json")}
    second = go(suite_file, results)
    assert (second.ran, second.skipped) == (0, 4)
    assert stamps == {p: p.stat().st_mtime_ns for p in results.rglob("*.json")}


def keys(suite_file: Path) -> list[str]:
    suite, _ = spec.load(str(suite_file))
    plan = planning.plan(suite, "m")
    return [p.key for p in plan.cells]


def test_keys_follow_everything_a_result_depends_on(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(suite_file)
    assert before == keys(suite_file) and len(set(before)) == 4
    text = suite_file.read_text()
    for old, new in [
        ("limit: 8", "limit: 9"),
        ("profiles: cpu", "profiles: cpu-1-thread"),
        ("limit: 8", "limit: 8\nseed: 1"),
        ("limit: 8", "limit: 8\ndtypes: bfloat16"),
        ("batch_sizes: [1]", "batch_sizes: [2]"),
    ]:
        other = tmp_path / "tiny.yaml"
        other.write_text(text.replace(old, new))
        assert not set(keys(other)) & set(before), new
    (tmp_path / "renamed.yaml").write_text(text.replace("name: tiny", "name: other"))
    assert keys(tmp_path / "renamed.yaml") == before
    real = registry.source_hash
    monkeypatch.setattr(
        registry, "source_hash", lambda n, p=None: "new" if n == "tome" else real(n, p)
    )
    after = keys(suite_file)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, False, True]


def test_a_changed_method_is_run_again_and_replaces_its_record(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    go(suite_file, results)
    real = registry.source_hash
    monkeypatch.setattr(
        registry, "source_hash", lambda n, p=None: "new" if n == "evit" else real(n, p)
    )
    again = go(suite_file, results)
    assert (again.ran, again.skipped) == (1, 3)
    assert len(list(results.rglob("*.json"))) == 4
    assert records(results)["evit keep_rate=0.5"].provenance["method_source_sha256"] == "new"


def test_changed_weights_are_run_again(tmp_path: Path) -> None:
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    text = folders.SUITE.format(vit=vit, images=images)
    assert go(vit, tmp_path / "results", text).ran == 4
    data = bytearray((vit / "model.safetensors").read_bytes())
    data[-2] ^= 1
    (vit / "model.safetensors").write_bytes(bytes(data))
    assert go(vit, tmp_path / "results", text).ran == 4


@dataclass
class Trouble:
    """What the patched measurement raises, by the cell's label."""

    errors: dict[str, BaseException]

    def __call__(self, cell: Any, *rest: Any) -> Any:
        if cell.label in self.errors:
            raise self.errors[cell.label]
        return self.real(cell, *rest)


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    from bench.runs import cell

    patched = Trouble({})
    patched.real = cell.accuracy  # type: ignore[attr-defined]
    monkeypatch.setattr(cell, "accuracy", patched)
    yield patched


def test_failures_are_recorded_the_run_goes_on_and_they_are_tried_again(
    suite_file: Path, tmp_path: Path, trouble: Trouble
) -> None:
    results = tmp_path / "results"
    trouble.errors = {
        "none": RuntimeError("boom\nmore"),
        "tome r=4": torch.OutOfMemoryError("CUDA out of memory"),
        "tome r=8": Unsupported("not for this model"),
    }
    first = go(suite_file, results)
    assert (first.ran, first.failed, first.unsupported) == (4, 2, 1)
    found = records(results)
    assert {label: r.status for label, r in found.items()} == {
        "none": "failed",
        "tome r=4": "oom",
        "tome r=8": "unsupported",
        "evit keep_rate=0.5": "ok",
    }
    assert (found["none"].reason or "").startswith("RuntimeError: boom (test_runner.py:")
    assert found["none"].cost.macs is not None  # what was measured before is kept
    trouble.errors = {}
    second = go(suite_file, results)
    assert (second.ran, second.skipped, second.failed) == (2, 2, 0)
    assert [r.status for r in records(results).values()].count("ok") == 3


def test_a_measurement_that_is_no_number_fails_its_cell_only(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.engine.forward import runs
    from bench.runs import cell

    real = cell.count

    def nan(examples: Any, session: Any) -> Any:
        macs, tokens = real(examples, session)
        if not runs(session.loaded.model):  # the unreduced model
            object.__setattr__(macs, "reduction", float("nan"))
        return macs, tokens

    monkeypatch.setattr(cell, "count", nan)
    summary = go(suite_file, tmp_path / "results")
    assert (summary.ran, summary.failed) == (4, 1)
    assert "not a number" in (records(tmp_path / "results")["none"].reason or "")


def test_ctrl_c_ends_with_what_was_done(suite_file: Path, tmp_path: Path, trouble: Trouble) -> None:
    results = tmp_path / "results"
    trouble.errors = {"tome r=8": KeyboardInterrupt()}
    first = go(suite_file, results)
    assert first.interrupted and first.ran == 2
    assert set(records(results)) == {"none", "tome r=4"}
    assert not list(results.rglob("*.lock")) and not list(results.rglob("*.tmp"))
    trouble.errors = {}
    assert go(suite_file, results).skipped == 2


def test_a_solved_budget_runs_and_is_done_the_second_time(suite_file: Path, tmp_path: Path) -> None:
    """What is checked ahead of the cells is the budget as it was asked for, not its answer."""
    text = suite_file.read_text().replace("r: [4, 8]", "budget: 70% gmacs")
    first = go(suite_file, tmp_path / "results", text)
    assert (first.ran, first.failed) == (3, 0)
    solved = [label for label in records(tmp_path / "results") if label.startswith("tome r=")]
    assert len(solved) == 1
    assert go(suite_file, tmp_path / "results", text).skipped == 3


def test_the_wrong_model_for_a_task_is_unsupported_not_skipped(tmp_path: Path) -> None:
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    captions = folders.captions(tmp_path, images)
    text = folders.SUITE.format(vit=vit, images=images)
    text = text.replace(f"imagefolder:{images}", f"karpathy:{captions}:{images}")
    summary = go(vit, tmp_path / "results", text)
    assert (summary.ran, summary.failed, summary.unsupported) == (4, 0, 4)
    assert go(vit, tmp_path / "results", text).skipped == 4


def test_wrong_data_and_a_broken_picture_leave_the_rest_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    (images / "a" / "0.png").write_bytes(b"no picture")
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"images": [')
    file = tmp_path / "mine.yaml"
    text = folders.SUITE.format(vit=vit, images=images).replace("limit: 8", "limit: 20")
    file.write_text(text.replace("tasks: [", f'tasks: ["karpathy:{wrong}", '))
    suite, origin = spec.load(str(file))
    summary = runner.run(suite, origin, tmp_path / "results", machine="m")
    assert (summary.ran, summary.failed) == (8, 4)
    assert all("wrong.json:1: not valid JSON" in why for why in summary.reasons.values())
    good = [r for r in Store(tmp_path / "results").read_all() if r.status == "ok"]
    assert len(good) == 4 and all(r.accuracy.metrics["top1"].n == 20 for r in good)
    said = capsys.readouterr().err
    assert said.count("ok (images that did not decode and count as wrong (1): a/0.png)") == 4
    file.write_text(text.replace(f"imagefolder:{images}", f"karpathy:{wrong}"))
    suite, origin = spec.load(str(file))
    with pytest.raises(BenchError, match="wrong.json:1: not valid JSON"):  # nothing else to run
        runner.run(suite, origin, tmp_path / "more", machine="m")


def test_random_weights_give_cost_and_say_why_there_is_no_accuracy(tmp_path: Path) -> None:
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    (vit / "model.safetensors").unlink()
    text = folders.SUITE.format(vit=vit, images=images) + "random_weights: true\n"
    assert go(vit, tmp_path / "results", text).failed == 0
    record = records(tmp_path / "results")["tome r=8"]
    assert record.provenance["weights"] == "random" and record.cost.latency
    assert record.accuracy.primary is None and "random weights" in (record.accuracy.reason or "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: tome", "name: tomee", "other.yaml:5: unknown method 'tomee' — did you mean 'tome'"),
        ("r: [4, 8]", "rr: [4, 8]", "other.yaml:5: method 'tome' has no parameter 'rr'"),
        ("imagefolder:", "imagefoldr:", "other.yaml:3: unknown task 'imagefoldr:"),
        ("profiles: cpu", "profiles: gpu", "other.yaml:7: unknown profile 'gpu'"),
        ("name: tome,", "name: tome, models: [x],", "other.yaml:5: no model 'x' in this suite"),
        ("limit: 8", "limt: 8", "other.yaml:10: unknown key 'limt' — did you mean 'limit'"),
    ],
)
def test_mistakes_name_their_line_and_nothing_is_run(
    suite_file: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = suite_file.read_text()
    assert old in text
    with pytest.raises(BenchError) as error:
        go(suite_file, tmp_path / "results", text.replace(old, new))
    assert str(error.value).startswith(message)
    assert not list((tmp_path / "results").rglob("*.json"))


def test_the_summary_is_json(suite_file: Path, tmp_path: Path) -> None:
    summary = go(suite_file, tmp_path / "results")
    assert json.loads(json.dumps(summary.as_dict()))["records"].endswith("results/m/tiny")


def test_what_a_method_learned_counts_as_parameters() -> None:
    loaded = catalogue.load("embedded:vit-fashion")
    own = sum(tensor.numel() for tensor in loaded.model.parameters())
    added = {}
    for method, params in (
        ("tome", {"r": 2}),
        ("dynamicvit", {"keep_rate": 0.7}),
        ("dynamicvit", {"keep_rate": 1.0}),
    ):
        with session.apply(loaded, Cell("s", loaded.name, "cost", method, params, "", "auto")):
            found = cell.parameters(loaded.model)
        assert found.total == own + found.added
        added[method, *params.values()] = found.added
    file = catalogue.learned(loaded.name)["dynamicvit"]
    predictor = sum(tensor.numel() for tensor in load_file(file).values())
    nothing = ("tome", 2), ("dynamicvit", 1.0)
    assert added == {("dynamicvit", 0.7): predictor, **dict.fromkeys(nothing, 0)}
    parts = [{"name": "tome", "r": 2}, {"name": "dynamicvit", "keep_rate": 0.7, "predictor": file}]
    with session.apply(loaded, Cell("s", loaded.name, "cost", "compose", {"of": parts}, "", "")):
        assert cell.parameters(loaded.model).added == predictor > 0
