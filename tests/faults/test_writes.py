"""Every write: killed at each of its steps, half-way, or without room on the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dying import dying, files_in, forked, half_way, is_one_line, without_room
from test_store import CELL, record

from bench.check import new
from bench.records import files
from bench.records.fates import Fates, Sample
from bench.records.store import BUDGETS, Store
from bench.report import TITLE, build, check_out
from bench.runs import solved_budgets, tokens

OLD, NEW = record(), record("b" * 64, command="x" * 500)


@dataclass(frozen=True)
class Write:
    """Something that is written.

    Attributes:
        prepare: puts the old state into a folder.
        write: replaces it by the new one.
        clean: what the next run does first.
        whole: whether what lies there is the old or the new state, without a part of either.
    """

    prepare: Callable[[Path], object]
    write: Callable[[Path], object]
    clean: Callable[[Path], object]
    whole: Callable[[Path], bool]


def write_claimed(root: Path) -> None:
    with Store(root).claim(CELL, NEW.key, "m") as mine:
        assert mine
        Store(root).write(NEW)


def one_record(root: Path) -> bool:
    store = Store(root)
    records = store.read_all()
    return not store.problems and 0 < len(records) <= 2 and all(r in (OLD, NEW) for r in records)


def solve(root: Path) -> None:
    cell = CELL.__class__(**{**CELL.__dict__, "params": {"budget": "50% gmacs"}})
    resources: Any = SimpleNamespace(tasks={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solved_budgets, "_key", lambda *arguments: "new")
        patch.setattr(solved_budgets, "_solved", lambda *a: {"params": {"r": 4}, "percent": 50.0})
        solved, refused = solved_budgets.within_budget(cell, None, resources, root / BUDGETS)  # type: ignore[arg-type]
    assert solved.params == {"r": 4} and refused is None


def some_budgets(root: Path) -> bool:
    return set(json.loads((root / BUDGETS).read_text())) in ({"old"}, {"old", "new"})


def fates(name: str) -> Fates:
    return Fates("m", "t", (1, 1), 1, "probability", [Sample(name, "", "")], [])


def note_tokens(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "record_fates", lambda records, samples: fates("new" * 99))
        tokens.main([root / "m" / "quick"], 1)


def prepare_tokens(root: Path) -> None:
    Store(root).write(OLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "record_fates", lambda records, samples: fates("old"))
        tokens.main([root / "m" / "quick"], 1)


def tokens_whole(root: Path) -> bool:
    (file,) = (root / "m" / "quick" / "tokens").glob("*.json")
    return bool(json.loads(file.read_text())["samples"])


PARTS = ("report.md", "index.html", "tables/a--b.csv", "figures/a.png", "paper/main.tex")


def report(root: Path, what: str = "new") -> None:
    """A report with all steps of a real one but what it says."""

    def writer(*names: str) -> Callable[[object, Path], None]:
        def write(content: object, folder: Path) -> None:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(f"{TITLE} {what} {'x' * 200}")

        return write

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.report.data.load.read", lambda results: ([], []))
        frames = SimpleNamespace(records=[])
        patch.setattr("bench.report.data.frame.build", lambda records, **_: frames)
        patch.setattr("bench.report.content.content", lambda *arguments: None)
        patch.setattr("bench.report.page.markdown.write_csv", writer("tables/a--b.csv"))
        patch.setattr("bench.report.page.markdown.write_latex", writer("tables/a--b.tex"))
        patch.setattr("bench.report.page.page.write", writer("index.html"))
        patch.setattr("bench.report.page.markdown.write", writer("figures/a.png", "report.md"))
        patch.setattr("bench.report.paper.paper.write", writer("paper/main.tex"))
        build([], root / "out", formats=["csv", "latex", "html", "markdown", "paper"])


def report_whole(root: Path) -> bool:
    """Whether the next run finds one report, all of it old or all new."""
    check_out(root / "out", ["csv", "html", "markdown", "paper"])
    texts = {(root / "out" / name).read_text().split()[-2] for name in PARTS}
    return len(texts) == 1


def clean(root: Path) -> None:
    Store(root).check_writable()
    Store(root).clean()


WRITES = {
    "a record": Write(lambda root: Store(root).write(OLD), write_claimed, clean, one_record),
    "budgets": Write(
        lambda root: files.write_atomic(root / BUDGETS, '{"old": {"refused": "no"}}'),
        solve,
        clean,
        some_budgets,
    ),
    "tokens": Write(prepare_tokens, note_tokens, clean, tokens_whole),
    "a report": Write(
        lambda root: report(root, "old"),
        report,
        lambda root: check_out(root / "out", ["csv"]),
        report_whole,
    ),
}


@pytest.fixture(params=list(WRITES))
def write(request: pytest.FixtureRequest) -> Write:
    return WRITES[request.param]


def check_after_kill(write: Write, root: Path, complete: set[str]) -> None:
    """The old state or the new one is there; the next run removes the rest and completes it."""
    assert write.whole(root)
    write.clean(root)
    assert not list(root.rglob("*.tmp")) and not list(root.rglob("*.lock"))
    write.write(root)
    assert set(files_in(root)) == complete


def test_a_kill_leaves_the_old_or_the_new_and_the_next_run_cleans_up(
    write: Write, tmp_path: Path
) -> None:
    def prepared(name: str) -> Path:
        root = tmp_path / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        write.prepare(root)
        return root

    whole = prepared("whole")
    write.write(whole)
    complete = set(files_in(whole))
    root, steps = prepared("cut"), 0
    for step in dying(lambda: write.write(root), root):
        check_after_kill(write, root, complete)
        prepared("cut")
        steps = step
    assert steps >= 4
    for size in (1, 50):
        prepared("cut")
        assert half_way(lambda: write.write(root), size).signal
        check_after_kill(write, root, complete)


@pytest.mark.parametrize("size", [0, 1, 50])
def test_a_full_disk_is_one_line_and_leaves_the_old(
    write: Write, size: int, tmp_path: Path
) -> None:
    write.prepare(tmp_path)
    before = files_in(tmp_path)
    ended = without_room(lambda: write.write(tmp_path), size)
    assert is_one_line(ended, "cannot write", str(tmp_path), "File too large"), ended
    after = files_in(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith((".tmp", ".lock"))]


def test_a_full_disk_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    ended = without_room(lambda: Store(tmp_path / "results").check_writable(), 0)
    assert is_one_line(ended, "results", "--results") and not files_in(tmp_path)
    ended = without_room(lambda: check_out(tmp_path / "out", ["html"]), 0)
    assert is_one_line(ended, "out", "--out") and not files_in(tmp_path)


def test_a_new_method_needs_room(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    for name in ("methods", "tests"):
        (tmp_path / name).mkdir()
    before = files_in(tmp_path)
    assert is_one_line(without_room(lambda: new.create("my-own", tmp_path), 10), "my_own.py")
    assert files_in(tmp_path) == before


def test_an_output_without_room_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell() -> None:
        print("something")

    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert is_one_line(forked(tell), "No space left")


def test_what_others_write_is_left_alone(tmp_path: Path) -> None:
    """A live process's file, another host's young one; not those of the dead, nor old ones."""
    name = files.temporary(tmp_path).name.replace(str(os.getpid()), "{}")
    paths = {
        "live": tmp_path / name.format(os.getppid()),
        "dead": tmp_path / name.format(2**22 + 1),
        "elsewhere": tmp_path / ".another-host.1.tmp",
        "old": tmp_path / ".another-host.2.tmp",
        "older name": tmp_path / ".budgets.json.1.tmp",
    }
    for kind, path in paths.items():
        path.touch()
        if kind.startswith("old"):
            os.utime(path, (0, 0))
    Store(tmp_path).clean()
    assert {kind for kind, path in paths.items() if path.exists()} == {"live", "elsewhere"}
