"""Names for people: of metrics, tasks and parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bench.records.record import COST_ONLY

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "i2t": "image→text",
    "t2i": "text→image",
    "mean_recall": "mean recall",
    "accuracy": "accuracy",
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "spice": "SPICE",
    "f1": "F1",
    "iou": "mean IoU",
}
BUDGET = ("r", "keep_rate", "layers", "budget")  # parameters along which a method is swept


def metric_name(name: str) -> str:
    """Write a metric's name for people: ``i2t_r1`` is ``image→text R@1``."""
    stem = next((stem for stem in METRIC_NAMES if f"{name}_".startswith(f"{stem}_")), name)
    shown, rest = METRIC_NAMES.get(stem, stem), name[len(stem) + 1 :]
    if re.fullmatch(r"r\d+", rest):
        return f"{shown} R@{rest[1:]}"
    rest = rest.replace("plain", "plain tokens").replace("_", " ")  # not the official tokenizer's
    return f"{shown}, {rest}" if rest else shown


def task_name(task: str) -> str:
    """Write a task's name for people."""
    return "cost only" if task == COST_ONLY else task


def series(method: str, params: Mapping[str, Any]) -> str:
    """Name what a curve is about: a method with its parameters, but for those of its budget.

    ``crossget, unguided``; a budget of one tower alone is named after the tower.
    """
    others = {name: value for name, value in params.items() if name not in BUDGET}
    towers = {tower for name in BUDGET for tower in _towers(params.get(name))}
    words = [*towers] if len(towers) == 1 else []
    if not (others.get("guided_matching", True) or others.get("guided_ensemble", True)):
        words.append("unguided")
        others = {name: value for name, value in others.items() if not name.startswith("guided_")}
    return ", ".join([method, *words, *(_in_words(*item) for item in others.items())])


def budget(params: Mapping[str, Any], extra: str = "") -> str:
    """Write what of a method's parameters is its budget: ``keep_rate=0.7, layers=3/6/9``."""
    return setting({name: _alone(params[name]) for name in params if name in BUDGET}, extra)


def _towers(value: Any) -> Iterable[str]:
    return value if isinstance(value, Mapping) else ()


def _alone(value: Any) -> Any:
    """Return a budget of one tower without the tower's name."""
    return next(iter(value.values())) if len([*_towers(value)]) == 1 else value


def _in_words(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    return f"{words} {_plain(value)}"


def setting(params: dict[str, Any], extra: str = "") -> str:
    """Write a method's parameters for people: ``r=8``, ``keep_rate=0.7, layers=3/6/9``."""
    parts = [f"{name}={_plain(value)}" for name, value in params.items()]
    return ", ".join([*parts, extra] if extra else parts)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "+".join(f"{name}:{_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        if len(value) > 2 and len(set(map(str, value))) == 1:
            return f"{len(value)}×{_plain(value[0])}"
        return "/".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
