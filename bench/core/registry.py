"""The register of methods: a decorator, discovery, and errors that name the near miss.

Every module in `methods/` is imported on the first look-up, and so is every installed package that
names itself in the entry-point group `crossget_bench.methods`. The register holds classes, never
configured instances.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.core.code import code_of
from bench.core.errors import BenchError, near_miss

if TYPE_CHECKING:
    from bench.core import Reducer

T = TypeVar("T")
GROUP = "crossget_bench.methods"
_METHODS: dict[str, Any] = {}


def register(name: str, *, source: str, url: str = "") -> Callable[[type[T]], type[T]]:
    """Class decorator: put a `Reducer` into the register.

    Args:
        name: what users type; lower case, words joined by hyphens.
        source: authors, venue, identifier and section the code follows.
        url: where to read it.

    Raises:
        BenchError: the name is taken by another class.
    """

    def add(cls: type[T]) -> type[T]:
        old = _METHODS.get(name)
        if old is not None and (old.__module__, old.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise BenchError(f"two methods are named '{name}': {old.__module__}, {cls.__module__}")
        summary = (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        for key, value in {"name": name, "source": source, "url": url, "summary": summary}.items():
            setattr(cls, key, " ".join(value.split()))
        _METHODS[name] = cls
        return cls

    return add


@functools.cache
def _discover() -> None:
    package = importlib.import_module("methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"methods.{module.name}")
    for plugin in entry_points(group=GROUP):
        plugin.load()


def methods() -> dict[str, type[Reducer]]:
    """All registered methods by name, sorted, `none` first."""
    _discover()
    return dict(sorted(_METHODS.items(), key=lambda kv: (kv[0] != "none", kv[0])))


def method(name: str) -> type[Reducer]:
    """The class registered as `name`.

    Raises:
        BenchError: no such method; the message names the near misses.
    """
    found = methods()
    if name not in found:
        raise BenchError(f"unknown method '{name}'{near_miss(name, found)}")
    return found[name]


def source_hash(name: str, params: Mapping[str, Any] | None = None) -> str:
    """Sha256 over the code a method is made of: its module and the packages it imports from.

    Comments and docstrings are no code (`bench.core.code`).

    Followed are imports within the method's own top-level package and `crossget`, so that a change
    anywhere in a method can never be served an old result; and methods that `params` name.
    """
    cls = method(name)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields = {k: v for k, v in (params or {}).items() if k in known}
    seen: dict[str, str] = {}
    for one in [cls, *(method(part) for part, _ in cls(**fields).parts or ())]:
        own = sys.modules[one.__module__]
        _collect(own, {own.__name__.split(".")[0], "crossget"}, seen)
    digest = hashlib.sha256()
    for key in sorted(seen):
        digest.update(f"{key}\n{seen[key]}\n".encode())
    return digest.hexdigest()


def _collect(module: Any, roots: set[str], seen: dict[str, str]) -> None:
    path = getattr(module, "__file__", None)
    if module.__name__ in seen or path is None:
        return
    seen[module.__name__] = code_of(Path(path))
    for value in list(vars(module).values()):
        name = value.__name__ if hasattr(value, "__spec__") else getattr(value, "__module__", None)
        if isinstance(name, str) and name.split(".")[0] in roots and name in sys.modules:
            _collect(sys.modules[name], roots, seen)


def method_table() -> str:
    """The README's table of methods, in Markdown, made from the register."""
    rows = ["| method | acts | trained | what it does | source |", "|---|---|---|---|---|"]
    for name, cls in methods().items():
        source = f"[{cls.source}]({cls.url})" if cls.url else cls.source
        trained = "yes" if cls.trained else "no"
        rows.append(f"| `{name}` | {cls.acts} | {trained} | {cls.summary} | {source} |")
    return "\n".join(rows)
