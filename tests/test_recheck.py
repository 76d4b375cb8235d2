"""Measuring somebody's records again: what agrees, what does not, and what cannot be told here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_leaderboard import cell, env, honest, keyed, macs, scored, timing
from test_report import synthetic

from bench.core.errors import BenchError
from bench.records import audit
from bench.records.record import Record, Stop
from bench.records.store import Store
from bench.runs import agreement, recheck, runner
from bench.runs.driving import Summary
from bench.runs.spec import Options, Suite, parse


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A record of a tiny cell, taken here and said to be of another processor."""
    root = tmp_path_factory.mktemp("measured")
    suite = parse(
        {
            "name": "theirs",
            "models": [{"name": "embedded:vit-fashion", "baseline": False}],
            "tasks": ["fashion-mnist"],
            "methods": [{"name": "tome", "r": [[2, 1] * 6]}],
            "profiles": ["cpu-1-thread"],
            "limit": 40,
            "batch_sizes": [1],
            "latency_seconds": 0.1,
        },
        Options(),
    )
    runner.run(suite, Options(), root, command="run_bench.py run --suite theirs.yaml", quiet=True)
    (path,) = Store(root).paths()
    return replace(audit.audit_file(path), env=audit.audit_file(path).env | {"cpu": "Another"})


def forged(one: Record) -> Record:
    """The record with thirty better answers, and all that follows from them."""
    ranks = [0] * 30 + one.accuracy.outcomes["rank"][30:]
    outcomes = {"correct": [int(rank == 0) for rank in ranks], "rank": ranks}
    return replace(one, accuracy=scored(replace(one.accuracy, outcomes=outcomes)))


def done(records: list[Record], folder: Path) -> recheck.Report:
    for one in records:
        Store(folder / "results").write(one)
    passed = audit.audit_all(folder / "results")
    return recheck.recheck(passed, 5, 1, folder / "out", lambda line: None)


def test_an_honest_record_agrees(measured: Record, tmp_path: Path) -> None:
    assert audit.unchecked(measured) == []  # the key of a run is what its record gives
    report = done([measured], tmp_path)
    (check,) = report.checks
    assert (report.verdict, check.state, check.why, check.versions) == ("agrees", "agrees", [], [])
    assert any(note.startswith("top1: ") and "0 of 40 differ" in note for note in check.notes)
    assert "timings not compared: another kind of machine" in check.notes
    text = (tmp_path / "out" / "recheck.md").read_text(encoding="utf-8")
    assert text.startswith("# Recheck: agrees") and check.sha256[:12] in text
    assert "drawn with seed 1" in text and "host " in text and "commit " in text
    written = json.loads((tmp_path / "out" / "recheck.json").read_text(encoding="utf-8"))
    assert written["verdict"] == "agrees" and written["machine"]["fingerprint"]


