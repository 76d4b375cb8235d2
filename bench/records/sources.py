"""Hashes of source code: what a result depends on, without its comments.

Comments, docstrings and layout are left out, so that a better word retires no record. Nothing here
needs torch.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.core.code import code_of

HERE = Path(__file__).parents[1]
# What decides a number in a record, methods excepted: each cell's key has the hash of its own.
MEASURING = (
    "core/*.py",
    "engine/**/*.py",
    "measure/*.py",
    "models/blip.py",
    "models/class_tokens.py",
    "models/image_tower.py",
    "models/joint.py",
    "models/loaded.py",
    "models/multimodal.py",
    "models/vilt.py",
    "runs/answers.py",
    "runs/budgets.py",
    "runs/cell.py",
    "runs/counting.py",
    "runs/seed_average.py",
    "runs/session.py",
    "runs/solved_budgets.py",
    "runs/timings.py",
    "tasks/*.py",
)
# What stands among it and decides none: a better estimate retires no record.
ESTIMATING = ("measure/operators.py", "measure/rates.py", "measure/roofline.py")
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
    estimating = {HERE / name for name in ESTIMATING}
    return sorted({path for pattern in MEASURING for path in HERE.glob(pattern)} - estimating)


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
