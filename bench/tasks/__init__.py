"""Tasks by name: what a model is scored on.

`fashion-mnist` and the `emoji-` tasks ship with the project; the others read data, most in the
formats that the standard benchmarks are published in. A task is one file: its class, and a function
that loads it, registered with `@task`.
"""

from __future__ import annotations

from bench.records.record import Metric
from bench.tasks.base import Evaluation, Progress, Task
from bench.tasks.registry import catalogue, check_name, load, names, source_hash, task

__all__ = [
    "Evaluation",
    "Metric",
    "Progress",
    "Task",
    "catalogue",
    "check_name",
    "load",
    "names",
    "source_hash",
    "task",
]
