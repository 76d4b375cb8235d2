"""Names for people: of metrics, tasks and parameters."""

from __future__ import annotations

import re
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
