"""Which statements of the harness speak of CUDA, and which of them ran."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = ("body", "orelse", "finalbody")


class Statement(NamedTuple):
    """A statement, or the head of one that holds others."""

    file: str
    first: int
    last: int

    def __str__(self) -> str:
        """As an editor finds it."""
        return f"{Path(self.file).relative_to(ROOT)}:{self.first}"


def speaking(files: Iterator[Path]) -> list[Statement]:
    """Statements in functions that name cuda, and those that run only where there is CUDA."""
    found = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                lines = _lines(function, "cuda" in function.name)
                found += [Statement(str(file), *line) for line in lines]
    return sorted(set(found))


def _lines(block: ast.AST, inside: bool) -> Iterator[tuple[int, int]]:
    """First and last lines in a function or a branch; of all where it is `inside` CUDA's."""
    children = [part for name in BLOCKS for part in getattr(block, name, ())]
    for handler in getattr(block, "handlers", ()):
        children += handler.body
    for part in children:
        if isinstance(part, ast.FunctionDef) or _is_docstring(part):
            continue
        head, last = _head(part)
        if head and (inside or "cuda" in head):
            yield part.lineno, last
        yield from _lines(part, inside or (isinstance(part, ast.If) and _asks_for_cuda(head)))


def _is_docstring(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)


def _head(part: ast.stmt) -> tuple[str, int]:
    """What a statement says ahead of the statements in it, and its last line."""
    if not hasattr(part, "body"):
        return ast.unparse(part), part.end_lineno or part.lineno
    parts = [getattr(part, "test", None), getattr(part, "iter", None), *getattr(part, "items", ())]
    text = " ".join(ast.unparse(one) for one in parts if one is not None)
    return text, max(part.lineno, part.body[0].lineno - 1)


def _asks_for_cuda(test: str) -> bool:
    return "cuda" in test and "!=" not in test


class Lines:
    """The lines that ran of some files."""

    def __init__(self, files: set[str]) -> None:
        self.files, self.ran = files, defaultdict(set)

    def missing(self, statements: list[Statement]) -> list[str]:
        """The statements that did not run."""
        return [
            str(one)
            for one in statements
            if not self.ran[one.file] & set(range(one.first, one.last + 1))
        ]

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self.files else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.ran[frame.f_code.co_filename].add(frame.f_lineno)
        return self._line

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the lines that run in the block."""
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)
