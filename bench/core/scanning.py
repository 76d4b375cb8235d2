"""Finding what declares itself on import: modules of a package, and what other packages name."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any


def modules_of(package: str) -> list[ModuleType]:
    """Import every module of a package, by name; what they declare is in use from then on."""
    path = importlib.import_module(package).__path__
    return [
        importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(path)
    ]


def discover(package: str, group: str) -> None:
    """Import every module of a package, and what others name in an entry-point group."""
    modules_of(package)
    for plugin in entry_points(group=group):
        plugin.load()


def defined_in(module: ModuleType, base: type) -> list[Any]:
    """Return the subclasses of `base` that a module defines itself, in its order."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return [c for c in classes if issubclass(c, base) and c.__module__ == module.__name__]
