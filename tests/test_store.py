from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.records.record import Accuracy, Cell, Cost, Latency, Metric, Record, Speedup
from bench.records.store import Store, slug

CELL = Cell("quick", "embedded:x", "t", "tome", {"r": 8}, "tome r=8", "cpu")


def record(key: str = "a" * 64, **changes: object) -> Record:
    timing = Latency(
        1, "float32", "sdpa", "cpu", 1, [1.0, 2.0], [2.0, 3.0], 1.5, 2.0, 2.0, 1.0,
        Speedup(1.5, (1.4, 1.6), "sdpa"),
    )  # fmt: skip
    whole = Record(
        key=key,
        status="ok",
        reason=None,
        cell=CELL,
        accuracy=Accuracy("top1", {"top1": Metric(87.0, "%", (85.0, 89.0), 10)}, {"correct": [1]}),
        cost=Cost(tokens={"vision": [(197, 189)]}, latency=[timing]),
        provenance={"weights": "path"},
        env={"machine": "m"},
        command="run_bench.py",
        created="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_records_survive_the_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(record())
    assert path.relative_to(tmp_path).as_posix() == (
        "m/quick/embedded-x--t--tome-r=8--aaaaaaaaaaaa.json"
    )
    assert store.read_all() == [record()]
    assert store.get(CELL, "a" * 64, "m") == record()
    assert store.get(CELL, "a" * 64, "other") is None  # another machine's would lie elsewhere
    alike = "a" * 12 + "b" * 52  # in the file's name only the first 12 are
    assert store.get(CELL, alike, "m") is None
    assert store.has("a" * 64) and not store.has(alike)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_record_is_not_done() -> None:
    assert record().done and record(status="unsupported").done
    assert not record(status="failed").done and not record(status="oom").done


def test_a_failed_cell_is_there_but_not_had(tmp_path: Path) -> None:
    store = Store(tmp_path)
    failed = record(status="failed", reason="why")
    store.write(failed)
    assert store.get(CELL, "a" * 64, "m") == failed and not store.has("a" * 64)
    store.write(record())
    assert store.has("a" * 64)


def test_broken_files_are_skipped_and_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(record())
    whole = path.read_text()
    path.with_name("cut.json").write_text(whole[: len(whole) // 2])
    path.with_name("other.json").write_text('{"some": "thing"}')
    path.with_name("future.json").write_text(whole.replace('"schema": 1', '"schema": 2'))
    path.with_name("past.json").write_text(whole.replace('"schema": 1', '"schema": 0'))
    (tmp_path / "budgets.json").write_text("{}")  # is no record, and no problem
    assert store.read_all() == [record()]
    assert len(store.problems) == 4 and all("\n" not in p for p in store.problems)
    assert "cut.json" in store.problems[0]


def test_a_new_key_for_the_same_cell_supersedes_the_old_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(record())
    other = replace(CELL, limit=5)
    store.write(record("c" * 64, cell=other))
    store.write(record("b" * 64))
    assert {r.key[0] for r in store.read_all()} == {"b", "c"}


def test_a_write_that_fails_leaves_the_old_record_and_no_litter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(record())
    with pytest.raises(ValueError):
        store.write(record(seconds=float("nan")))
    assert store.read_all() == [record()]
    assert len(list(path.parent.iterdir())) == 1


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot write to the results folder .*--results"):
        Store(tmp_path / "file" / "results").check_writable()
    Store(tmp_path / "new").check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def hold(root: Path, ready: mp.synchronize.Event) -> None:
    with Store(root).claim(CELL, "a" * 64, "m") as mine:
        assert mine
        ready.set()
        time.sleep(60)


def test_a_claim_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(30)
    store = Store(tmp_path)
    with store.claim(CELL, "a" * 64, "m") as mine:
        assert not mine
    with store.claim(CELL, "b" * 64, "m") as mine:
        assert mine
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with store.claim(CELL, "a" * 64, "m") as mine:
        assert mine
    assert not list((tmp_path / "m/quick/.locks").iterdir())


def test_clean_removes_only_what_is_old_or_idle(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write(record())
    now = time.time()
    ages = {"old": 61, "young": 59, "new": 0}  # minutes
    litter = {name: path.with_name(f".{name}.json.1.tmp") for name in ages}
    for name, minutes in ages.items():
        litter[name].write_text("{")
        os.utime(litter[name], (now - 60 * minutes,) * 2)
    (path.parent / ".locks").mkdir()
    (path.parent / ".locks/dead.lock").write_text("1 host\n")
    store.clean()
    assert [name for name in ages if litter[name].exists()] == ["young", "new"] and path.exists()
    assert not list((path.parent / ".locks").iterdir())


@pytest.mark.parametrize(
    ("text", "name"),
    [("timm:vit", "timm-vit"), ("a/b c", "a-b-c"), ("../..", "none"), ("r=8,9", "r=8-9")],
)
def test_slugs_are_file_names(text: str, name: str) -> None:
    assert slug(text) == name