def test_a_record_that_was_forged_throughout_disagrees(
    measured: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.audit(forged(measured))  # which no audit can see
    monkeypatch.setattr(recheck, "again", lambda one: measured)
    report = done([forged(measured)], tmp_path)
    assert report.verdict == "disagrees"
    assert report.checks[0].why[0].startswith("top1: ")


def test_what_cannot_run_here_is_no_agreement(
    measured: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = keyed(env(gpu="NVIDIA H100")(cell(profile="h100")(measured)))
    gone = keyed(cell(model="embedded:vit-gone")(measured))
    weights = replace(measured, provenance=measured.provenance | {"weights_sha256": "ab" * 32})
    report = done([gpu, gone], tmp_path)
    assert report.verdict == "not rechecked"
    assert {check.state for check in report.checks} == {"not rechecked"}
    reasons = " ".join(why for check in report.checks for why in check.why)
    assert "measured on cuda, and here is cpu" in reasons and "vit-gone" in reasons

    def run(suite: Suite, origin: Options, folder: Path, **how: Any) -> Summary:
        Store(folder).write(measured)
        return Summary(suite.name)

    monkeypatch.setattr(runner, "run", run)
    with pytest.raises(BenchError, match="the weights are others here"):
        recheck.again(keyed(weights))


def test_the_sample_is_drawn_from_what_worked(measured: Record) -> None:
    records = {Path(f"{i}"): measured for i in range(20)}
    records[Path("failed")] = replace(measured, status="failed")
    drawn = recheck.sampled(records, 5, 3)
    assert drawn == recheck.sampled(records, 5, 3) != recheck.sampled(records, 5, 4)
    assert len(set(drawn)) == 5
    assert len(recheck.sampled(records, 50, 3)) == 20 and Path("failed") not in drawn


def test_ctrl_c_leaves_what_is_done(
    measured: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Record] = []

    def again(one: Record) -> Record:
        calls.append(one)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return one

    monkeypatch.setattr(recheck, "again", again)
    others = [keyed(cell(seed=seed)(measured)) for seed in (1, 2)]
    report = done([measured, *others], tmp_path)
    assert report.interrupted and [check.state for check in report.checks] == ["agrees"]
    assert "interrupted" in (tmp_path / "out" / "recheck.md").read_text(encoding="utf-8")


# --- what agrees ---------------------------------------------------------------------------------


def test_agreement() -> None:
    old = honest(next(one for one in synthetic() if one.cell.label == "tome r=8"))
    same = agreement.compare(old, old)
    assert not same.against and not same.versions
    assert sum(note.startswith("speed-up at batch") for note in same.notes) == 3
    slower = agreement.compare(old, timing(median=0.5, ci95=(0.4, 0.6))(old))
    assert len(slower.against) == 1 and slower.against[0].startswith("speed-up at batch 1: [")
    loud = agreement.compare(old, timing(median=0.5, ci95=(0.4, 0.6), disturbed=True)(old))
    elsewhere = agreement.compare(old, env(cpu="B")(timing(ci95=(0.4, 0.6))(old)))
    assert not loud.against and not elsewhere.against
    counted = agreement.compare(old, macs(total=1)(old))
    assert [line.split(":")[0] for line in counted.against] == ["MACs, total"]
    newer = agreement.compare(old, env(torch="2.1")(old))
    assert not newer.against and newer.versions == ["torch 2.0 → 2.1"]


@pytest.mark.parametrize(("dtype", "flips", "agrees"), [
    ("float32", 4, True), ("float32", 5, False), ("bfloat16", 12, True), ("bfloat16", 13, False)
])  # fmt: skip
def test_a_few_close_calls_may_fall_otherwise(dtype: str, flips: int, agrees: bool) -> None:
    old = cell(dtype=dtype)(synthetic()[0])
    correct = old.accuracy.outcomes["correct"]
    ranks = [*(9 * hit for hit in correct[:flips]), *old.accuracy.outcomes["rank"][flips:]]
    ranks[:flips] = [9 if hit else 0 for hit in correct[:flips]]
    outcomes = {"correct": [int(rank == 0) for rank in ranks], "rank": ranks}
    new = replace(old, accuracy=scored(replace(old.accuracy, outcomes=outcomes)))
    assert (not agreement.compare(old, new).against) == agrees


def test_cells_that_stopped_elsewhere_agree_on_the_samples_of_both() -> None:
    old = synthetic()[0]

    def stopped(size: int, outcomes: dict[str, list[Any]]) -> Record:
        stop = Stop(4.0, 400, [(size, 3.0)], [1.0] * size)
        first = {name: values[:size] for name, values in outcomes.items()}
        return replace(old, accuracy=scored(replace(old.accuracy, outcomes=first, stop=stop)))

    same = old.accuracy.outcomes
    other = {"correct": [1 - hit for hit in same["correct"]], "rank": [9] * len(same["rank"])}
    assert not agreement.compare(stopped(200, same), stopped(150, same)).against
    assert agreement.compare(stopped(200, same), stopped(150, other)).against
    assert agreement.compare(old, stopped(150, same)).against
