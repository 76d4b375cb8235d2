"""How many operators does a method add to a block that it reduces?

At batch 1 a GPU takes about as long as its launches, whatever they compute, and each operator that
is no view is at least one. Counted on the CPU, the difference to the plain model, divided by the
number of blocks that lost tokens; what a pass sets up once is in it.

    python benchmarks/operators.py
    python benchmarks/operators.py --methods tome,crossget --json
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from torch import nn

import bench
from bench.core import Observer, observing
from bench.core.errors import BenchError, check_known, near_miss
from bench.core.registry import methods as registered
from bench.measure.operators import operators

# The authors' code under the same count, where it was run: ToMe's main branch.
AUTHORS = {"tome": 24.9}


class Reductions(Observer):
    """Counts the blocks that lost tokens."""

    def __init__(self) -> None:
        """No block lost tokens yet."""
        self.count = 0

    def kept(self, size: torch.Tensor) -> None:
        """One more."""
        self.count += 1


@dataclass(frozen=True)
class Row:
    """One method's line; `added` is a reducing block's share, None with a reason why not."""

    method: str
    added: float | None
    blocks: int
    authors: float | None
    reason: str = ""


def measure(model: nn.Module, x: torch.Tensor, method: str) -> Row:
    """Count what `method`, at its default budget, adds to `model`."""
    try:
        plain, reductions = _working(model, x), Reductions()
        with bench.reduced(model, method), observing(reductions):
            added = _working(model, x) - plain
    except BenchError as error:
        return Row(method, None, 0, AUTHORS.get(method), str(error))
    share = added / reductions.count if reductions.count else None
    reason = "" if share is not None else "it removes nothing inside the blocks"
    return Row(method, share, reductions.count, AUTHORS.get(method), reason)


def _working(model: nn.Module, x: torch.Tensor) -> int:
    return sum(operator.moves for operator in operators(model, x))


def show(rows: list[Row]) -> None:
    print(f"{'method':<20} {'added a block':>13} {'blocks':>6} {'authors':>8}")
    for row in rows:
        if row.added is None:
            print(f"{row.method:<20} {'-':>13} {'':>6} {'':>8}  {row.reason}")
        else:
            theirs = "-" if row.authors is None else f"{row.authors:.1f}"
            print(f"{row.method:<20} {row.added:13.1f} {row.blocks:6d} {theirs:>8}")


def main(
    model: Annotated[str, typer.Option(help="a timm model")] = "vit_base_patch16_224",
    methods: Annotated[str, typer.Option(help="comma-separated; default all for images")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
) -> None:
    """Operators that each method adds to a block that it reduces, at batch 1."""
    import timm

    torch.manual_seed(0)
    known = registered()
    names = [n for n in methods.split(",") if n] or [
        name for name, cls in known.items() if "vision" in cls.towers
    ]
    try:
        for name in names:
            check_known("unknown method", name, known)
        if not timm.is_model(model):
            raise BenchError(f"unknown timm model '{model}'{near_miss(model, timm.list_models())}")
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    net = timm.create_model(model).eval()
    x = torch.randn(1, *net.default_cfg["input_size"])
    rows = [measure(net, x, name) for name in names]
    if as_json:
        print(json.dumps({"model": model, "batch": 1, "rows": [asdict(row) for row in rows]}))
    else:
        print(f"{model}, batch 1; operators that are no views")
        show(rows)


if __name__ == "__main__":
    typer.run(main)
