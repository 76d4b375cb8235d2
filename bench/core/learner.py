"""Methods that bring tensors which training learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bench.core.errors import BenchError, Unsupported
from bench.core.reducer import Reducer
from bench.core.site import Site


class Learner(Reducer):
    """A method that brings tensors, which training learns.

    The parameter that `learns` names gives them (or nothing: None, or "random" stand-ins made up on
    the way); they are kept in `tables`.
    """

    tables: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Read the tensors."""
        object.__setattr__(self, "tables", self.read(getattr(self, self.learns)))

    def read(self, given: Mapping[str, Tensor] | str | Path | None) -> dict[str, Tensor]:
        """Tensors by name, themselves or a safetensors file's under `LEARNS.NAME`.

        Raises:
            BenchError: no such file, or it holds nothing under that name.
        """
        if given is None or (given == "random" and self.trained):
            return {}
        if not isinstance(given, str | Path):
            return dict(given)
        from safetensors import safe_open

        if not Path(given).is_file():
            raise BenchError(f"no file {given}: {self.learns} must name a safetensors file")
        prefix = self.learns + "."
        with safe_open(str(given), "pt") as file:  # which may hold a model's weights as well
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            found = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        if not found:
            raise BenchError(f"{given} holds no tensor named {prefix}NAME")
        return found

    @property
    def learned(self) -> Mapping[str, Tensor]:
        """The tables."""
        return self.tables

    def at(self, site: Site) -> dict[str, Tensor]:
        """This tower's and layer's tables by NAME, from those named `TOWER.LAYER.NAME`.

        One that is named `TOWER.LAYER` has the name "".

        Raises:
            Unsupported: there is none.
        """
        key = f"{site.tower}.{site.layer}"
        tables = self.tables.items()
        found = {k[len(key) + 1 :]: v for k, v in tables if f"{k}.".startswith(f"{key}.")}
        if not found:
            layers = sorted({".".join(name.split(".")[:2]) for name in self.tables})
            has = f"only for {', '.join(layers)}" if layers else "for no layer"
            random = f", or give {self.learns}='random' to count costs" if self.trained else ""
            raise Unsupported(
                f"{self.name} has {self.learns} {has}, not for {key}: train some with --freeze or "
                f"choose its layers={random}"
            )
        return found

    def untrained(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Tensor]:
        """What to begin with in towers of these (depth, width), where nothing is given."""
        raise NotImplementedError

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """Make parameters of the tables, given or untrained."""
        tables = {**self.untrained(shapes), **self.tables}
        learned = {name: nn.Parameter(table.clone()) for name, table in tables.items()}
        self.tables.update(learned)
        return learned
