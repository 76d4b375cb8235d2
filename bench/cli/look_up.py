"""The commands that need no run: `list`, `submit`, `cost`, `estimate`, `verify`."""

from __future__ import annotations

import json as jsonlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import (
    Frames,
    Json,
    KeepRate,
    Layers,
    Methods,
    Param,
    Removed,
    Shaped,
    Words,
    path,
)


class Listing(StrEnum):
    """What `list` can list."""

    methods = "methods"
    models = "models"
    tasks = "tasks"
    suites = "suites"
    profiles = "profiles"


def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")], json: Json = False
) -> None:
    """List methods, models, tasks, suites or hardware profiles, each with a line about it."""
    from bench.runs import options as choose

    rows = choose.listing(what.value)
    if json:
        print(jsonlib.dumps(rows, indent=1))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {row['summary']}")


def submit(
    record: Annotated[
        Path, typer.Argument(parser=path, help="A record of a run, one JSON file of results/.")
    ],
    out: Annotated[Path, typer.Argument(parser=path, help="The file to write.")],
) -> None:
    """Write a record's answers as evaluation servers take them (VQAv2, POPE, captions, NLVR2)."""
    from bench.runs.submission import write

    print(f"{out}: {write(record, out):,} bytes")


def cost(
    model: Shaped,
    method: Methods = None,
    r: Removed = None,
    keep_rate: KeepRate = None,
    layers: Layers = None,
    param: Param = None,
    words: Words = None,
    frames: Frames = 0,
    json: Json = False,
) -> None:
    """Print what a model costs with a method, from its shape alone: GMACs, KV cache, shares.

    Of a language model that sees, stage by stage: image encoder, projector, prefill, and each
    further token. Exit code 1 when a method cannot run in the model.

    \b
    Examples:
      run_bench.py cost llava-1.5-7b-hf --method tome --r 13 --method visionzip --method divprune
      run_bench.py cost llava-1.5-7b-hf --method fastv --keep-rate 0.5 --layers 2 --words 60
      run_bench.py cost qwen2.5-vl-7b-instruct --frames 16 --method vidcom2 --method dycoke
      run_bench.py cost timm:vit_base_patch16_224 --method evit --keep-rate 0.7 --json
    """
    from bench.models import catalogue
    from bench.runs import cost as costs

    catalogue.check_name(model, random_weights=True)  # before torch takes its seconds to load
    wanted = costs.arguments(method or [], r, keep_rate, layers, param or [])
    raise typer.Exit(costs.main(model, wanted, words, json, frames))


def estimate(
    model: Shaped,
    method: Methods = None,
    r: Removed = None,
    keep_rate: KeepRate = None,
    layers: Layers = None,
    param: Param = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Devices, comma-separated: profiles, cpu for this one [all data sheets]."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=65_536, help="Samples a pass.")] = 1,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 [the device's own].")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="How operators run: eager, compile (fused), graphs (launched once).")
    ] = "eager",
    words: Words = None,
    json: Json = False,
) -> None:
    """Estimate how long a model takes with a method on hardware that is not here, as a range.

    A roofline over the operators that run: the larger of arithmetic and memory traffic, and a
    launch each. An estimate is printed and kept nowhere: no report shows it beside what was
    measured. Exit code 1 when a method cannot run in the model.

    \b
    Examples:
      run_bench.py estimate timm:vit_base_patch16_224 --method tome --r 13 --on h100,a100,l4,t4
      run_bench.py estimate timm:deit_small_patch16_224 --method evit --on h100 --batch 256
      run_bench.py estimate timm:deit_small_patch16_224 --method tome --on rtx4090 --engine graphs
      run_bench.py estimate llava-1.5-7b-hf --method divprune --on h100,jetson-orin --json
    """
    from bench.models import catalogue
    from bench.runs import cost as costs
    from bench.runs import estimate as estimating

    catalogue.check_name(model, random_weights=True)  # before torch takes its seconds to load
    wanted = costs.arguments(method or [], r, keep_rate, layers, param or [])
    setting = estimating.Pass(batch, engine, words)
    raise typer.Exit(estimating.main(model, wanted, setting, on, dtype, json))


def verify(
    json: Json = False,
    only: Annotated[
        str | None, typer.Option(help="Only figures whose id contains this text.")
    ] = None,
) -> None:
    """Recompute the costs that papers print and compare; exit code 1 when one is off."""
    from bench.runs.verify import main as check

    raise typer.Exit(check(json=json, only=only))
