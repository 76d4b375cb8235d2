"""Bad paths, and folders that are not what they should be."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from judge import Bad, faults_of
from test_store import record

from bench.core import registry
from bench.models import catalogue
from bench.runs import runner

NUL, LONG, DEEP = "a\0b", "x" * 5000, "d/" * 3000
RUN = ("run", "--model", "embedded:vit-fashion", "--task", "cost", "--random-weights")
RUN += ("--method", "tome", "--r", "4", "--batch", "1", "--seconds", "0.01", "--profile", "cpu")
RUN += ("--machine", "m")
RECORD = record().to_json()
STORED = {"results/m/quick/a--b--c--aaaaaaaaaaaa.json": RECORD}
OURS = "# Token reduction: what it costs and what it keeps\n"


def text(command: Sequence[str], *, at: int) -> list[Bad]:
    """Paths that are none, in place of an argument of a command that is sound otherwise."""
    option = " ".join([command[0], *(c for c in command[at - 1 : at] if c.startswith("--"))])
    kinds = {
        "empty": "",
        "blank": "  ",
        "with NUL": NUL,
        "of 5,000 characters": LONG,
        "3,000 deep": DEEP,
        "with an escape": "a\x1b[31mb",
        "with two lines": "a\nb",
        "not UTF-8": "caf\udce9",
    }
    return [
        Bad(
            f"{option} {kind}",
            [*command[:at], value, *command[at + 1 :]],
            STORED,
            names=["path"],
        )
        for kind, value in kinds.items()
    ]


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def pipe(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)

    return make


def folder(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).mkdir(parents=True)


PATHS = [
    *text([*RUN, "--results", "…"], at=len(RUN) + 1),
    *text([*RUN, "--report", "…"], at=len(RUN) + 1),
    *text(["report", "results", "--out", "…"], at=3),
    *text(["report", "…"], at=1),
    *text(["leaderboard", "…"], at=1),
    *text(["leaderboard", "results", "--out", "…"], at=3),
    *text(["recheck", "…", "--no-run"], at=1),
    *text(["compare", "…", "results"], at=1),
    *text(["submit", "…", "out.json"], at=1),
    *text(["tokens", "…"], at=1),
    *text(["train", "--method", "none", "--out", "…"], at=4),
]
OTHERS = [
    Bad("results is a file", [*RUN, "--results", "a"], {"a": "x"}, names=["a", "--results"]),
    Bad("results below a file", [*RUN, "--results", "a/b"], {"a": "x"}, names=["a/b", "--results"]),
    Bad("results is a dangling link", RUN, prepare=link("results", "gone"), names=["results"]),
    Bad("results is a link to itself", RUN, prepare=link("results", "results"), names=["results"]),
    Bad("results is a pipe", RUN, prepare=pipe("results"), names=["results"]),
    Bad("results is a device", [*RUN, "--results", "/dev/null"], names=["/dev/null", "--results"]),
    Bad("results in /proc", [*RUN, "--results", "/proc/mine"], names=["/proc/mine", "--results"]),
    Bad("results are read-only", [*RUN, "--results", "/sys/mine"], names=["/sys/mine"]),
    Bad("a machine is a file", RUN, {"results/m": "x"}, names=["results/m"]),
    Bad("a suite is a file", RUN, {"results/m/custom": "x"}, names=["results/m/custom"]),
    Bad("locks are a file", RUN, {"results/m/custom/.locks": "x"}, names=[".locks"]),
    Bad("reports is a file", [*RUN, "--report", "r/x"], {"r": "x"}, names=["r/x", "--out"]),
    Bad("the report is a file", [*RUN, "--report", "r"], {"r": "x"}, names=["r", "--out"]),
    Bad("a foreign report", [*RUN, "--report", "r"], {"r/report.md": "x"}, names=["r/report.md"]),
    Bad("a foreign page", [*RUN, "--report", "r"], {"r/index.html": "x"}, names=["index.html"]),
    Bad("no results", ["report", "gone"], names=["gone"]),
    Bad("no records", ["report", "a"], prepare=folder("a"), names=["a"]),
    Bad("no record of the suite", ["report"], names=["run --suite quick"]),
    Bad("a suite that climbs", ["report", "--suite", "../../x"], names=["--suite ../../x"]),
    Bad("a suite with a star", ["report", "--suite", "*"], STORED, names=["--suite *"]),
    Bad("an empty suite", ["report", "--suite", ""], STORED, names=["--suite"]),
    Bad("a very long suite", ["report", "--suite", LONG], STORED, names=["--suite xxx"]),
    Bad("a suite's folder is a file", ["report"], {"results/m/quick": "x"}, names=["quick"]),
    Bad("a record that is none", ["report", "a.json"], {"a.json": "x"}, names=["a.json"]),
    Bad("a record is a pipe", ["report", "a.json"], prepare=pipe("a.json"), names=["a.json"]),
    Bad(
        "out is a file", ["report", "results", "--out", "a"], {**STORED, "a": "x"}, names=["--out"]
    ),
    Bad(
        "out below a file",
        ["report", "results", "--out", "a/b"],
        {**STORED, "a": "x"},
        names=["a/b", "--out"],
    ),
    Bad("out in /proc", ["report", "results", "--out", "/proc/x"], STORED, names=["--out"]),
    *(
        Bad(
            f"out has another's {name}",
            ["report", "results", "--out", "a"],
            {**STORED, f"a/{name}": "mine"},
            names=[f"a/{name.split('/')[0]}", "--out"],
        )
        for name in ("report.md", "index.html", "figures/x.png", "tables/x.csv")
    ),
    Bad(
        "out has another's page beside a report",
        ["report", "results", "--out", "a"],
        {**STORED, "a/report.md": OURS, "a/index.html": "mine"},
        names=["a/index.html", "--out"],
    ),
    Bad(
        "out's report.md is a folder",
        ["report", "results", "--out", "a"],
        STORED,
        prepare=folder("a/report.md"),
        names=["a/report.md", "--out"],
    ),
    Bad(
        "out's report.md is a pipe",
        ["report", "results", "--out", "a"],
        STORED,
        prepare=pipe("a/report.md"),
        names=["a/report.md", "--out"],
    ),
    *(
        Bad(f"compare {value}", ["compare", "--", value, "results"], STORED, names=["revision"])
        for value in ("--output=stolen", "-o", "HEAD", "HEAD:results", "gone", "../..:x", "@{u}")
    ),
    Bad("compare a pipe", ["compare", "a", "a"], prepare=pipe("a"), names=["a"]),
    Bad("recheck nothing", ["recheck", "gone"], names=["gone"]),
    Bad("recheck what is no record", ["recheck", "a"], {"a": "{}"}, names=["a"]),
    Bad("submit no record", ["submit", "gone", "out"], names=["gone"]),
    Bad("submit a folder", ["submit", "a", "out"], prepare=folder("a"), names=["a"]),
    Bad("submit what is no record", ["submit", "a", "out"], {"a": "{}"}, names=["a"]),
    Bad("tokens of no folder", ["tokens", "gone"], names=["gone"]),
    Bad("tokens of a file", ["tokens", "a"], {"a": "x"}, names=["a"]),
    Bad("tokens of no records", ["tokens", "a"], prepare=folder("a"), names=["a"]),
    Bad("tokens of no suite", ["tokens", "--suite", "/x"], names=["--suite /x"]),
    Bad("train into a file", ["train", "--method", "none", "--out", "a"], {"a": "x"}, names=["a"]),
    Bad("train into /proc", ["train", "--method", "none", "--out", "/proc/a"], names=["/proc/a"]),
    Bad(
        "train over a model",
        ["train", "--method", "none", "--out", "a"],
        {"a/config.json": "{}"},
        names=["a", "--out"],
    ),
]


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Load what a command loads at first, whose seconds are none of the bad paths'."""
    assert registry.methods() and runner
    catalogue.load("embedded:vit-fashion", random_weights=True)


@pytest.mark.parametrize("bad", [*PATHS, *OTHERS], ids=lambda bad: bad.name)
def test_bad_paths_are_one_line(bad: Bad, tmp_path: Path) -> None:
    assert not faults_of(bad, tmp_path)


def test_there_are_many() -> None:
    assert len({bad.name for bad in [*PATHS, *OTHERS]}) == len([*PATHS, *OTHERS]) > 100
