"""`run_bench.py new NAME`: a method that works, and its test, to be changed from there."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.core.errors import BenchError
from bench.core.names import LONGEST_FOLDER
from bench.core.registry import methods
from bench.records.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).resolve().parents[1] / "assets" / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def create(name: str, root: Path = ROOT) -> list[Path]:
    """Write the two files; returns their paths.

    Args:
        name: of the method; its hyphens become underscores in the names of the files.
        root: the checkout.

    Raises:
        BenchError: this is no checkout, the name does not serve, or it is taken.
    """
    if not all((root / part).exists() for part in ("pyproject.toml", "methods", "tests")):
        raise BenchError(
            f"{root} is no checkout of this project and has no place for a new method; those of "
            'another package join by the entry-point group "crossget_bench.methods"'
        )
    module = name.replace("-", "_")
    if not NAME.fullmatch(name) or keyword.iskeyword(module) or len(name) > LONGEST_FOLDER:
        raise BenchError(
            f"'{name}' cannot name a method: lower case letters and digits, a letter first, words "
            "joined by single hyphens, and no word of Python, such as 'my-method'"
        )
    made = {
        root / "methods" / f"{module}.py": "method.py.j2",
        root / "tests" / f"test_{module}.py": "test_method.py.j2",
    }
    _must_be_free(name, root, list(made))
    title = "".join(word.capitalize() for word in name.split("-"))
    for path, template in made.items():
        write_atomic(path, _render(template, name=name, module=module, title=title))
    return list(made)


def _must_be_free(name: str, root: Path, paths: list[Path]) -> None:
    for path in paths:
        if path.exists():
            raise BenchError(f"{path.relative_to(root)} exists already; choose another name")

    if name in methods():
        raise BenchError(f"method '{name}' is registered already; choose another name")


def _render(template: str, **names: str) -> str:
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.get_template(template).render(names)
