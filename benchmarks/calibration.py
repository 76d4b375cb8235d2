"""Is a 95 % interval one of 95 %, and what does the harness itself cost?

Times the unreduced model against its own twin (A/A), as a cell of a suite is timed, again and
again: the true ratio is 1, and 95 of 100 intervals should hold it. Beside it the rule of before, a
bootstrap over the pairs of one stretch of time. Then a reduced pass that removes nothing against
the plain model, and a method if one is named: how many intervals hold the median of all.

    python benchmarks/calibration.py                       # 200 measurements, five minutes
    python benchmarks/calibration.py --measurements 50 --method tome
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from speed import Idle

import bench
from bench.core import registry
from bench.core.errors import BenchError
from bench.measure.blocks import Blocks, Limits, no_garbage_collection
from bench.measure.latency import PASS, sampler, using_threads
from bench.measure.timing import Paired
from bench.models import catalogue
from bench.runs.session import twin

FEW_PAIRS = 5  # what was taken of a slow model before


@dataclass(frozen=True)
class Coverage:
    """How many of some intervals hold the truth, in percent, and how wide they are.

    `width_pct` is the median half-width, `spread_pct` the one that holds 95 % of the medians.
    """

    what: str
    measurements: int
    disturbed: int
    held_pct: float
    width_pct: float
    spread_pct: float
    before_held_pct: float
    before_few_held_pct: float


def measure(
    plain: Callable[[], object],
    other: Callable[[], object],
    between: Callable[[], object],
    seconds: float,
) -> tuple[Paired, bool]:
    """Time two sides as a cell does, with other work in between; and whether it was disturbed."""
    limits = Limits(min_seconds=seconds / 2, max_seconds=seconds, warmup=2)
    blocks = Blocks(sampler(plain, "cpu"), sampler(other, "cpu"), limits, PASS)
    with torch.inference_mode(), no_garbage_collection():
        for _ in range(limits.blocks):
            blocks.add()
            between()
    pair = blocks.paired(PASS, torch.get_num_threads(), "perf_counter")
    return pair, blocks.disturbance is not None


def coverage(what: str, measured: Sequence[tuple[Paired, bool]], truth: float) -> Coverage:
    """Return how many intervals of undisturbed measurements hold the true ratio."""
    pairs = [pair for pair, disturbed in measured if not disturbed]
    if not pairs:
        raise BenchError(f"{what}: other load disturbed every measurement; try a quiet machine")

    def held(intervals: Sequence[tuple[float, float]]) -> float:
        return 100 * statistics.fmean(low <= truth <= high for low, high in intervals)

    ratios = [np.asarray(p.a.samples_ms) / np.asarray(p.b.samples_ms) for p in pairs]
    off = sorted(abs(np.log(p.speedup.median / truth)) for p in pairs)
    widths = [np.log(p.speedup.ci95[1] / p.speedup.ci95[0]) / 2 for p in pairs]
    return Coverage(
        what,
        len(measured),
        len(measured) - len(pairs),
        held([p.speedup.ci95 for p in pairs]),
        100 * statistics.median(widths),
        100 * float(np.quantile(off, 0.95)),
        held([bootstrap(r) for r in ratios]),
        held([bootstrap(r[:FEW_PAIRS]) for r in ratios]),
    )


def bootstrap(ratios: Any, resamples: int = 1000) -> tuple[float, float]:
    """Return the rule of before: the bootstrap interval of the median of the pairs' ratios."""
    picks = np.random.default_rng(0).integers(0, len(ratios), (resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def show(rows: Sequence[Coverage]) -> None:
    """Print the coverages as a table."""
    print("measured                  times disturbed   95 % interval   half-width  spread   before")
    for row in rows:
        print(
            f"{row.what:24} {row.measurements:6d} {row.disturbed:9d}   holds {row.held_pct:6.1f} %"
            f"  {row.width_pct:9.2f} % {row.spread_pct:6.2f} %   {row.before_held_pct:.1f} %, of "
            f"{FEW_PAIRS} pairs {row.before_few_held_pct:.1f} %"
        )


def main(
    model: Annotated[str, typer.Option(help="any model name")] = "embedded:vit-fashion",
    measurements: Annotated[int, typer.Option(help="measurements of each kind")] = 200,
    batch: Annotated[int, typer.Option(help="images a call")] = 4,
    seconds: Annotated[float, typer.Option(help="time for one measurement")] = 0.6,
    method: Annotated[str, typer.Option(help="also measure this one; '' for none")] = "",
    threads: Annotated[int | None, typer.Option(help="PyTorch threads; default all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
) -> None:
    """Coverage of the intervals of speed-ups, and the harness's own cost, on this CPU."""
    try:
        if method:
            registry.method(method)
        loaded = catalogue.load(model)
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    net, other, inputs = loaded.model, twin(loaded.model), loaded.example_inputs(batch)
    elsewhere = loaded.example_inputs(3 * batch, seed=1)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "A/A": ("none", {}),
        "pass that removes nothing": (Idle(), {"r": 1}),
        **({method: (method, {})} if method else {}),
    }
    rows, overhead = [], 0.0
    for what, (reducer, budget) in kinds.items():
        with using_threads(threads), bench.reduced(other, reducer, **budget):
            measured = [
                measure(
                    lambda: net(**inputs),
                    lambda: other(**inputs),
                    lambda: net(**elsewhere),
                    seconds,
                )
                for _ in track(range(measurements), what, console=Console(stderr=True))
            ]
        centre = statistics.median(pair.speedup.median for pair, _ in measured)
        rows.append(coverage(what, measured, 1.0 if reducer == "none" else centre))
        if isinstance(reducer, Idle):
            overhead = 100 * (1 / centre - 1)
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "overhead_pct": overhead}))
        return
    show(rows)
    print(f"harness: a pass that removes nothing takes {overhead:+.2f} % (batch {batch})")


if __name__ == "__main__":
    typer.run(main)
