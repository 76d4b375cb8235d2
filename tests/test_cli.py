"""The command line as a user meets it: one real run, and one clear line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import folders
import pytest

from bench.cli import app


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `run_bench.py ARGUMENTS` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["run_bench.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_a_run_with_its_report_then_nothing_left_to_do(
    repo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Everything real, the fresh process for memory included; the second run in this process."""
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    command = [
        "run", "--model", str(vit), "--task",
        f"imagefolder:{images}", "--method", "tome", "--r", "4", "--profile", "cpu", "--batch",
        "1", "--seconds", "0.05", "--report", "report", "--machine", "m",
    ]  # fmt: skip
    first = subprocess.run(
        [sys.executable, str(repo / "run_bench.py"), *command],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout.splitlines()[-1])
    assert (summary["ran"], summary["failed"]) == (2, 0)
    scores = [line.split() for line in first.stderr.splitlines() if " top1 " in line]
    assert [line[-1] for line in scores][0] == "–"  # of the unreduced model, no speed-up
    assert "GMACs" in first.stderr and "× at 1" in first.stderr and len(scores) == 2
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *command) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["ran"], again["skipped"]) == (0, 2)
    written = sorted((tmp_path / "results" / "m").rglob("*.json"))
    assert len(written) == 2
    record = json.loads(written[-1].read_text())
    assert record["cost"]["memory"]["peak_bytes"] > record["cost"]["memory"]["weights_bytes"] > 0
    assert record["accuracy"]["metrics"]["top1"]["n"] > 0
    assert "tome" in (tmp_path / "report" / "report.md").read_text()
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    there = ("--results", "elsewhere", "--suite", "custom", "--format", "csv")
    assert call(monkeypatch, "report", *there) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--model", "embedded:vit-fashion", "--method", "tomme"], "did you mean 'tome'"),
        (["run", "--model", "embedded:vit-fashon"], "did you mean 'embedded:vit-fashion'"),
        (["run", "--model", "embedded:vit-fashion", "--task", "fashion-mnits"], "did you mean"),
        (["run", "--suite", "quik"], "did you mean 'quick'"),
        (["run", "--suite", "quick", "--profile", "h10"], "did you mean 'h100'"),
        (["run", "--suite", "quick", "--profile", "h100"], "needs a CUDA device"),
        (["run", "--suite", "quick", "--results", "/dev/null/here"], "/dev/null/here"),
        (["run", "--model", "./no-such-folder"], "no-such-folder"),
        (["run", "--sweet", "quick"], "--sweet"),
        (["report", "/no/such/results"], "/no/such/results"),
        (["list", "method"], "method"),
        (["train", "vit-fashion"], "python -m recipes"),
    ],
)
def test_mistakes_are_one_clear_line_and_exit_2(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not out


def test_a_wrong_suite_key_names_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("models: [embedded:vit-fashion]\nmethds: [tome]\n")
    assert call(monkeypatch, "run", "--suite", str(file)) == 2
    assert "mine.yaml:2: " in capsys.readouterr().err


def test_truncated_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = folders.vit(tmp_path / "vit") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()  # what saving the model printed
    assert call(monkeypatch, "run", "--model", str(weights.parent)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model.safetensors" in line


@pytest.mark.parametrize("what", ["methods", "models", "tasks", "suites", "profiles"])
def test_lists_are_json_where_asked(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "list", what, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all({"name", "summary"} <= row.keys() for row in rows)


@pytest.mark.parametrize(
    "name",
    ["", "run", "report", "compare", "leaderboard", "recheck"]
    + ["cost", "estimate", "check", "train"],
)
def test_help_shows_each_example_on_a_line_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *name.split(), "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    start = [line.strip() for line in lines].index("Examples:") + 1
    examples = lines[start : lines.index("", start)]
    assert examples and all("run_bench.py" in line or "--" in line for line in examples)
    assert examples[0].count("run_bench.py") == 1
