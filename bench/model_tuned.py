"""Fine-tuned models: a folder that `run_bench.py train --method` wrote, or one that ships here.

The folder says in `training.json` which model it started from and what was done; that model is
loaded by its name and gets the folder's weights. `embedded:clip-emoji@NAME` is such a folder in
this project, with adapters in place of weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.model_sources import read_json
from bench.models import Loaded, check_file, fingerprint, hash_files

TRAINING, ADAPTER, WEIGHTS = "training.json", "adapter.safetensors", "model.safetensors"


def folder_of(name: str) -> Path | None:
    """Return the folder of the fine-tuned model called `name`; None if it is no such model."""
    base, at, which = name.partition("@")
    if at and base.startswith("embedded:"):
        return _shipped() / which
    folder = Path(name).expanduser()
    return folder if (folder / TRAINING).is_file() else None


def _shipped() -> Path:
    from bench import embedded

    return embedded.path("tuned")


def names() -> list[str]:
    """Return the names of the fine-tuned models that ship with the project."""
    folders = sorted(_shipped().iterdir()) if _shipped().is_dir() else []
    return [
        f"{training(folder)['model']}@{folder.name}"
        for folder in folders
        if (folder / TRAINING).is_file()
    ]


def training(folder: Path) -> dict[str, Any]:
    """Return what a folder says of its training."""
    about = read_json(folder / TRAINING)
    if not isinstance(about.get("model"), str):
        raise BenchError(f"{folder / TRAINING} names no model: it is not of `train --method`")
    return about


def load(name: str, folder: Path, random_weights: bool, seed: int) -> Loaded:
    """Return the model that the folder started from, with the folder's weights."""
    from safetensors.torch import load_file

    from bench import models
    from bench.training.lora import fold

    about = training(folder)
    with _started_from(folder):
        base = models.load(about["model"], random_weights=random_weights, seed=seed)
    if random_weights:
        return dataclasses.replace(base, name=name)
    weights = _weights(folder)
    try:
        for file in weights:
            check_file(file)
            state = load_file(file)
            if file.name == ADAPTER:
                fold(base.model, state)
            else:
                base.model.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise BenchError(f"{weights[0]} does not fit {about['model']}: train it again") from error
    sha = _with_own(str(base.provenance["sha256"]), folder)
    provenance = {**base.provenance, "weights": "fine-tuned", "training": about, "sha256": sha}
    return dataclasses.replace(base, name=name, provenance=provenance)


def sha256(folder: Path) -> str | None:
    """Return the hash of the weights and of what it started from; None if only loading can tell."""
    with _started_from(folder):
        base = fingerprint(training(folder)["model"])
    return None if base is None else _with_own(base, folder)


def _with_own(base: str, folder: Path) -> str:
    """Return the hash of a base model with what a folder adds, what methods learned included."""
    own = hash_files([*_weights(folder), *learned(folder).values()])
    return hashlib.sha256((base + own).encode()).hexdigest()


@contextlib.contextmanager
def _started_from(folder: Path) -> Iterator[None]:
    try:
        yield
    except BenchError as error:
        raise BenchError(f"what {folder} started from: {error}") from error


def learned(folder: Path) -> dict[str, Path]:
    """Return the files in which methods keep what they learned, by the method's name."""
    found = sorted(folder.glob("*.safetensors"))
    return {file.stem: file for file in found if file.name not in (ADAPTER, WEIGHTS)}


def _weights(folder: Path) -> list[Path]:
    """Return the file with the weights; none where only what the method learns was trained."""
    for name in (ADAPTER, WEIGHTS):
        if (folder / name).is_file():
            return [folder / name]
    if training(folder).get("freeze"):
        return []
    raise BenchError(f"{folder} has no weights ({WEIGHTS} or {ADAPTER}): train it again")
