"""Figures as their authors printed them, read from `bench/assets/data/published.json`.

The file names the model, method and parameters of each cost, so that a new figure is a new row.
`bench.runs.verify` recomputes the costs, reports show the figures beside what was measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from importlib.resources import files
from typing import Any

from bench.core.errors import BenchError

UNITS = {
    "gmacs": "GMACs",
    "params_m": "M params",
    "gmacs_share": "of unreduced",
    "gmacs_per_layer": "GMACs/layer",
    "tflops": "TFLOPs",
    "tmacs": "TMACs",
    "cache_mb": "MB of KV cache",
    "ratio": "times",
}


@dataclass(frozen=True)
class PublishedCost:
    """One published cost, and what to build to recompute it.

    Attributes:
        figure: id of the figure it belongs to, such as "deit-s/tome".
        label: which of the figure's costs, such as "r=13".
        quantity: a key of `UNITS`.
        published: the number as printed.
        source: where it stands.
        model: key of the data file's `models`; empty where unsupported.
        method: registry name of the method.
        params: keyword arguments for `bench.reduced`.
        part: submodule to count alone; empty for the whole model.
        inputs: the model's inputs that `part` takes, by name; empty for all.
        passes: forward passes of single parts that the figure adds up, each `{"part", "inputs"}`,
            where the authors' model runs them otherwise than ours; empty for one of the model.
        words: tokens of a language model's prompt beside the image's.
        prompts: (image tokens, words) of each prompt that the figure is the mean of, where it is
            not one with the model's own image and `words`; only the language model is counted.
        convention: how its blocks' products are counted, a key of `conventions.CONVENTIONS`; empty
            where every operator that runs is.
        counted: what was counted, where that is not one forward pass of one sample.
        unsupported: why this cost is not recomputed; empty where it is.
        tolerance: share of the published value within which ours agrees.
        cut: the authors cut digits off instead of rounding, by what their figures show.
    """

    figure: str
    label: str
    quantity: str
    published: str
    source: str
    model: str = ""
    method: str = "none"
    params: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    inputs: tuple[str, ...] = ()
    passes: tuple[dict[str, Any], ...] = ()
    words: int = 0
    prompts: tuple[tuple[int, int], ...] = ()
    convention: str = ""
    counted: str = ""
    unsupported: str = ""
    tolerance: str = "0.01"
    cut: bool = False

    @property
    def decimals(self) -> int:
        """Digits printed after the point."""
        return -int(Decimal(self.published).as_tuple().exponent)

    @property
    def rounding(self) -> Decimal:
        """Half a unit of the last printed digit."""
        return Decimal((0, (5,), -self.decimals - 1))

    def within(self, ours: float) -> bool:
        """Whether `ours` agrees: within the tolerance or the rounding, whichever is larger."""
        published = Decimal(self.published)
        if self.cut and 0 <= Decimal(repr(ours)) - published < 2 * self.rounding:
            return True
        return abs(Decimal(repr(ours)) - published) <= max(
            Decimal(self.tolerance) * published, self.rounding
        )


@dataclass(frozen=True)
class PublishedResult:
    """What is printed of a model on a task, to be read beside rows that were measured here.

    Attributes:
        figure: id of the figure it belongs to.
        source: where it stands.
        model: how the names of the models end that it is about, or is the nearest to.
        task: the task's name up to its first colon.
        method: registry name of the method.
        accuracy: the numbers as printed, by the task's own metrics.
        setting: the method's, as printed.
        cost: label of the figure's cost that belongs to it; empty where none is printed.
        differs: what is otherwise than here.
    """

    figure: str
    source: str
    model: str
    task: str
    method: str
    accuracy: dict[str, str]
    setting: str = ""
    cost: str = ""
    differs: str = ""


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    text = files("bench.assets.data").joinpath("published.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def costs(only: str | None = None) -> list[PublishedCost]:
    """The published costs, in the order of the data file.

    Args:
        only: keep figures whose id contains this text.

    Raises:
        BenchError: no figure's id contains `only`.
    """
    figures = [f for f in _data()["figures"] if only is None or only in f["id"]]
    if not figures:
        known = ", ".join(f["id"] for f in _data()["figures"])
        raise BenchError(f"no published figure matches '{only}' — known: {known}")
    lists = ("inputs", "passes", "prompts")
    return [
        PublishedCost(
            f["id"], source=f["source"], **{**cost, **{k: tuple(cost.get(k, ())) for k in lists}}
        )
        for f in figures
        for cost in f["costs"]
    ]


def results(model: str, task: str) -> list[tuple[PublishedResult, PublishedCost | None]]:
    """What is printed of this model on this task, each with its cost, in the data file's order."""
    rows = [
        PublishedResult(f["id"], f["source"], **row)
        for f in _data()["figures"]
        for row in f.get("beside", [])
    ]
    by_name = {(cost.figure, cost.label): cost for cost in costs()}
    return [
        (row, by_name[row.figure, row.cost] if row.cost else None)
        for row in rows
        if model.endswith(row.model) and task.partition(":")[0] == row.task
    ]


def model_spec(name: str) -> dict[str, Any]:
    """Return how to build a model of the data file, a key of its `models`."""
    spec: dict[str, Any] = _data()["models"][name]
    return spec
