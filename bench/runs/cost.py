"""What one prompt or one image costs with each of a few methods, from shapes alone, in seconds.

    python run_bench.py cost llava-1.5-7b-hf --method tome --r 13 --method divprune
    python run_bench.py cost timm:vit_base_patch16_224 --method evit --keep-rate 0.5 --json

The model is built on the meta device, where tensors have no values.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench.core.errors import BenchError, Unsupported
from bench.runs.options import budget, listed
from bench.core.errors import near_miss
from bench.models.loaded import Loaded, Multimodal
from bench.records.record import BASELINE, label

DTYPE = "bfloat16"
MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """What a method costs: `values` by column, GMACs but for the cache; None, why it cannot run."""

    method: str
    values: dict[str, float]
    unsupported: str = ""


def on_meta(name: str, dtype: str = DTYPE) -> Loaded:
    """Return a model without values, by its shape."""
    import torch

    from bench.models import catalogue

    with torch.device("meta"):
        return catalogue.load(name, random_weights=True, device="meta", dtype=dtype)


def rows(loaded: Loaded, methods: Sequence[tuple[str, Mapping[str, Any]]], words: int) -> list[Row]:
    """Return the costs of the unreduced model and of each method with its arguments."""
    from bench import reduced

    found = [Row(BASELINE, _costs(loaded, words))]
    for name, given in methods:
        if name == BASELINE:
            continue
        try:
            with reduced(loaded.model, name, **given):
                found.append(Row(label(name, given), _costs(loaded, words)))
        except Unsupported as reason:
            found.append(Row(label(name, given), {}, str(reason)))
    return found


def _costs(loaded: Loaded, words: int) -> dict[str, float]:
    """Return what the model costs as it is now."""
    from bench import count_macs

    with loaded.valueless_inputs(words) as inputs:
        if isinstance(loaded, Multimodal):
            return _stages(loaded.model, inputs)
        return {"total": count_macs(loaded.model, **inputs).total / 1e9}


def _stages(model: Any, prompt: Mapping[str, Any]) -> dict[str, float]:
    from bench.measure.generation import stage_macs

    found = stage_macs(model, prompt)
    gmacs = {stage: macs / 1e9 for stage, macs in found.macs.items()}
    decode = gmacs.pop("decode")
    return {
        **gmacs,
        "first token": found.prompt / 1e9,
        "each further": decode,
        "KV cache, MiB": found.kv_bytes / MIB,
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
    from bench.core.registry import method

    classes = {name: method(name) for name in methods}
    given: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for option, text in (("r", r), ("keep_rate", keep_rate), ("layers", layers)):
        if text is not None:
            named = [name for name in methods if option in classes[name].budget]
            value = budget(text, option)
            for name in named if len(methods) > 1 and named else methods:
                given[name][option] = listed(value) if option == "layers" else value
    fields = {name: getattr(cls, "__dataclass_fields__", {}) for name, cls in classes.items()}
    for text in params:
        key, equals, value = text.partition("=")
        takers = [name for name in methods if key in fields[name]]
        if not equals or not takers:
            known = dict.fromkeys(key for name in methods for key in fields[name])
            hint = near_miss(key, known) if known else ": the methods take none"
            raise BenchError(f"--param {text}: give NAME=VALUE of a parameter{hint}")
        for name in takers:
            given[name][key] = yaml.safe_load(value)
    return list(given.items())


# --- what is shown -------------------------------------------------------------------------------


def main(
    model: str,
    methods: Sequence[tuple[str, Mapping[str, Any]]],
    words: int | None = None,
    json: bool = False,
) -> int:
    """Print the costs; returns the exit status, 1 where a method cannot run in this model."""
    from bench.models.multimodal import WORDS

    loaded = on_meta(model)
    words = WORDS if words is None else words
    found = rows(loaded, methods, words)
    scope = loaded.scope
    if isinstance(loaded, Multimodal):
        scope = f"a prompt of one image and {words} other tokens"
    if json:
        print(jsonlib.dumps(_document(model, scope, found), indent=1))
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=140)  # in a log: wide enough for the table
        console.print(f"{model}: GMACs of {scope}", markup=False, highlight=False)
        console.print(_table(found))
        for row in found:
            if row.unsupported:
                console.print(f"{row.method}: {row.unsupported}", markup=False)
    return 1 if any(row.unsupported for row in found) else 0


def _shares(found: list[Row], row: Row) -> dict[str, float]:
    return {key: row.values[key] / whole for key, whole in found[0].values.items() if whole}


def _document(model: str, scope: str, found: list[Row]) -> dict[str, Any]:
    methods = [
        {"method": row.method, "unsupported": row.unsupported}
        if row.unsupported
        else {"method": row.method, "costs": row.values, "shares": _shares(found, row)}
        for row in found
    ]
    return {"model": model, "scope": scope, "unit": "GMACs", "dtype": DTYPE, "methods": methods}


def _table(found: list[Row]) -> Table:
    table = Table()
    table.add_column("method", overflow="fold")
    for name in found[0].values:
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        shares = {} if row.unsupported else _shares(found, row)
        cells = ["—" if row.unsupported else _number(row.values[key]) for key in found[0].values]
        for i, key in enumerate(found[0].values):
            if key in shares and row is not found[0]:
                cells[i] += f" ({shares[key]:4.0%})"
        table.add_row(row.method, *cells)
    return table


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
