"""What a fine-tuning is to do, and whether a folder holds that training or another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from bench.core import Learner, Reducer, registry
from bench.core.errors import BenchError, near_miss
from bench.core.kinds import Appender
from bench.engine.families import adapter_for
from bench.models.names import TRAINING
from bench.models.sources import tuned
from bench.models.sources.tuned import ADAPTER, WEIGHTS
from bench.training.loop import CHECKPOINT, Settings, TrainingError, check_same


@dataclass(frozen=True)
class Recipe:
    """What is fine-tuned, how the tokens are reduced meanwhile, and for how long.

    `rank` 0 trains all weights; a positive one trains adapters of that rank and leaves the weights.
    `weight` is the share of the method's own loss. `freeze` trains what the method learns, alone.
    """

    model: str = "embedded:clip-emoji"
    method: str = "none"
    budget: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 0.5
    data: str = ""
    epochs: float = 1.0
    batch: int = 32
    rate: float = 3e-4
    rank: int = 0
    freeze: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            BenchError: there is such a number.
        """
        for name, fine in {
            "epochs": self.epochs > 0,
            "batch": self.batch > 0,
            "rate": self.rate > 0,
            "rank": self.rank >= 0,
            "weight": 0 <= self.weight <= 1,
        }.items():
            if not fine:
                raise BenchError(f"{name} {getattr(self, name)} makes no sense in a fine-tuning")

    def name(self) -> str:
        """Return a folder name that tells one recipe from another."""
        from bench.records.record import label
        from bench.records.store import slug

        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        numbers = {key: own for key, (own, usual) in values.items() if own != usual}
        for key in ("model", "method", "budget", "params"):
            numbers.pop(key, None)
        said = label(self.method, {**self.budget, **self.params, **numbers})
        return slug(f"{Path(self.model).name}-{said}")


def reducer(recipe: Recipe) -> Reducer:
    """Return the method, with what it learned if the model was fine-tuned with it before."""
    method = registry.method(recipe.method)
    known = [f.name for f in fields(method) if f.init]  # type: ignore[arg-type]
    for name in recipe.params:
        if name not in known:
            hint = near_miss(name, known)
            raise BenchError(f"method '{recipe.method}' has no parameter '{name}'{hint}")
    params = dict(recipe.params)
    folder = tuned.folder_of(recipe.model)
    own = tuned.learned(folder).get(recipe.method) if folder else None
    if own is not None and issubclass(method, Learner):
        params.setdefault(method.learns, own)
    return method(**params)


def towers(reducer: Reducer, model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (depth, width) of the model's towers that a method learns something for, by name."""
    return {
        name: (len(tower.blocks), tower.width)
        for name, tower in adapter_for(model).towers(model).items()
        if name in reducer.towers or (isinstance(reducer, Appender) and name in reducer.visits)
    }


def done(settings: Settings, recipe: Recipe, about: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the scores if the folder holds this very training, finished."""
    out = settings.out
    itself = out.resolve() == Path(recipe.model).expanduser().resolve()
    if itself or (out / "config.json").is_file():
        raise TrainingError(f"{out} holds a model already: name another folder with --out")
    if not settings.resume or not (out / TRAINING).is_file():
        return None
    said = tuned.training(out)
    check_same(said, about, out)
    print(f"{out} is done already; --no-resume trains it again", file=sys.stderr)
    return dict(said["scores"])


def clear(out: Path) -> None:
    """Remove what an earlier training wrote: the new one may not write all of these files."""
    learned = [f"{name}.safetensors" for name in registry.methods()]
    for name in (TRAINING, ADAPTER, WEIGHTS, CHECKPOINT, *learned):
        (out / name).unlink(missing_ok=True)
