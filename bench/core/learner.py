"""Methods that bring tensors which training learns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, Unsupported
from bench.core.reducer import Reducer
from bench.core.site import Site


class Learner(Reducer):
    """A method that brings tensors, which training learns.

    Attributes:
        learns: the parameter that takes the tensors: a mapping by name, or a safetensors file with
            them under `LEARNS.NAME`. None gives none, and so does "random" to a `trained` method,
            which then makes stand-ins up on the way.
        trained: the method removes nothing sensible before it was trained.
        tables: the tensors by name.
    """

    learns: ClassVar[str]
    trained: ClassVar[bool] = False
    tables: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Read the tensors."""
        object.__setattr__(self, "tables", self.read(getattr(self, self.learns)))

    def read(self, tables: Mapping[str, Tensor] | str | Path | None) -> dict[str, Tensor]:
        """Tensors by name: those of a mapping, or a safetensors file's under `LEARNS.NAME`.

        Raises:
            BenchError: no such file, or it holds nothing under that name.
        """
        if tables is None or (tables == "random" and self.trained):
            return {}
        if isinstance(tables, Mapping) and all(isinstance(t, Tensor) for t in tables.values()):
            return dict(tables)
        if not isinstance(tables, str | Path):
            raise BenchError(f"{self.learns} must name a safetensors file, not be {tables!r}")
        from safetensors import SafetensorError, safe_open

        if not os.path.isfile(tables):
            raise BenchError(f"no file {tables}: {self.learns} must name a safetensors file")
        prefix = self.learns + "."
        try:
            with safe_open(str(tables), "pt") as file:  # which may hold a model's weights as well
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise BenchError(f"{tables} is no safetensors file ({error}): get it again") from None
        if not tensors:
            raise BenchError(f"{tables} holds no tensor named {prefix}NAME")
        return tensors

    @property
    def random(self) -> bool:
        """Whether stand-ins are asked for: enough to count costs."""
        return not self.tables and bool(getattr(self, self.learns) == "random")

    def at(self, site: Site) -> dict[str, Tensor]:
        """This tower's and layer's tables by NAME, from those named `TOWER.LAYER.NAME`.

        One that is named `TOWER.LAYER` has the name "".

        Raises:
            Unsupported: there is none.
        """
        key = f"{site.tower}.{site.layer}"
        tables = self.tables.items()
        here = {k[len(key) + 1 :]: v for k, v in tables if f"{k}.".startswith(f"{key}.")}
        if not here:
            layers = sorted({".".join(name.split(".")[:2]) for name in self.tables})
            has = f"only for {', '.join(layers)}" if layers else "for no layer"
            random = f", or give {self.learns}='random' to count costs" if self.trained else ""
            raise Unsupported(
                f"{self.name} has {self.learns} {has}, not for {key}: train some with --freeze or "
                f"choose its layers={random}"
            )
        return here

    def place(self, device: torch.device) -> None:
        """Have the tables on a device: to copy them there in each pass would wait for it.

        What is being learned stays where it is, and so does all for a model without values.
        """
        if device.type != "meta":
            still = {name: t for name, t in self.tables.items() if not t.requires_grad}
            self.tables.update((name, table.to(device)) for name, table in still.items())

    def untrained(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Tensor]:
        """What training begins with in towers of these (depth, width), beside `tables`."""
        raise NotImplementedError

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """Make parameters of the tables, old and untrained, for towers of these (depth, width).

        This instance goes on with the parameters, so that gradients reach them.
        """
        tables = {**self.untrained(shapes), **self.tables}
        parameters = {name: nn.Parameter(table.clone()) for name, table in tables.items()}
        self.tables.update(parameters)
        return parameters

    def loss(self, model: Any, text_of: Tensor | None = None) -> Tensor | None:
        """The method's own loss after a forward pass of `model` in training; None without one.

        `text_of` (B,) is the row of each image's text, where they are not paired by row.
        """
        return None


def needs_training(method: type[Reducer]) -> TypeGuard[type[Learner]]:
    """Whether a method removes nothing sensible before it was trained."""
    return issubclass(method, Learner) and method.trained
