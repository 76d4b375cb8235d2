"""The commands that need no run: `list`, `submit`, `cost`, `verify`."""

from __future__ import annotations

import json as jsonlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import Json, path


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
    model: Annotated[str, typer.Argument(help="A model's name (list models); no weights needed.")],
    method: Annotated[
        list[str] | None, typer.Option(help="A method's name (list methods); several if you like.")
    ] = None,
    r: Annotated[
        str | None, typer.Option("--r", help="Tokens removed a layer, for methods with such an r.")
    ] = None,
    keep_rate: Annotated[
        str | None, typer.Option(help="Share of tokens kept, for methods with a keep rate.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks to reduce at, from 0: 2, or 3,6,9, or language=2/8.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(help="A parameter of a method's own: dominant=54.")
    ] = None,
    words: Annotated[
        int | None,
        typer.Option(min=0, max=1_000_000, help="Tokens of the prompt beside the image's [36]."),
    ] = None,
    json: Json = False,
) -> None:
    """Print what a model costs with a method, from its shape alone: GMACs, KV cache, shares.

    Of a language model that sees, stage by stage: image encoder, projector, prefill, and each
    further token. Exit code 1 when a method cannot run in the model.

    \b
    Examples:
      run_bench.py cost llava-1.5-7b-hf --method tome --r 13 --method visionzip --method divprune
      run_bench.py cost llava-1.5-7b-hf --method fastv --keep-rate 0.5 --layers 2 --words 60
      run_bench.py cost timm:vit_base_patch16_224 --method evit --keep-rate 0.7 --json
    """
    from bench.models import catalogue
    from bench.runs import cost as costs

    catalogue.check_name(model, random_weights=True)  # before torch takes its seconds to load
    wanted = costs.arguments(method or [], r, keep_rate, layers, param or [])
    raise typer.Exit(costs.main(model, wanted, words, json))


def verify(
    json: Json = False,
    only: Annotated[
        str | None, typer.Option(help="Only figures whose id contains this text.")
    ] = None,
) -> None:
    """Recompute the costs that papers print and compare; exit code 1 when one is off."""
    from bench.runs.verify import main as check

    raise typer.Exit(check(json=json, only=only))
