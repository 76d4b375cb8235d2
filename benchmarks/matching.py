"""What do choosing and merging tokens cost alone, and how does that grow with their number?

Times one `plan` and its `apply` of CrossGET against ToMe's, in turns within one run, on noise.

    python benchmarks/matching.py --tokens 197 --threads 1
    python benchmarks/matching.py --threads 2 --json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer

from bench.core import Site
from bench.core.errors import BenchError
from bench.core.kinds import Appender
from bench.core.registry import method
from bench.measure.latency import paired

BASE, OTHER = "tome", "crossget"
MAX_SECONDS = 20.0  # a row


@dataclass(frozen=True)
class Row:
    """One number of tokens: milliseconds a call, and CrossGET's time over ToMe's."""

    tokens: int
    r: int
    tome_ms: float
    crossget_ms: float
    ratio: float
    ratio_ci95: tuple[float, float]
    pairs: int


def site(
    batch: int, tokens: int, appended: int, width: int, heads: int, dtype: torch.dtype
) -> Site:
    """A block's view of `tokens`, class token first, and of a method's own, which come last."""
    n = tokens + appended
    # As models lay them out: q, k and v side by side in one tensor.
    q, k, v = torch.randn(batch, n, 3, heads, width // heads, dtype=dtype).permute(2, 0, 3, 1, 4)
    position = torch.arange(n)
    protect = ((position == 0) | (position >= tokens)).expand(batch, n)
    x, size = torch.randn(batch, n, width, dtype=dtype), torch.ones(batch, n, 1)
    anchor = torch.zeros(batch, dtype=torch.long)
    return Site(x, q, k, v, size, protect, 0, 12, n_protected=1 + appended, anchor=anchor)


def step(name: str, tokens: int, r: int, batch: int, **shape: Any) -> Callable[[], object]:
    """The matching and the merging of one layer, ready to be called."""
    reducer = method(name)()
    if r < 1 or reducer.feasible(r, tokens - 1, None) < r:
        raise BenchError(f"{name} cannot remove r={r} of {tokens} tokens: at least 1, at most half")
    seen = site(batch, tokens, reducer.appends if isinstance(reducer, Appender) else 0, **shape)
    return lambda: reducer.plan(seen, r).apply(seen.x, seen.size)


def measure(tokens: int, r: int, repeats: int, threads: int | None, **shape: Any) -> Row:
    """Compare the two methods at one number of tokens."""
    base, other = (step(name, tokens, r, **shape) for name in (BASE, OTHER))
    pair = paired(other, base, repeats=repeats, threads=threads, max_seconds=MAX_SECONDS)
    return Row(
        tokens=tokens,
        r=r,
        tome_ms=pair.b.p50_ms,
        crossget_ms=pair.a.p50_ms,
        ratio=pair.speedup.median,
        ratio_ci95=pair.speedup.ci95,
        pairs=len(pair.a.samples_ms),
    )


def growth(rows: list[Row]) -> dict[str, float] | None:
    """Exponent e of time ~ tokens^e for each method (least squares on logarithms)."""
    if len({row.tokens for row in rows}) < 2:
        return None
    tokens = np.log([row.tokens for row in rows])
    times = {BASE: [row.tome_ms for row in rows], OTHER: [row.crossget_ms for row in rows]}
    return {name: float(np.polyfit(tokens, np.log(ms), 1)[0]) for name, ms in times.items()}


def show(rows: list[Row], exponents: dict[str, float] | None) -> None:
    print("tokens     r     tome ms  crossget ms  ratio (95 %)           pairs")
    for row in rows:
        low, high = row.ratio_ci95
        print(
            f"{row.tokens:6d} {row.r:5d}  {row.tome_ms:10.2f}  {row.crossget_ms:11.2f}  "
            f"{row.ratio:.2f} ({low:.2f}-{high:.2f})  {row.pairs:11d}"
        )
    if exponents:
        said = ", ".join(f"{name} tokens^{e:.2f}" for name, e in exponents.items())
        print(f"growth: {said}")


def main(
    tokens: Annotated[str, typer.Option(help="comma-separated")] = "64,197,577,1025,2305",
    r: Annotated[int | None, typer.Option(help="tokens removed; default a twelfth")] = None,
    batch: Annotated[int, typer.Option(help="samples a call")] = 8,
    width: Annotated[int, typer.Option(help="channels")] = 768,
    heads: Annotated[int, typer.Option(help="attention heads")] = 12,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    repeats: Annotated[int, typer.Option(help="timed pairs")] = 100,
    threads: Annotated[int | None, typer.Option(help="PyTorch threads; default all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
) -> None:
    """Paired time of CrossGET's matching and merging against ToMe's, on this CPU."""
    torch.manual_seed(0)
    shape = {"batch": batch, "width": width, "heads": heads}
    try:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise BenchError(f"unknown dtype '{dtype}': float32, bfloat16 or float16")
        kind = getattr(torch, dtype)
        rows = [
            measure(n, r or n // 12, repeats, threads, dtype=kind, **shape)
            for n in map(int, tokens.split(","))
        ]
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    setting = {**shape, "dtype": dtype, "threads": threads or torch.get_num_threads()}
    if as_json:
        said = {**setting, "rows": [asdict(row) for row in rows], "growth": growth(rows)}
        print(json.dumps(said))
    else:
        print(", ".join(f"{key} {value}" for key, value in setting.items()))
        show(rows, growth(rows))


if __name__ == "__main__":
    typer.run(main)
