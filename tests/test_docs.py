"""The documentation says what is true: tables are current, code runs, commands and paths exist.

Run as a script (`make docs`), this renews the table of methods.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from documents import ROOT, links, run_python

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PROSE = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
METHODS = DOCS / "methods.md"
TABLE = re.compile(r"(<!-- methods:begin[^>]*-->\n).*?(<!-- methods:end -->)", re.DOTALL)
# A command in a block of shell (a backslash carries it to the next line), or in a sentence.
COMMAND = re.compile(r"^\.venv/bin/python run_bench\.py((?:.*\\\n)*.*)$", re.MULTILINE)
INLINE = re.compile(r"`run_bench\.py(\s[^`]*)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def with_current_table(text: str) -> str:
    from bench.core import registry

    assert TABLE.search(text), "docs/methods.md has lost the markers of its table"
    return TABLE.sub(lambda m: f"{m[1]}{registry.method_table()}\n{m[2]}", text)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of `run_bench.py` in the documentation, with the page it is on."""
    for path in PROSE:
        text = read(path)
        for found in (*COMMAND.findall(text), *INLINE.findall(text)):
            words = shlex.split(found.replace("\\\n", " "), comments=True)
            if words:
                yield path.name, words


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `run_bench.py WORDS` prints, in this process."""
    from bench.cli import main

    monkeypatch.setattr(sys, "argv", ["run_bench.py", *words])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 0, f"run_bench.py {' '.join(words)}: {printed.err}"
    return printed.out


def test_method_table_is_current() -> None:
    text = read(METHODS)
    assert with_current_table(text) == text, "run `make docs`"


def test_python_blocks_run(tmp_path: Path) -> None:
    printed = run_python({path.name: read(path) for path in PAGES}, tmp_path)
    assert {"add-method.md", "kit.md", "python.md"} <= set(printed.splitlines())


def test_commands_take_the_options_that_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, set[str]] = {}
    seen = 0
    for page, (command, *words) in commands():
        if command not in options:
            text = called(monkeypatch, capsys, command, "--help")
            options[command] = set(OPTION.findall(text))
        for word in words:
            if word.startswith("--"):
                seen += 1
                assert word in options[command], f"{page}: run_bench.py {command} has no {word}"
    assert {"run", "report", "cost", "check", "compare", "train", "verify"} <= set(options)
    assert seen > 60


def test_names_in_commands_exist() -> None:
    from bench.core.registry import methods
    from bench.runs import spec

    known = {"--method": set(methods()), "--suite": set(spec.names())}
    for page, words in commands():
        for option, value in zip(words, words[1:], strict=False):
            if option in known:
                assert value in known[option], f"{page}: no {option} {value}"


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """In the repository; `make docs` checks those of the site, anchors too."""
    for link in links(read(path)):
        assert (path.parent / link).exists(), f"{path.name} links to {link}, which is not there"


def test_make_targets_exist() -> None:
    makefile = read(ROOT / "Makefile")
    for path in PROSE:
        for target in set(re.findall(r"(?:`|^)make ([a-z]+)\b", read(path), re.MULTILINE)):
            exists = re.search(rf"^{target}:", makefile, re.MULTILINE)
            assert exists, f"{path.name}: no target `make {target}`"


def test_paths_exist() -> None:
    """Every path of the repository that a page names between backticks."""
    roots = ("bench", "benchmarks", "crossget", "docs", "methods", "recipes", "reports", "tests")
    named = re.compile(rf"`((?:{'|'.join(roots)})/[\w./-]*)`|python (benchmarks/\w+\.py)")
    modules = re.compile(r"python -m (recipes[\w.]*)")
    for path in PROSE:
        text = read(path)
        for name in [file or script for file, script in named.findall(text)]:
            assert (ROOT / name).exists(), f"{path.name} names {name}, which is not there"
        for module in modules.findall(text.replace("\n", " ")):
            place = ROOT.joinpath(*module.rstrip(".").split("."))
            runs = place.with_suffix(".py").exists() or (place / "__main__.py").exists()
            assert runs, f"{path.name} names python -m {module}, which is not there"


def test_tree_is_real() -> None:
    tree = re.search(r"## The tree\n\n```\n(.*?)```", read(DOCS / "architecture.md"), re.DOTALL)
    assert tree
    shown: list[Path] = []
    parents = [ROOT]
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parents = parents[: depth + 1]
        path = parents[depth] / line.split()[0]
        assert path.exists(), f"the tree shows {path.relative_to(ROOT)}, which is not there"
        parents.append(path)
        shown.append(path)
    rooms = {path.parent for path in ROOT.glob("bench/*/__init__.py")}
    assert rooms <= set(shown), "a room of bench/ is missing in the tree"


def test_every_kind_of_method_is_described() -> None:
    from bench.core import Learner, Reducer, kinds

    defined = [value for value in vars(kinds).values() if isinstance(value, type)]
    names = {cls.__name__ for cls in (Learner, *defined) if issubclass(cls, Reducer)}
    rows = re.findall(r"^\| \[`(\w+)`\]", read(DOCS / "add-method.md"), re.MULTILINE)
    assert set(rows) == names - {"Reducer"}


def test_every_property_of_the_kit_is_described() -> None:
    from bench.check.kit import PROPERTIES

    rows = re.findall(r"^\| `(\w+)` \|", read(DOCS / "kit.md"), re.MULTILINE)
    assert rows == list(PROPERTIES)


def test_models_tasks_and_suites_are_those_that_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(what: str) -> set[str]:
        printed = called(monkeypatch, capsys, "list", what, "--json")
        return {entry["name"] for entry in json.loads(printed)}

    plain = re.compile(r"[\w.:-]+")  # neither a form such as timm:NAME nor a fine-tuned model's
    models = {name for name in listed("models") if plain.fullmatch(name) and "NAME" not in name}
    assert models - {"FOLDER"} <= set(re.findall(r"`([^`\n]+)`", read(DOCS / "models.md")))
    first_cell = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
    assert set(first_cell.findall(read(DOCS / "tasks.md"))) == listed("tasks")
    assert listed("suites") <= set(first_cell.findall(read(DOCS / "running.md")))


def test_the_suite_of_the_guide_is_one() -> None:
    from bench.runs import spec

    block = re.search(r"```yaml\n(.*?)```", read(DOCS / "running.md"), re.DOTALL)
    assert block
    suite = spec.parse({"name": "guide", **yaml.safe_load(block[1])}, spec.Options())
    assert len(suite.cells()) == 16


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": ([\w-]+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == [path.name for path in PAGES]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    METHODS.write_text(with_current_table(read(METHODS)), encoding="utf-8")
