"""What one prompt or one image costs with each of a few methods, from shapes alone, in seconds.

    python run_bench.py cost llava-1.5-7b-hf --method tome --r 13 --method divprune
    python run_bench.py cost qwen2.5-vl-7b-instruct --frames 16 --method vidcom2 --method dycoke
    python run_bench.py cost timm:vit_base_patch16_224 --method evit --keep-rate 0.5 --json

The model is built on the meta device, where tensors have no values.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import count_macs, reduced
from bench.core import registry
from bench.core.documents import yaml_value
from bench.core.errors import BenchError, Unsupported, near_miss
from bench.core.parameters import check_request
from bench.measure.generation import stage_macs
from bench.models.loaded import Loaded, Multimodal
from bench.models.noise import WORDS
from bench.records.record import BASELINE, label
from bench.runs.checking import placed
from bench.runs.options import budget, listed
from bench.runs.shape_only import DTYPE, Requests, on_meta
from bench.runs.spec import Options

MIB = 1 << 20


@dataclass(frozen=True)
class MethodCost:
    """What a method costs: `values` by column, GMACs but for the cache; or why it cannot run."""

    method: str
    values: dict[str, float]
    unsupported: str = ""


def rows(
    loaded: Loaded, methods: Sequence[tuple[str, Mapping[str, Any]]], words: int, frames: int = 0
) -> list[MethodCost]:
    """Return the costs of the unreduced model and of each method with its arguments."""
    costs = [MethodCost(BASELINE, _costs(loaded, words, frames))]
    for name, params in methods:
        if name == BASELINE:
            continue
        try:
            with reduced(loaded.model, name, **params):
                costs.append(MethodCost(label(name, params), _costs(loaded, words, frames)))
        except Unsupported as reason:
            costs.append(MethodCost(label(name, params), {}, str(reason)))
    return costs


def _costs(loaded: Loaded, words: int, frames: int) -> dict[str, float]:
    """Return what the model costs as it is now."""
    with loaded.valueless_inputs(words, frames) as inputs:
        if isinstance(loaded, Multimodal):
            return _stages(loaded.model, inputs)
        return {"total": count_macs(loaded.model, **inputs).total / 1e9}


def _stages(model: Any, prompt: Mapping[str, Any]) -> dict[str, float]:
    stages = stage_macs(model, prompt)
    gmacs = {stage: macs / 1e9 for stage, macs in stages.macs.items()}
    decode = gmacs.pop("decode")
    return {
        **gmacs,
        "first token": stages.prompt / 1e9,
        "each further": decode,
        "KV cache, MiB": stages.kv_bytes / MIB,
    }


# --- what was asked for --------------------------------------------------------------------------


def arguments(
    methods: Sequence[str],
    r: str | None = None,
    keep_rate: str | None = None,
    layers: str | None = None,
    params: Sequence[str] = (),
) -> list[tuple[str, dict[str, Any]]]:
    """Return each method with the options that are meant for it.

    Of several methods, an option is for those whose own budget names it, or for all where no
    budget does; a parameter is for those that have it.

    Raises:
        BenchError: no such method, or no method takes a parameter.
    """
    classes = {name: registry.method(name) for name in methods}
    chosen: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for option, text in (("r", r), ("keep_rate", keep_rate), ("layers", layers)):
        if text is not None:
            named = [name for name in methods if option in classes[name].budget]
            value = budget(text, option)
            for name in named if len(methods) > 1 and named else methods:
                chosen[name][option] = listed(value) if option == "layers" else value
    fields = {name: getattr(cls, "__dataclass_fields__", {}) for name, cls in classes.items()}
    for text in params:
        key, equals, value = text.partition("=")
        takers = [name for name in methods if key in fields[name]]
        if not equals or not takers:
            known = dict.fromkeys(key for name in methods for key in fields[name])
            hint = near_miss(key, known) if known else ": the methods take none"
            raise BenchError(f"--param {text}: give NAME=VALUE of a parameter{hint}")
        for name in takers:
            chosen[name][key] = yaml_value(value, f"--param {key}")
    for name, asked in chosen.items():
        with placed(Options(asked), 0, asked):
            check_request(name, asked)
    return list(chosen.items())


# --- what is shown -------------------------------------------------------------------------------


def main(
    model: str,
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    words: int | None = None,
    json: bool = False,
    frames: int = 0,
) -> int:
    """Print the costs; returns the exit status, 1 where a method cannot run in this model.

    With `frames` the prompt shows a video of so many in place of an image.
    """
    loaded = on_meta(model)
    if frames:
        _check_watches(loaded)
    requests = Requests(loaded, frames)
    for name, params in methods:
        with placed(Options(params), 0, params), contextlib.suppress(Unsupported):
            requests.check(name, params)
    words = WORDS if words is None else words
    costs = rows(loaded, methods, words, frames)
    scope = loaded.scope
    if isinstance(loaded, Multimodal):
        shown = f"one video of {frames} frames" if frames else "one image"
        scope = f"a prompt of {shown} and {words} other tokens"
    if json:
        print(jsonlib.dumps(_document(model, scope, DTYPE, costs), indent=1))
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=140)  # in a log: wide enough for the table
        console.print(f"{model}: GMACs of {scope}", markup=False, highlight=False)
        console.print(_table(costs))
        for row in costs:
            if row.unsupported:
                console.print(f"{row.method}: {row.unsupported}", markup=False)
    return 1 if any(row.unsupported for row in costs) else 0


def _check_watches(loaded: Loaded) -> None:
    """Raise BenchError where a model cannot be shown a video."""
    if not isinstance(loaded, Multimodal):
        raise BenchError(f"--frames: {loaded.name} is no language model that is shown videos")
    loaded.require_video()


def _shares(baseline: MethodCost, row: MethodCost) -> dict[str, float]:
    return {key: row.values[key] / cost for key, cost in baseline.values.items() if cost}


def _document(model: str, scope: str, dtype: str, costs: list[MethodCost]) -> dict[str, Any]:
    methods = [
        {"method": row.method, "unsupported": row.unsupported}
        if row.unsupported
        else {"method": row.method, "costs": row.values, "shares": _shares(costs[0], row)}
        for row in costs
    ]
    return {"model": model, "scope": scope, "unit": "GMACs", "dtype": dtype, "methods": methods}


def _table(costs: list[MethodCost]) -> Table:
    table = Table()
    table.add_column("method", overflow="fold")
    columns = list(costs[0].values)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in costs:
        shares = {} if row.unsupported else _shares(costs[0], row)
        cells = ["—" if row.unsupported else _number(row.values[key]) for key in columns]
        for i, key in enumerate(columns):
            if key in shares and row is not costs[0]:
                cells[i] += f" ({shares[key]:4.0%})"
        table.add_row(row.method, *cells)
    return table


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
