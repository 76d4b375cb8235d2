"""`run_bench.py new`: what it writes works at once, and the kit sees what is then broken."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Server

from bench.check.cases import CASES
from bench.check.kit import FAILED, PROPERTIES, check
from bench.check.new import create
from bench.cli import app
from bench.core import registry
from bench.core.errors import BenchError

PARTS = ("bench", "crossget", "methods", "run_bench.py", "pyproject.toml")
LITTER = shutil.ignore_patterns("*.pyc.*", "*.tmp")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("methods", "tests"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The method of a file, in a register that is forgotten afterwards."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry.methods()))
    spec = importlib.util.spec_from_file_location("skeleton", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "skeleton", module)
    spec.loader.exec_module(module)
    return module


def test_names_of_files_and_classes(checkout: Path) -> None:
    method, test = create("my-own2-method", checkout)
    assert method == checkout / "methods" / "my_own2_method.py"
    assert test == checkout / "tests" / "test_my_own2_method.py"
    source = method.read_text()
    assert '@register("my-own2-method", ' in source
    assert "class MyOwn2Method(Reducer):" in source
    assert 'conformance("my-own2-method")' in test.read_text()
    assert "from methods.my_own2_method import MyOwn2Method" in test.read_text()
    assert not any(word in source for word in ("TODO", "FIXME", "{{"))


@pytest.mark.parametrize("name", ["x", "a-method-of-a-rather-long-name"])
def test_style_is_the_projects(name: str, checkout: Path, repo: Path) -> None:
    create(name, checkout)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", repo / "pyproject.toml", checkout],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


# What one changed line of the skeleton breaks, and the line in which the kit says so.
CHANGES = [
    ('site.protect, float("inf")', "site.protect, 0.0", "protected", "loses protected token 0"),
    ("site.x.shape[1] - r]", "site.x.shape[1] - r - 1]", "counts", "should keep 50 tokens, and"),
    ("site.x.norm(", "site.x.mul_(1.1).norm(", "state", "writes into site.x"),
    ("site.x.norm(", "(site.x - site.x.mean(0)).norm(", "batch", "otherwise alone than in a batch"),
]


@pytest.mark.parametrize(("old", "new", "prop", "says"), CHANGES, ids=[c[2] for c in CHANGES])
def test_one_changed_line_fails_by_name(
    old: str, new: str, prop: str, says: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = create("largest-norm", checkout)
    cls = load(path, monkeypatch).LargestNorm
    vit = [case for case in CASES if case.name == "timm registers"]
    assert all(f.status != FAILED for f in check(cls, cases=vit, properties=[prop]))
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))
    (finding,) = check(load(path, monkeypatch).LargestNorm, cases=vit, properties=[prop])
    assert finding.status == FAILED
    assert f"largest-norm: {prop} failed on timm registers: " in finding.line()
    assert says in finding.line()


def test_made_then_checked(tmp_path: Path, repo: Path, commands: Server) -> None:
    """As a contributor does it, in a copy of the repository."""
    for name in PARTS:
        if (repo / name).is_dir():
            shutil.copytree(repo / name, tmp_path / name, ignore=LITTER)
        else:
            shutil.copy(repo / name, tmp_path)
    (tmp_path / "tests").mkdir()

    def run(*command: str) -> str:
        done = commands.run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run("run_bench.py", "new", "my-method")
    assert "methods/my_method.py" in said and "tests/test_my_method.py" in said
    out = run("run_bench.py", "check", "my-method")
    assert "every property holds wherever it applies" in out
    assert all(name in out for name in PROPERTIES)
    own = ["-p", "no:cacheprovider", "tests/test_my_method.py", "-k", "timm"]  # all were just tried
    own += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of libraries that are imported
    out = run("-m", "pytest", "-q", *own)
    assert "failed" not in out and " passed" in out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tome", "methods/tome.py exists already"),
        ("cli", "tests/test_cli.py exists already"),
        ("taken", "method 'taken' is registered already"),
        *((n, f"'{n}' cannot name a method") for n in ("My", "a_b", "2d", "a--b", "-a", "class")),
        ("a/b", "cannot name a method"),
        ("", "cannot name a method"),
    ],
)
def test_names_that_do_not_serve(
    name: str, says: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "methods" / "tome.py").touch()
    (checkout / "tests" / "test_cli.py").touch()
    taken = {"taken": registry.methods()["none"]}
    monkeypatch.setattr(registry, "_METHODS", taken)
    before = sorted(checkout.rglob("*"))
    with pytest.raises(BenchError, match=says):
        create(name, checkout)
    assert sorted(checkout.rglob("*")) == before


def test_away_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an installed wheel, whose neighbours are other packages."""
    (tmp_path / "methods").mkdir()
    monkeypatch.setattr(create, "__defaults__", (tmp_path,))
    monkeypatch.setattr(sys, "argv", ["run_bench.py", "new", "mine"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is no checkout of this project" in line and "crossget_bench.methods" in line
    assert not list((tmp_path / "methods").iterdir())
