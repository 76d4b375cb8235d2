"""Source code as text that comments, docstrings and layout do not change."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path


def code_of(path: Path) -> str:
    """Return a Python file's syntax tree as text; of any other file, the hash of its bytes.

    The text is the same under every Python version that reads the file.
    """
    content = path.read_bytes()
    return _tree_of(content) if path.suffix == ".py" else hashlib.sha256(content).hexdigest()


@functools.cache
def _tree_of(content: bytes) -> str:
    return "".join(_canonical(ast.parse(content)))


def _canonical(node: object) -> Iterator[str]:
    """Yield a node's type and fields; those that are empty differ between Python versions."""
    if isinstance(node, list):
        yield "["
        for item in node:
            yield from _canonical(item)
        yield "]"
    elif isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name == "body" and _has_docstring(node):
                value = value[1:]
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment"):
                yield f" {name}="
                yield from _canonical(value)
        yield ")"
    else:
        yield repr(node)


def _has_docstring(node: ast.AST) -> bool:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
