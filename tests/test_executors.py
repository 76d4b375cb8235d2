"""Who does the jobs on this machine: one process a GPU, what is timed alone, deaths and limits."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import folders
import psutil
import pytest
import workers
from workers import Heard, job, one

from bench.core.errors import BenchError
from bench.measure.memory import PeakMemory
from bench.records import sources
from bench.records.record import Record
from bench.records.store import Store
from bench.runs import executors, runner, session, sharing, spec
from bench.runs.executors import How, local, process
from bench.runs.jobs import Done, Job
from bench.runs.shards import Shard

LIMIT_S = 12.0  # a new process begins well within it, on a machine that others use too


def done(
    *jobs: Job, count: int = 2, gpus: bool = False, limit: float | None = None
) -> tuple[dict[str, Done], Heard]:
    """What came of jobs in a pool, by name, and what was heard of them."""
    heard = Heard()
    pool = local.Pool(count, gpus, limit, heard, workers.make)
    return {one.job.name: one for one in pool.execute(one(*jobs))}, heard


def seen(result: Done) -> Any:
    assert result.record is not None
    return result.record.env["seen"]


def test_each_gpu_has_a_process_that_sees_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    half = [job("sleep 0.7", Shard(number, 2)) for number in (1, 2)]
    results, heard = done(*half, gpus=True)
    assert {seen(one)["gpu"] for one in results.values()} == {"4", "7"}
    assert len({seen(one)["process"] for one in results.values()}) == 2
    assert sorted(where for _, where in heard.begun) == ["GPU 0", "GPU 1"]
    assert heard.stages == ["sleep", "sleep"]


def test_what_is_timed_runs_alone() -> None:
    jobs = [
        job("sleep 0.3", Shard(1, 2)), job("sleep 0.4", Shard(2, 2)), job("sleep 0.2 timed"),
        job("sleep 0.3 b", Shard(1, 2)), job("sleep 0.4 b", Shard(2, 2)),
    ]  # fmt: skip
    results, _ = done(*jobs)
    spans = {name: seen(one)["time"] for name, one in results.items()}
    begin, end = spans.pop(jobs[2].name)
    assert all(last <= begin or first >= end for first, last in spans.values())


def test_a_job_whose_process_dies_runs_again_twice_then_a_record_says_so(tmp_path: Path) -> None:
    once, always = tmp_path / "once", tmp_path / "always"
    results, heard = done(job(f"die once {once}"), job(f"die {always}"), count=1)
    first, second = (one.record for one in results.values())
    assert first is not None and second is not None
    assert (first.status, once.read_text()) == ("ok", "xx")
    assert (second.status, always.read_text()) == ("failed", "xxx")
    assert second.reason == "its process died 3 times (its process died (SIGKILL))"
    assert len(heard.notes) == 3 and "it runs again" in heard.notes[0]


def test_out_of_memory_is_a_record_and_no_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(10))  # the system counts one more each time it is asked
    monkeypatch.setattr(process, "_oom_kills", lambda: next(kills))
    results, heard = done(job(f"die {tmp_path / 'file'}"), count=1)
    (record,) = (one.record for one in results.values())
    assert record is not None and record.status == "oom" and "memory" in (record.reason or "")
    assert not heard.notes and (tmp_path / "file").read_text() == "x"


def test_a_job_past_its_limit_is_ended_and_the_next_one_runs() -> None:
    start = time.monotonic()
    results, _ = done(job("sleep 600"), job("sleep 0"), count=1, limit=LIMIT_S)
    late, after = (one.record for one in results.values())
    assert late is not None and after is not None
    assert late.reason == f"ended after {LIMIT_S:.0f} s: its time limit (--time-limit)"
    assert (late.status, after.status) == ("failed", "ok") and late.seconds >= LIMIT_S
    assert time.monotonic() - start < 300  # half of what it would have slept


def test_closing_leaves_no_process() -> None:
    heard = Heard()
    pool = local.Pool(2, False, None, heard, workers.make)
    running = pool.execute(one(job("sleep 0", Shard(1, 2)), job("sleep 60", Shard(2, 2))))
    next(running)
    ours = {child.pid for child in psutil.Process().children() if "spawn" in str(child.cmdline())}
    assert ours
    running.close()
    assert not [pid for pid in ours if psutil.pid_exists(pid)]


def test_options_that_mean_nothing_are_one_line() -> None:
    for how, says in (
        ({"on": "ry"}, "--on: no backend 'ry' — did you mean 'ray'"),
        ({"address": "auto"}, "--address: names a Ray cluster; add --on ray"),
        ({"shard": "5/4"}, "--shard: '5/4' is no shard"),
        ({"shard": "1/4", "shards": 2}, "--shard: runs one shard here"),
        ({"slurm": ["partition"], "on": "slurm"}, "--slurm: 'partition' has no value"),
        ({"slurm": ["time=3"]}, "--slurm: says what an array asks for"),
    ):
        with pytest.raises(BenchError) as error:
            executors.how(**how)  # type: ignore[arg-type]
        assert str(error.value).startswith(says)


def test_an_extra_that_is_missing_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    for name, extra in (("ray", "ray"), ("slurm", "slurm")):
        with pytest.raises(BenchError, match=f"crossget-bench\\[{extra}\\]"):
            executors.how(on=name)


# --- the same records, in whichever way ------------------------------------------------------


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suite")
    vit, images = folders.vit(root / "vit"), folders.images(root / "images")
    text = folders.SUITE.format(vit=vit, images=images).replace("limit: 8\n", "")
    text = text.replace("methods:\n", "methods:\n  - {name: random, keep_rate: 0.5}\n")
    (root / "tiny.yaml").write_text(text)
    return root / "tiny.yaml"


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, of which the last is shorter; no process for memory."""
    from bench.runs import cell

    monkeypatch.setattr(cell, "EVALUATION_PIXELS", 3 * 32**2)
    monkeypatch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))


