"""The commands for who writes a method: `check` and `new`."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.options import Json
from bench.core.errors import BenchError


def check(
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="METHOD...", help="Names (list methods).")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every registered method.")] = False,
    json: Json = False,
) -> None:
    """Check what must hold for every method, on small models; exit code 1 when something fails.

    \b
    Examples:
      run_bench.py check tome
      run_bench.py check --all
    """
    if not methods and not every:
        raise BenchError("name a method, or give --all (run_bench.py list methods)")
    from bench.check.table import main as conformance

    raise typer.Exit(conformance([] if every else methods or [], json=json))


def new(
    name: Annotated[str, typer.Argument(help="Lower case, words joined by hyphens.")],
) -> None:
    """Start a method: a working file in methods/ and its test, to be changed from there."""
    from bench.check.new import create

    for path in create(name):
        print(path)
    print(f"next: run_bench.py check {name}, and `make docs` for the table of methods")
