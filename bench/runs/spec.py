"""A suite: which models × tasks × methods × profiles a run covers, written in YAML.

```yaml
description: a first comparison
models:
  - embedded:vit-fashion                      # a name, or a mapping with the model's own tasks
  - {name: embedded:clip-emoji, tasks: [emoji-retrieval]}
tasks: [fashion-mnist]                        # for models that name none
methods:
  - {name: tome, r: [4, 8, 16]}               # a list is a sweep: one cell for each value
  - {name: evit, keep_rate: [0.7, 0.5], layers: [3, 6, 9]}    # `layers` is one value
  - {name: topk, budget: [70% gmacs, 50% gmacs]}              # solved for each model
profiles: [auto]
limit: 1000                                   # samples used for accuracy, at most
precision: 4                                  # fewer, once a difference is known to ±4 points
```

The unreduced model (`none`) is always run, and first. `extends: quick` takes every key that is not
written from another suite. A mistake is reported as `FILE:LINE: …`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bench.core.documents import YAML_BYTES, parse_yaml, read_text
from bench.core.errors import BenchError, near_miss, reason_of
from bench.core.names import check_name
from bench.core.numbers import LARGEST
from bench.records.record import BASELINE, COST_ONLY, EAGER, Cell, Engine, label

Where = tuple[str | int, ...]  # a place in a document: keys and list positions from the top
OPTIONS: Mapping[str | int, str] = {  # of `run`, where they have other names than a suite's keys
    "models": "model", "tasks": "task", "methods": "method", "profiles": "profile",
    "dtypes": "dtype", "backends": "backend", "engines": "engine", "batch_sizes": "batch",
    "answer_batches": "answer_batch",
    "latency_seconds": "seconds",
}  # fmt: skip
SUITES = Path(__file__).parents[1] / "assets" / "suites"

LARGEST_BATCH, LONGEST_SECONDS, WIDEST_POINTS = 1 << 20, 3600, 100
NOT_SWEPT = frozenset({"layers"})  # parameters whose value is itself a list


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class ModelEntry(BaseModel):
    """A model of a suite, with the tasks it is to be run on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: str
    tasks: list[str] | None = None
    random_weights: bool | None = None
    baseline: bool = True  # run the unreduced model as well
    data: str = ""  # where the data of its tasks can be had
    instead: ModelEntry | None = None  # runs in its place where its weights are out of reach


