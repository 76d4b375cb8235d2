"""How much of the MAC bound does token reduction reach in time, and what does it cost itself?

Times each method against the unreduced model, in turns within one run, on random weights. The first
row of each batch size is the harness's own cost: a reduced pass that removes nothing.

    python benchmarks/speed.py --methods tome,crossget --r 13 --batches 1,8 --threads 2
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from torch import nn

import bench
from bench.core import Reducer
from bench.core.errors import BenchError, near_miss
from bench.measure.latency import paired, reduction_share


class Idle(Reducer):
    """Removes nothing, wherever it is asked to: what is left is the harness."""

    name = "harness"

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """No removal can be made."""
        return 0


@dataclass(frozen=True)
class Row:
    """One method's line: times in milliseconds a batch, the rest ratios."""

    method: str
    batch: int
    mac_ratio: float
    speedup: float
    speedup_ci95: tuple[float, float]
    of_bound: float
    reduction_share: float
    reduction_macs_share: float
    base_ms: float
    reduced_ms: float
    pairs: int


def measure(
    model: nn.Module,
    x: torch.Tensor,
    method: str | Reducer,
    r: int,
    repeats: int,
    threads: int | None,
) -> Row:
    """Compare `model` with itself under `method`, on the batch `x` (B,3,H,W)."""
    full = bench.count_macs(model, x).total
    # Both sides take turns, so the method goes into a copy, which shares the weights.
    twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    with bench.reduced(twin, method, r=r):
        count = bench.count_macs(twin, x)
        pair = paired(lambda: model(x), lambda: twin(x), repeats=repeats, threads=threads)
        share = reduction_share(lambda: twin(x), threads=threads)
    bound = full / count.total
    return Row(
        method=method if isinstance(method, str) else method.name,
        batch=len(x),
        mac_ratio=bound,
        speedup=pair.speedup.median,
        speedup_ci95=pair.speedup.ci95,
        of_bound=pair.speedup.median / bound,
        reduction_share=share,
        reduction_macs_share=count.reduction / count.total,
        base_ms=pair.a.p50_ms,
        reduced_ms=pair.b.p50_ms,
        pairs=len(pair.a.samples_ms),
    )


def show(rows: list[Row]) -> None:
    print(
        "batch  method      MAC bound  speed-up (95 %)       of bound  reduction itself  "
        "ms base/reduced"
    )
    for row in rows:
        low, high = row.speedup_ci95
        print(
            f"{row.batch:<6} {row.method:<11} {row.mac_ratio:8.3f}x  "
            f"{row.speedup:.3f}x ({low:.3f}-{high:.3f})  "
            f"{row.of_bound:8.3f}  {row.reduction_share:15.1%}  "
            f"{row.base_ms:.1f} / {row.reduced_ms:.1f} ({row.pairs} pairs)"
        )


def _sizes(batches: str) -> list[int]:
    """Return the batch sizes in a list such as "1,8"."""
    sizes = [int(size) for size in batches.split(",") if size.strip().isdigit()]
    if not sizes or min(sizes) < 1 or len(sizes) != len(batches.split(",")):
        raise BenchError(f"--batches {batches}: give whole numbers from 1 on, such as 1,8")
    return sizes


def main(
    model: Annotated[str, typer.Option(help="a timm model")] = "vit_base_patch16_224",
    batches: Annotated[str, typer.Option(help="images a call, comma-separated")] = "1,8",
    r: Annotated[int, typer.Option(help="tokens removed a layer")] = 13,
    methods: Annotated[str, typer.Option(help="comma-separated")] = "tome,crossget",
    repeats: Annotated[int, typer.Option(help="timed pairs")] = 32,
    threads: Annotated[int | None, typer.Option(help="PyTorch threads; default all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
) -> None:
    """Paired time of the methods against the unreduced model, on this CPU."""
    import timm

    torch.manual_seed(0)
    try:
        if not timm.is_model(model):
            raise BenchError(f"unknown timm model '{model}'{near_miss(model, timm.list_models())}")
        net = timm.create_model(model).eval()
        images = torch.randn(max(sizes := _sizes(batches)), *net.default_cfg["input_size"])
        names = [name for name in methods.split(",") if name]
        rows = [
            measure(net, images[:size], name, r, repeats, threads)
            for size in sizes
            for name in (Idle(), *names)
        ]
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        setting: dict[str, object] = {"model": model, "batches": sizes, "r": r}
        setting["threads"] = threads or torch.get_num_threads()
        print(json.dumps({**setting, "rows": [asdict(row) for row in rows]}))
    else:
        print(f"{model}, r={r}, {threads or torch.get_num_threads()} threads, CPU")
        show(rows)


if __name__ == "__main__":
    typer.run(main)