def go(suite_file: Path, results: Path, how: How = executors.LOCAL) -> dict[str, Record]:
    suite, origin = spec.load(str(suite_file))
    summary = runner.run(suite, origin, results, machine="m", command="test", quiet=True, how=how)
    assert not summary.failed, summary.reasons
    store = Store(results)
    records = {record.cell.label: record for record in store.read_all()}
    assert not store.problems
    return records


@pytest.fixture(scope="module")
def whole(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """The records of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))
        from bench.runs import cell

        patch.setattr(cell, "EVALUATION_PIXELS", 3 * 32**2)
        return go(suite_file, tmp_path_factory.mktemp("whole") / "results")


@pytest.mark.parametrize("shards", [2, 3, 20])  # of the last, most have no batch
def test_accuracy_in_shards_is_bit_for_bit_that_of_one_process(
    suite_file: Path, whole: dict[str, Record], tmp_path: Path, shards: int
) -> None:
    divided = go(suite_file, tmp_path / "results", How(shards=shards))
    assert list(divided) == list(whole) and len(whole) == 5
    for label, record in divided.items():
        assert record.accuracy == whole[label].accuracy
        assert record.key == whole[label].key
        assert record.provenance == {**whole[label].provenance, "shards": shards}
    assert len(whole["random keep_rate=0.5"].accuracy.repeats) > 1  # seeds are divided as well


def test_shards_in_files_are_merged(
    suite_file: Path, whole: dict[str, Record], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    with pytest.raises(BenchError, match="no shards in"):
        sharing.merge(results, quiet=True)
    go(suite_file, results, How(shard=Shard(2, 2)))
    partial = sharing.merge(results, quiet=True)
    assert (partial.ran, partial.failed) == (0, 5)
    assert set(partial.reasons.values()) == {"of 2 shards lacks 1"}
    assert not go(suite_file, results, How(shard=Shard(1, 2)))
    files = {path: path.stat().st_mtime_ns for path in results.glob("*/*/.shards/*")}
    go(suite_file, results, How(shard=Shard(1, 2)))
    assert files == {path: path.stat().st_mtime_ns for path in results.glob("*/*/.shards/*")}
    merged = sharing.merge(results, command="test", quiet=True)
    assert (merged.ran, merged.failed) == (5, 0)
    records = {record.cell.label: record for record in Store(results).read_all()}
    assert {k: r.accuracy for k, r in records.items()} == {k: r.accuracy for k, r in whole.items()}
    assert all(records[k].cost.latency[0].equal is not None for k in records)
    assert not list(results.glob("*/*/.shards/*"))
    assert len(go(suite_file, results)) == 5  # nothing is left to run


def test_shards_of_other_code_are_not_merged(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    go(suite_file, results, How(shard=Shard(1, 1)))
    monkeypatch.setattr(sources, "measurement_hash", lambda: "other")
    with pytest.raises(BenchError, match="taken with other code"):
        sharing.merge(results, quiet=True)


def test_several_processes_write_the_records_of_one(
    suite_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process knows the timing of equal things, wherever the unreduced model's cell ran."""
    monkeypatch.setattr(local, "measuring", workers.measuring)
    suite, origin = spec.load(str(suite_file))
    suite = suite.model_copy(update={"methods": suite.methods[:2], "limit": 8})
    how = How(workers=2, shards=2, events=True)
    summary = runner.run(suite, origin, tmp_path, machine="m", command="t", quiet=True, how=how)
    assert (summary.ran, summary.failed) == (4, 0), summary.reasons
    alone = runner.run(suite, origin, tmp_path / "one", machine="m", command="t", quiet=True)
    assert alone.ran == 4
    ways = [
        {record.cell.label: record for record in Store(folder).read_all()}
        for folder in (tmp_path / "m", tmp_path / "one")
    ]
    for label, record in ways[0].items():
        assert record.accuracy.metrics.keys() == ways[1][label].accuracy.metrics.keys()
        assert record.cost.macs == ways[1][label].cost.macs
        assert record.cost.latency[0].equal is not None
    events = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert any('"event": "end"' in line and '"process 1"' in line for line in events)


def test_a_job_is_one_cells_or_one_shards() -> None:
    whole, part = job("sleep 0"), job("sleep 0", Shard(2, 3))
    assert whole.name != part.name and whole.timed and not part.timed
    broken = dataclasses.replace(whole.planned, broken="no data")
    assert not dataclasses.replace(whole, planned=broken).timed
