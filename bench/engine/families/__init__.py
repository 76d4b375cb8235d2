"""Adapters: where the tokens of each model family live. They never know which method runs.

Every module of this package is imported on the first look-up, and so is every installed package
that names itself in the entry-point group `crossget_bench.families`. Whatever subclass of `Adapter`
they define is in use from then on.

Which adapter a model gets: the one that names its class (`classes`); else the one that finds its
towers somewhere inside of the model (`matches`). Two that both name it, or both find it, are an
error, so that nothing hangs on the order in which files are read.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from bench.core.errors import BenchError, Unsupported
from bench.core.scanning import defined_in, modules_of

if TYPE_CHECKING:
    from torch import nn

    from bench.engine.tower import Tower

GROUP = "crossget_bench.families"


class Adapter(ABC):
    """Finds the towers of the models that it knows.

    Attributes:
        supports: the families, for messages.
        classes: names of the model classes that it is made for.
    """

    supports: ClassVar[Collection[str]]
    classes: ClassVar[Collection[str]] = ()

    def matches(self, model: nn.Module) -> bool:
        """Whether it finds its towers in a model of another class."""
        return False

    @abstractmethod
    def towers(self, model: Any) -> dict[str, Tower]:
        """The towers by name, in the order in which tokens pass them.

        Raises:
            Unsupported: the model is built otherwise than this adapter knows.
        """


@functools.cache
def adapters() -> tuple[Adapter, ...]:
    """One instance of every adapter: those of this package by module, then those of others.

    Raises:
        BenchError: a package names something else than an adapter, or a module with some.
    """
    ours = (cls for module in modules_of(__name__) for cls in defined_in(module, Adapter))
    return tuple(cls() for cls in (*ours, *_plugins()))


def _is_adapter(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Adapter) and value is not Adapter


def _plugins() -> Iterator[type[Adapter]]:
    for plugin in entry_points(group=GROUP):
        target = plugin.load()
        classes = [target] if _is_adapter(target) else defined_in(target, Adapter)
        if not classes:
            raise BenchError(
                f"'{plugin.value}' of the entry-point group {GROUP} is no subclass of "
                "bench.engine.families.Adapter and no module that defines one"
            )
        yield from classes


def supported() -> list[str]:
    """Model families that can be reduced, for messages and listings."""
    return sorted(name for adapter in adapters() for name in adapter.supports)


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter that knows `model`.

    Raises:
        Unsupported: none does; the message lists what is supported.
        BenchError: two of them do.
    """
    name = type(model).__name__
    named = [adapter for adapter in adapters() if name in adapter.classes]
    candidates = named or [adapter for adapter in adapters() if adapter.matches(model)]
    if not candidates:
        raise Unsupported(
            f"no adapter for {type(model).__module__}.{name}; supported: {'; '.join(supported())}"
        )
    if len(candidates) > 1:
        places = " and ".join(type(a).__module__ for a in candidates)
        raise BenchError(f"two adapters know {name}, those of {places}: uninstall one of them")
    return candidates[0]
