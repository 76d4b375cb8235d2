"""Answers out of a record, as a server takes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import Answering, picture

from bench import tasks
from bench.cli import app
from bench.core.errors import BenchError
from bench.records.record import Accuracy, Cell, Cost, Metric, Record
from bench.runs import cell as cells
from bench.runs import submission


def record(folder: Path, task: str, version: str, outcomes: dict[str, list[object]]) -> Path:
    cell = Cell("s", "m", task, "none", {}, "none", "cpu")
    accuracy = Accuracy("accuracy", {"accuracy": Metric(50, "%", None, 1)}, outcomes, "cost only")
    whole = Record(
        "k", "ok", None, cell, accuracy, Cost(), {"task_version": version}, {}, "", "", 0
    )
    path = folder / "record.json"
    path.write_text(whole.to_json())
    return path


@pytest.fixture
def name(tmp_path: Path) -> str:
    row = {"identifier": "dev-1-0-0", "sentence": "Two dogs.", "label": "True"}
    (tmp_path / "dev.json").write_text(json.dumps(row))
    picture(tmp_path / "dev-1-0-img0.png")
    return f"nlvr2:{tmp_path}/dev.json:{tmp_path}"


def test_a_records_answers_are_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(tmp_path, name, tasks.load(name).version, {"correct": [1], "said": [True]})
    assert submission.write(made, tmp_path / "out.csv") == len("dev-1-0-0,True\n")
    assert (tmp_path / "out.csv").read_text() == "dev-1-0-0,True\n"
    monkeypatch.setattr(sys, "argv", ["run_bench.py", "submit", str(made), f"{tmp_path}/cli.csv"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code and (tmp_path / "cli.csv").is_file()
    with pytest.raises(BenchError, match="cannot write"):
        submission.write(made, tmp_path / "out.csv" / "out.csv")


def test_answers_that_only_a_server_scores(tmp_path: Path) -> None:
    rows = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "gone.png"}]
    (tmp_path / "test.json").write_text(json.dumps({"images": rows}))
    picture(tmp_path / "a.png")
    task = tasks.load(f"nocaps:{tmp_path}/test.json:{tmp_path}?tokens=plain")
    opened = SimpleNamespace(loaded=Answering("captioner", lambda *_: "a picture of a cat"))
    cell = Cell("s", "m", task.name, "none", {}, "none", "cpu")
    scored = cells.accuracy(cell, opened, task, lambda _: None)  # type: ignore[arg-type]
    assert scored.primary is None and scored.metrics == {}
    assert scored.reason and "not public" in scored.reason and "gone.png" in scored.reason
    made = record(tmp_path, task.name, task.version, scored.outcomes)
    submission.write(made, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"image_id": 7, "caption": "a cat"},
        {"image_id": 8, "caption": ""},
    ]


def test_what_cannot_be_sent_is_one_clear_line(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    said: dict[str, list[object]] = {"said": [True]}
    with pytest.raises(BenchError, match="recorded on other data"):
        submission.write(record(tmp_path, name, "older", said), out)
    with pytest.raises(BenchError, match="has no answers: cost only"):
        submission.write(record(tmp_path, name, "x", {}), out)
    with pytest.raises(BenchError, match="no format that answers are sent in"):
        submission.write(record(tmp_path, "fashion-mnist", "x", said), out)
    with pytest.raises(BenchError, match="dev.json: not a complete record"):
        submission.write(tmp_path / "dev.json", out)
    with pytest.raises(BenchError, match="cannot read"):
        submission.write(tmp_path / "none.json", out)
    assert not out.exists()