class MethodEntry(BaseModel):
    """A method of a suite; every other key is one of its parameters, swept where it is a list."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str
    models: Annotated[list[str], Field(min_length=1)] | None = None  # only on these models
    tasks: Annotated[list[str], Field(min_length=1)] | None = None  # only on these tasks

    def sweeps(self) -> list[dict[str, Any]]:
        """Return one mapping of parameters for each cell, in the order they are written."""
        axes = self._axes()
        products = itertools.product(*axes.values())
        return [dict(zip(axes, values, strict=True)) for values in products]

    def asks_for(self, params: Mapping[str, Any]) -> bool:
        """Whether `sweeps` has these parameters."""
        axes = self._axes()
        return params.keys() == axes.keys() and all(params[key] in axes[key] for key in axes)

    def _axes(self) -> dict[str, list[Any]]:
        """Return the values of each parameter, in the order they are written."""
        return {
            key: value
            if isinstance(value, list)
            and not (key in NOT_SWEPT and not any(isinstance(item, list) for item in value))
            else [value]
            for key, value in (self.model_extra or {}).items()
        }


Dtype = Literal["float32", "bfloat16", "float16"]
Backend = Literal["sdpa", "eager"]
Batch = Annotated[int, Field(strict=True, ge=1, le=LARGEST_BATCH)]


class Suite(BaseModel):
    """A parsed suite. `None` leaves the choice to the hardware profile."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: str
    description: str = ""
    models: Annotated[list[Annotated[ModelEntry, BeforeValidator(_named)]], Field(min_length=1)]
    tasks: list[str] = []
    names: dict[str, str] = {}  # short names of models and tasks, by their own
    methods: Annotated[list[Annotated[MethodEntry, BeforeValidator(_named)]], Field(min_length=1)]
    profiles: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)] = ["auto"]
    dtypes: Annotated[list[Dtype], BeforeValidator(_listed), Field(min_length=1)] | None = None
    backends: Annotated[list[Backend], BeforeValidator(_listed), Field(min_length=1)] | None = None
    engines: Annotated[list[Engine], BeforeValidator(_listed), Field(min_length=1)] = [EAGER]
    batch_sizes: Annotated[list[Batch], BeforeValidator(_listed), Field(min_length=1)] | None = None
    answer_batches: Annotated[list[Batch], BeforeValidator(_listed), Field(min_length=1)] = [1]
    limit: Annotated[int, Field(strict=True, ge=1, le=LARGEST)] | None = None
    precision: Annotated[float, Field(strict=True, gt=0, le=WIDEST_POINTS)] | None = None
    latency_seconds: Annotated[float, Field(strict=True, gt=0, le=LONGEST_SECONDS)] = 1.5
    random_weights: bool = False
    missing: Literal["error", "cost"] = "error"  # where weights or data are out of reach
    seed: Annotated[int, Field(strict=True, ge=0, le=LARGEST)] = 0

    @property
    def known_models(self) -> dict[Where, ModelEntry]:
        """The models, and those that stand in for others, by their places in the document."""
        first: dict[Where, ModelEntry] = {("models", i): m for i, m in enumerate(self.models)}
        second = {(*where, "instead"): m.instead for where, m in first.items() if m.instead}
        return {**first, **second}

    def cells(self) -> list[Cell]:
        """Return the cells, grouped by profile, model and task, the unreduced model first."""
        cells: dict[str, Cell] = {}  # by what tells them apart: writing a method twice runs it once
        for profile, model in itertools.product(self.profiles, self.models):
            tasks = model.tasks or self.tasks or [COST_ONLY]
            dtypes: list[Any] = list(self.dtypes or ()) or [None]
            backends: list[Any] = list(self.backends or ()) or [None]
            kinds = itertools.product(dtypes, backends, self.engines, tasks)
            for dtype, backend, engine, task in kinds:
                for method, params in self._methods(model, task):
                    cell = Cell(
                        suite=self.name,
                        model=model.name,
                        task=task,
                        method=method,
                        params=params,
                        label=label(method, params),
                        profile=profile,
                        seed=self.seed,
                        limit=self.limit,
                        precision=self.precision,
                        baseline=method == BASELINE,
                        random_weights=self.random_weights
                        if model.random_weights is None
                        else model.random_weights,
                        dtype=dtype,
                        backend=backend,
                        engine=engine,
                        batch_sizes=tuple(self.batch_sizes) if self.batch_sizes else None,
                        answer_batches=tuple(self.answer_batches),
                        latency_seconds=self.latency_seconds,
                        names={n: self.names[n] for n in (model.name, task) if n in self.names},
                    )
                    cells.setdefault(repr(cell), cell)
        return list(cells.values())

    def _methods(self, model: ModelEntry, task: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if model.baseline:
            yield BASELINE, {}
        for entry in self.methods:
            here = model.name in (entry.models or [model.name])
            here = here and task in (entry.tasks or [task])
            if entry.name != BASELINE and here:
                for params in entry.sweeps():
                    yield entry.name, params


class Document:
    """A YAML document that knows the line of each of its keys and list items."""

    def __init__(self, text: str, source: str) -> None:
        """Parse `text`; `source` is the file name that errors begin with."""
        self.source = source
        self.data, self._root = parse_yaml(text, source)
        if not isinstance(self.data, dict):
            raise BenchError(f"{source}:1: a suite is a mapping with 'models' and 'methods'")

    def line(self, where: Sequence[str | int]) -> int:
        """Return the line of the deepest part of `where` that the document has."""
        node, line = self._root, 1
        for part in where:
            if isinstance(node, yaml.MappingNode):
                pairs = [(k, v) for k, v in node.value if k.value == str(part)]
                if not pairs:
                    break
                line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def error(self, where: Sequence[str | int], message: str) -> BenchError:
        """Return an error that begins with the place `where` stands for."""
        return BenchError(f"{self.source}:{self.line(where)}: {message}")


class Options:
    """Stands in for a document where a suite comes from command-line options."""

    def __init__(self, chosen: Collection[str] = ()) -> None:
        """Keep the options that were given, by their names in `run`."""
        self.chosen = chosen

    def error(self, where: Sequence[str | int], message: str) -> BenchError:
        """Return an error that begins with the option that `where` stands for, if one was given."""
        options = [OPTIONS.get(part, part) for part in reversed(where)]
        option = next((str(option) for option in options if option in self.chosen), None)
        return BenchError(f"--{option.replace('_', '-')}: {message}" if option else message)


def parse(data: Mapping[str, Any], origin: Document | Options) -> Suite:
    """Return `data` as a suite; raises BenchError at the first mistake."""
    try:
        return Suite.model_validate(data)
    except ValidationError as invalid:
        # The wrong key first: what a misspelt key leaves missing is not the user's mistake.
        errors = sorted(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")
        where = tuple(part for part in errors[0]["loc"] if not _inner(part))
        key = ".".join(map(str, where))
        if errors[0]["type"] == "extra_forbidden":
            model = ModelEntry if where[0] == "models" else Suite
            hint = near_miss(str(where[-1]), list(model.model_fields))
            raise origin.error(where, f"unknown key '{where[-1]}'{hint}") from invalid
        raise origin.error(where, f"'{key}': {reason_of(invalid)}") from invalid


def _inner(part: str | int) -> bool:
    """Whether a part of pydantic's location names one of its validators, not a key."""
    return isinstance(part, str) and ("[" in part or part in ("list", "int", "str"))


def names() -> list[str]:
    """Return the names of the suites that ship with the project."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(name: str, *, within: Sequence[Path] = ()) -> tuple[Suite, Document]:
    """Return the suite called `name`, or the one in the YAML file at that path, with its text.

    `within` are the files of the suites that extend it, resolved.

    Raises:
        BenchError: there is none, it has a mistake, or it extends itself.
    """
    check_name("suite", name)
    path = SUITES / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not os.path.isfile(path):
            raise BenchError(
                f"no suite file {name}: give an existing YAML file or one of {names()}"
            )
    elif not os.path.isfile(path):
        raise BenchError(f"unknown suite '{name}'{near_miss(name, names(), 'list suites')}")
    document = Document(read_text(path, YAML_BYTES), path.name)
    extended = document.data.pop("extends", None)
    document.data.setdefault("name", path.stem)
    if extended is not None:
        try:
            if (here := path.resolve()) in within:
                raise BenchError("it extends itself")
            is_file = str(extended).endswith((".yaml", ".yml"))
            other = path.parent / str(extended) if is_file else extended
            _, base = load(str(other), within=(*within, here))
        except BenchError as error:
            raise document.error(["extends"], str(error)) from error
        document.data = {**base.data, **document.data}
    return parse(document.data, document), document
