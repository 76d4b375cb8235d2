"""Hashes of source code: what a result depends on, without its comments.

A result depends on the code that measures anything at all, and on that of its model's family, each
of which has a hash. So a new language model retires no record of an image encoder. Comments,
docstrings and layout are left out, so that a better word retires none either. Nothing here needs
torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.core.code import code_of

HERE = Path(__file__).parents[1]
# What decides a number in a record, methods excepted: each cell's key has the hash of its own.
MEASURING = (
    "core/*.py",
    "engine/**/*.py",
    "measure/*.py",
    "models/class_tokens.py",
    "models/image_tower.py",
    "models/loaded.py",
    "records/precision.py",
    "runs/answers.py",
    "runs/asking.py",
    "runs/budgets.py",
    "runs/cell.py",
    "runs/counting.py",
    "runs/growing.py",
    "runs/seed_average.py",
    "runs/session.py",
    "runs/solved_budgets.py",
    "runs/stopping.py",
    "runs/timings.py",
    "tasks/*.py",
)
# What stands among it and decides none: a better estimate retires no record.
ESTIMATING = ("measure/operators.py", "measure/rates.py", "measure/roofline.py")
# What decides numbers of some models alone, and where each family's part of it begins: a family is
# measured by these files and by all of `FAMILY_CODE` that they import.
FAMILY_CODE = (
    *("engine/families/[!_]*.py", "models/blip.py", "models/films.py", "models/joint.py"),
    *("models/multimodal.py", "models/noise.py", "models/vilt.py"),
)
FAMILIES = {
    "timm": ("engine/families/timm_vit.py",),
    "encoders": ("engine/families/hf.py", "engine/families/hf_placed.py"),
    "blip": ("engine/families/blip.py", "models/blip.py"),
    "vilt": ("engine/families/vilt.py", "models/vilt.py"),
    "multimodal": ("engine/families/vlm.py", "models/multimodal.py"),
}
LIBRARIES = ("torch", "timm", "transformers")


@functools.cache
def measurement_hash() -> str:
    """Return the sha256 over the code that measures models of any family."""
    return _hash(measuring_files())


@functools.cache
def family_hash(family: str) -> str:
    """Return the sha256 over the code that measures models of one family alone, of `FAMILIES`.

    Of another name ("" is that of a model whose type is not known yet) it is over that of all.
    """
    return _hash(family_files(family))


def code_hash() -> str:
    """Return the sha256 over all code that measures."""
    return hashlib.sha256((measurement_hash() + family_hash("")).encode()).hexdigest()


def is_current(provenance: Mapping[str, Any]) -> bool:
    """Whether the code at hand took a record with this provenance."""
    now = {
        "measurement_sha256": measurement_hash(),
        "family_sha256": family_hash(str(provenance.get("family"))),
    }
    return all(provenance.get(name) == value for name, value in now.items())


def measuring_files() -> list[Path]:
    """Return the files that measure models of any family, in the order of their names."""
    apart = {*_files(ESTIMATING), *_files(FAMILY_CODE)}
    return sorted(_files(MEASURING) - apart)


def family_files(family: str) -> list[Path]:
    """Return the files that measure models of one family alone; see `family_hash`."""
    apart = _files(FAMILY_CODE)
    reached: set[Path] = set()
    waiting = _files(FAMILIES[family]) if family in FAMILIES else apart
    while waiting:
        reached |= waiting
        waiting = {file for path in waiting for file in _imported(path)} & apart - reached
    return sorted(reached)


def _files(patterns: Iterable[str]) -> set[Path]:
    return {path for pattern in patterns for path in HERE.glob(pattern)}


def _imported(path: Path) -> Iterator[Path]:
    """Yield the files of this package that a file imports modules, or names, from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                yield HERE.parent / f"{name.replace('.', '/')}.py"


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(HERE).as_posix()}\n{code_of(path)}\n".encode())
    return digest.hexdigest()


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
