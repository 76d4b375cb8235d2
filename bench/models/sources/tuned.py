"""Fine-tuned models: a folder that `run_bench.py train --method` wrote, or one that ships here.

The folder says in `training.json` which model it started from and what was done; that model is
loaded by its name and gets the folder's weights. `embedded:clip-emoji@NAME` is such a folder in
this project, with adapters in place of weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.models import names as model_names
from bench.models.catalogue import fingerprint
from bench.models.files import check_file, hash_files
from bench.models.loaded import Loaded
from bench.models.loading import read_json
from bench.models.names import TRAINING
from bench.models.tensors import check, fill, read, shapes

if TYPE_CHECKING:
    from torch import nn

ADAPTER, WEIGHTS = "adapter.safetensors", "model.safetensors"


def folder_of(name: str) -> Path | None:
    """Return the folder of the fine-tuned model called `name`; None if it is no such model."""
    parsed = model_names.parse(name)
    return parsed.path if parsed.kind == "tuned" else None


def names() -> list[str]:
    """Return the names of the fine-tuned models that ship with the project."""
    shipped = model_names.shipped()
    folders = sorted(shipped.iterdir()) if shipped.is_dir() else []
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
    from bench.models import catalogue

    about = training(folder)
    with _started_from(folder):
        base = catalogue.load(about["model"], random_weights=random_weights, seed=seed)
    if random_weights:
        return dataclasses.replace(base, name=name)
    for file in _weights(folder):
        if file.name == ADAPTER:
            _adapt(base.model, file, int(about.get("rank") or 0))
        else:
            fill(base.model, file)
    _check_learned(folder, about, base.model)
    sha = _with_own(str(base.provenance["sha256"]), folder)
    provenance = {**base.provenance, "weights": "fine-tuned", "training": about, "sha256": sha}
    return dataclasses.replace(base, name=name, provenance=provenance)


def _adapt(model: nn.Module, file: Path, rank: int) -> None:
    """Fold a file of adapters, one for each linear layer, into a model's weights."""
    from bench.training import lora

    factors = read(file)
    check(f"weights file {file}", lora.shapes(model, rank), shapes(factors))
    lora.fold(model, factors)


def sha256(folder: Path) -> str | None:
    """Return the hash of the weights and of what it started from; None if only loading can tell."""
    with _started_from(folder):
        base = fingerprint(training(folder)["model"])
    return None if base is None else _with_own(base, folder)


def _with_own(base: str, folder: Path) -> str:
    """Return the hash of a base model with what a folder adds, what methods learned included."""
    own = hash_files([*_weights(folder), *learned(folder).values()])
    return hashlib.sha256((base + own).encode()).hexdigest()


def _check_learned(folder: Path, about: Mapping[str, Any], model: nn.Module) -> None:
    """Raise BenchError when tensors that a method learned in the training are not in its file.

    Some methods would go on without them, as if untrained.
    """
    from bench.core import Learner, registry
    from bench.training import recipe

    kind, params = registry.method(about["method"]), about["params"]
    if not issubclass(kind, Learner):
        return
    file = folder / f"{about['method']}.safetensors"
    if kind.learns in params:  # the tensors began as those of another file, which may be gone
        check_file(file)
        return
    method = recipe.reducer(recipe.Recipe(about["model"], about["method"], params=params))
    assert isinstance(method, Learner)
    wanted = method.learn(recipe.towers(method, model))
    if wanted:
        names = {f"{kind.learns}.{name}": tensor for name, tensor in wanted.items()}
        check(f"weights file {file}", shapes(names), shapes(read(file)), surplus=True)


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
