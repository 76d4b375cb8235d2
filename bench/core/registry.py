"""The register of methods: a decorator, discovery, and errors that name the near miss.

Every module in `methods/` is imported on the first look-up, and so is every installed package that
names itself in the entry-point group `crossget_bench.methods`. The register holds classes, never
configured instances.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.core.code import code_of
from bench.core.errors import BenchError, check_known
from bench.core.scanning import discover

if TYPE_CHECKING:
    from bench.core import Reducer

T = TypeVar("T")
GROUP = "crossget_bench.methods"
_METHODS: dict[str, Any] = {}


def register(
    name: str, *, source: str, url: str = "", acts: str = ""
) -> Callable[[type[T]], type[T]]:
    """Class decorator: put a `Reducer` into the register.

    Args:
        name: what users type; lower case, words joined by hyphens.
        source: authors, venue, identifier and section the code follows.
        url: where to read it.
        acts: where it acts, for readers; by default, what its class attributes say.

    Raises:
        BenchError: the name is taken by another class.
    """

    def add(cls: type[T]) -> type[T]:
        other = _METHODS.get(name)
        if other is not None and _full_name(other) != _full_name(cls):
            raise BenchError(
                f"two methods are named '{name}': {other.__module__}, {cls.__module__}"
            )
        summary = (cls.__doc__ or "").split("\n\n")[0]
        texts = {"name": name, "source": source, "url": url, "summary": summary}
        for key, value in {**texts, "acts": acts or _where(cls)}.items():
            setattr(cls, key, " ".join(value.split()))
        _METHODS[name] = cls
        return cls

    return add


def _full_name(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _where(cls: Any) -> str:
    """Where a method acts, in words, by its budget and its class attributes."""
    if cls.towers == ("projector",):
        return f"{'before' if cls.before else 'behind'} the projector"
    layers = "chosen layers" if "keep_rate" in cls.budget else "every layer"
    return f"{layers}, {'before the block' if cls.before else 'after attention'}"


@functools.cache
def _discover() -> None:
    discover("methods", GROUP)


def methods() -> dict[str, type[Reducer]]:
    """All registered methods by name, sorted, `none` first."""
    _discover()
    return dict(sorted(_METHODS.items(), key=lambda kv: (kv[0] != "none", kv[0])))


def method(name: str) -> type[Reducer]:
    """The class registered as `name`.

    Raises:
        BenchError: no such method; the message names the near misses.
    """
    check_known("unknown method", name, methods(), "list methods")
    return methods()[name]


def source_hash(name: str, params: Mapping[str, Any] | None = None) -> str:
    """Sha256 over the code a method is made of: its module and the packages it imports from.

    Comments and docstrings are no code (`bench.core.code`).

    Followed are imports within the method's own top-level package and `crossget`, so that a change
    anywhere in a method can never be served an old result; and methods that `params` name.
    """
    seen: dict[str, str] = {}
    for cls in [method(name), *_composed_of(name, params or {})]:
        module = sys.modules[cls.__module__]
        _collect(module, {module.__name__.split(".")[0], "crossget"}, seen)
    digest = hashlib.sha256()
    for key in sorted(seen):
        digest.update(f"{key}\n{seen[key]}\n".encode())
    return digest.hexdigest()


def _composed_of(name: str, params: Mapping[str, Any]) -> list[type[Reducer]]:
    """The methods that a composition of these parameters runs; none for any other method."""
    from bench.core.kinds import Composition

    cls = method(name)
    if not issubclass(cls, Composition):
        return []
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    composition = cls(**{k: v for k, v in params.items() if k in known})
    return [method(part) for part, _ in composition.parts]


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
    from bench.core.learner import needs_training

    rows = ["| method | acts | trained | what it does | source |", "|---|---|---|---|---|"]
    for name, cls in methods().items():
        source = f"[{cls.source}]({cls.url})" if cls.url else cls.source
        trained = "yes" if needs_training(cls) else "no"
        rows.append(f"| `{name}` | {cls.acts} | {trained} | {cls.summary} | {source} |")
    return "\n".join(rows)
