"""Fine-tuned models: a folder that `run_bench.py train --method` wrote, or one that ships here.

The folder says in `training.json` which model it started from and what was done; that model is
loaded by its name and gets the folder's weights. `embedded:clip-emoji@NAME` is such a folder in
this project, with adapters in place of weights (`bench.models.adapters`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.assets import embedded
from bench.core import Learner, registry
from bench.core.errors import BenchError, check_known
from bench.models import adapters, learning, tensors
from bench.models.catalogue import Source, load, source_of
from bench.models.files import check_file, folder_named, hash_files, read_mapping
from bench.records.record import label

if TYPE_CHECKING:
    from torch import nn

    from bench.models.loaded import Loaded

TRAINING = "training.json"  # which the folder of a fine-tuned model holds
KINDS = {"model": str, "method": str, "budget": dict, "params": dict, "rank": int}
ADAPTER, WEIGHTS = "adapter.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Tuned(Source):
    """A model that began as another; it `ships` where it is one of this project."""

    folder: Path
    ships: bool

    precedence = 20

    @classmethod
    def take(cls, name: str) -> Self | None:
        base, at, folder_name = name.partition("@")
        if at and base.startswith("embedded:"):
            return cls(name, shipped() / folder_name, True)
        folder = folder_named(name)
        if folder is None or not (folder / TRAINING).exists():
            return None
        return cls(name, folder, False)

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        folders = sorted(shipped().iterdir()) if shipped().is_dir() else []
        about = {f.name: training(f) for f in folders if (f / TRAINING).is_file()}
        return {
            f"{one['model']}@{name}": f"fine-tuned with {label(one['method'], one['budget'])}"
            for name, one in about.items()
        }

    def check(self, random_weights: bool = False) -> None:
        if self.ships:
            check_known("unknown model", self.name, self.listing(), "list models")
        folders: list[Path] = []
        source: Source = self
        while isinstance(source, Tuned):
            folder = source.folder.resolve()
            if folder in folders:
                raise BenchError(f"{source.folder / TRAINING} names a model that began as itself")
            folders.append(folder)
            source = source_of(training(folder)["model"])

    def build(self, random_weights: bool, seed: int) -> Loaded:
        about = training(self.folder)
        with self._started_from():
            if random_weights:  # which may be none at all, on the meta device
                return replace(source_of(about["model"]).build(True, seed), name=self.name)
            base = load(about["model"], seed=seed)
        for file in self._weights():
            if file.name == ADAPTER:
                factors = tensors.read(file)
                wanted = adapters.shapes(base.model, about["rank"])
                tensors.check(f"weights file {file}", wanted, tensors.shapes(factors))
                adapters.fold(base.model, factors)
            else:
                tensors.fill(base.model, file)
        self._check_learned(about, base.model)
        sha = self._hash_with(str(base.provenance["sha256"]))
        provenance = {**base.provenance, "weights": "fine-tuned", "training": about, "sha256": sha}
        return replace(base, name=self.name, provenance=provenance)

    def fingerprint(self) -> str | None:
        with self._started_from():
            base = source_of(training(self.folder)["model"]).fingerprint()
        return None if base is None else self._hash_with(base)

    def _hash_with(self, base: str) -> str:
        """Return the hash of the base model with what the folder adds."""
        added = hash_files([*self._weights(), *self.learned().values()])
        return hashlib.sha256((base + added).encode()).hexdigest()

    def model_type(self) -> str:
        return source_of(training(self.folder)["model"]).model_type()

    def family(self) -> str:
        return source_of(training(self.folder)["model"]).family()

    def learned(self) -> dict[str, Path]:
        files = sorted(self.folder.glob("*.safetensors"))
        return {file.stem: file for file in files if file.name not in (ADAPTER, WEIGHTS)}

    def _weights(self) -> list[Path]:
        """Return the file with the weights; none where only what the method learns was trained."""
        for name in (ADAPTER, WEIGHTS):
            if (self.folder / name).is_file():
                return [self.folder / name]
        if training(self.folder).get("freeze"):
            return []
        raise BenchError(f"{self.folder} has no weights ({WEIGHTS} or {ADAPTER}): train it again")

    def _check_learned(self, about: Mapping[str, Any], model: nn.Module) -> None:
        """Raise BenchError when tensors that a method learned in the training are not in its file.

        Some methods would go on without them, as if untrained.
        """
        kind, params = registry.method(about["method"]), about["params"]
        if not issubclass(kind, Learner):
            return
        file = self.folder / f"{about['method']}.safetensors"
        if kind.learns in params:  # they began as the tensors of another file, which may be gone
            check_file(file)
            return
        method = learning.reducer(about["method"], params, learned_with(about["model"]))
        assert isinstance(method, Learner)
        wanted = method.learn(learning.towers(method, model))
        if wanted:
            names = {f"{kind.learns}.{name}": tensor for name, tensor in wanted.items()}
            saved = tensors.shapes(tensors.read(file))
            tensors.check(f"weights file {file}", tensors.shapes(names), saved, surplus=True)

    @contextlib.contextmanager
    def _started_from(self) -> Iterator[None]:
        try:
            yield
        except BenchError as error:
            raise BenchError(f"what {self.folder} started from: {error}") from error


def shipped() -> Path:
    """Return the folder of the fine-tuned models that ship with the project."""
    return embedded.path("tuned")


def training(folder: Path) -> dict[str, Any]:
    """Return what a folder says of its training."""
    about = {"rank": 0, **read_mapping(folder / TRAINING)}
    for key, kind in KINDS.items():
        if not isinstance(about.get(key), kind):
            raise BenchError(
                f"{folder / TRAINING} has no '{key}' that fits: it is not of `train --method`"
            )
    return about


def learned_with(model: str) -> dict[str, Path]:
    """Return what methods learned in the training of a model; nothing if it was not fine-tuned."""
    source = source_of(model)
    return source.learned() if isinstance(source, Tuned) else {}
