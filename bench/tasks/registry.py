"""The register of tasks: a decorator, discovery, and errors that name the near miss.

    @task("imagefolder:PATH", "classification; one folder a class")
    def image_folder(path: str) -> Task: ...

Every module of `bench.tasks` is imported on the first look-up, and so is what installed packages
name in the entry-point group `crossget_bench.tasks`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.core.code import code_of
from bench.core.errors import BenchError, near_miss
from bench.core.names import check_name as check_name_of
from bench.core.scanning import discover
from bench.tasks.base import Task, hash_of

GROUP = "crossget_bench.tasks"
Loader = TypeVar("Loader", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """A registered task.

    Attributes:
        form: its name, or what a name is to look like: "pope:JSON:IMAGES".
        summary: a line about it.
        load: returns the task, from what follows the form's first colon where it has one.
    """

    form: str
    summary: str
    load: Callable[..., Task]

    @property
    def scheme(self) -> str:
        """The name up to its first colon."""
        return self.form.partition(":")[0]

    @property
    def reads_data(self) -> bool:
        """Whether a name says where the data are; otherwise they ship with the task."""
        return ":" in self.form


_ENTRIES: dict[str, Entry] = {}


def task(form: str, summary: str) -> Callable[[Loader], Loader]:
    """Register the function below as the loader of a task.

    Args:
        form: the task's name, for data that ship with it; or the form of its names, such as
            "pope:JSON:IMAGES", and the function takes what follows the first colon.
        summary: a line about it, for `run_bench.py list tasks`.

    Raises:
        BenchError: the name is taken by another function.
    """

    def add(load: Loader) -> Loader:
        entry = Entry(form, summary, load)
        other = _ENTRIES.get(entry.scheme)
        if other is not None and other.load.__module__ != load.__module__:
            modules = f"{other.load.__module__}, {load.__module__}"
            raise BenchError(f"two tasks are named '{entry.scheme}': {modules}")
        _ENTRIES[entry.scheme] = entry
        return load

    return add


@functools.cache
def _discover() -> None:
    discover("bench.tasks", GROUP)


def entries() -> dict[str, Entry]:
    """Return every registered task by its scheme, those whose data ship with them first."""
    _discover()
    return dict(sorted(_ENTRIES.items(), key=lambda item: (item[1].reads_data, item[0])))


def catalogue() -> dict[str, str]:
    """Return every kind of name that `load` takes, with a line about each."""
    return {entry.form: entry.summary for entry in entries().values()}


def names() -> list[str]:
    """Return the names of the tasks whose data ship with them."""
    return [name for name, entry in entries().items() if not entry.reads_data]


def check_name(name: str) -> None:
    """Raise BenchError when no task can be meant by `name`; reads no data."""
    check_name_of("task", name)
    scheme, colon, rest = name.partition(":")
    entry = entries().get(scheme)
    if entry is not None and entry.reads_data and not rest:
        raise BenchError(f"task '{name}' names no data: write {entry.form}")
    if entry is None or (colon and not entry.reads_data):
        schemes = [form for form, entry in entries().items() if entry.reads_data]
        written, known = (scheme, schemes) if colon else (name, list(catalogue()))
        raise BenchError(f"unknown task '{name}'{near_miss(written, known, 'list tasks')}")


def load(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        BenchError: unknown name, or its data are missing or unusable; the message names the fix.
    """
    check_name(name)
    scheme, _, rest = name.partition(":")
    entry = entries()[scheme]
    return entry.load(rest) if entry.reads_data else entry.load()


def source_hash(name: str) -> str | None:
    """Return the sha256 over the code of a task of another distribution; None of our own.

    The code of our own tasks is measuring code, whose hash is in every key.
    """
    module = sys.modules[entries()[name.partition(":")[0]].load.__module__]
    if module.__name__.startswith("bench.tasks.") or module.__file__ is None:
        return None
    return hash_of(code_of(Path(module.__file__)))
