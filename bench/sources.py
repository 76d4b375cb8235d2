"""Hashes of source code: what a result depends on, whatever is said about it.

Comments, docstrings and layout are left out, so that a better word retires no record. Nothing here
needs torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
# What decides a number in a record, methods excepted: each cell's key has the hash of its own.
MEASURING = (
    "adapters/*.py",
    "budgets.py",
    "cell.py",
    "cell_timing.py",
    "core.py",
    "decoder.py",
    "forward.py",
    "joint_feeds.py",
    "measure/*.py",
    "packed.py",
    "projector.py",
    "reading.py",
    "reduce.py",
    "schedules.py",
    "seeds.py",
    "session.py",
    "solving.py",
    "tasks/*.py",
)
LIBRARIES = ("torch", "timm", "transformers")


@functools.cache
def measurement_hash() -> str:
    """Return the sha256 over the measuring code."""
    digest = hashlib.sha256()
    for path in measuring_files():
        digest.update(f"{path.relative_to(HERE).as_posix()}\n{code_of(path)}\n".encode())
    return digest.hexdigest()


def measuring_files() -> list[Path]:
    """Return the files of the measuring code, in the order of their names."""
    return sorted(path for pattern in MEASURING for path in HERE.glob(pattern))


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on; those installed here."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


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
