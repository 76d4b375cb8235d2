"""What a fine-tuning is to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError


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

        named = ("model", "method", "budget", "params")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in named}
        usual = {f.name: f.default for f in fields(self)}
        numbers = {key: value for key, value in values.items() if value != usual[key]}
        text = label(self.method, {**self.budget, **self.params, **numbers})
        return slug(f"{Path(self.model).name}-{text}")
