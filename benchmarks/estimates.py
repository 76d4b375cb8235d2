"""How far off are the estimates of `run_bench.py estimate`, where there are measurements?

On this CPU: the speed-ups in a suite's records, against those estimated from what a
micro-benchmark says of the CPU. Records are of the machine that they name: run it there, with
nothing beside it.

On GPUs: the times of language models' layers in the public tables of Vidur
(https://github.com/microsoft/vidur, MIT licence), which is not part of this project: clone it.

    python benchmarks/estimates.py                                          # on this CPU
    python benchmarks/estimates.py --vidur ~/vidur/data/profiling/compute   # and by GPU
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from bench.core.errors import BenchError
from bench.measure import machine, rates, roofline
from bench.measure.latency import using_threads
from bench.measure.load import BUSY_SHARE, Snapshot, look
from bench.measure.operators import Operator
from bench.measure.roofline import Device, Range
from bench.records.record import Latency, Record
from bench.runs.estimate import Pass, passes
from bench.runs.session import parameters
from bench.runs.shape_only import on_meta

RECORDS = Path("results/cpu-amd-epyc-2t/quick")
NEAR = 0.20  # how far off an estimated speed-up may be
PATIENCE_S = 60.0  # how long to wait for a CPU that nothing else uses
MANY = 512  # tokens from which on a layer fills a GPU
HALF = 2  # bytes of a number; Vidur's models run in float16
DTYPE = "float16"


# --- this CPU ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A recorded speed-up beside the estimated one; `error` is estimated / measured - 1."""

    method: str
    engine: str
    batch: int
    threads: int
    measured: float
    estimated: Range
    error: float


def timings(folder: Path) -> Iterator[tuple[Record, Latency]]:
    """Give each timing of a reduced model in a folder of records, once where tasks share it."""
    seen = set()
    for path in sorted(folder.glob("*.json")):
        record = Record.read(path)
        for timing in record.cost.latency:
            key = (record.cell.model, record.cell.label, timing.batch, tuple(timing.samples_ms))
            if not record.cell.baseline and record.cell.method != "none" and key not in seen:
                seen.add(key)
                yield record, timing
    if not seen:
        raise BenchError(f"{folder} has no record of a timing")


def cells(found: Sequence[tuple[Record, Latency]]) -> tuple[list[Cell], list[Device]]:
    """Estimate each recorded speed-up; also return this CPU, once for each way it was used."""
    cpus: dict[Any, Device] = {}
    rows = []
    for record, timing in found:
        asked = record.cell.method, parameters(record.cell)
        loaded = on_meta(record.cell.model, timing.dtype)
        plain, reduced = passes(loaded, [asked], Pass(timing.batch))
        if reduced.unsupported:
            raise BenchError(f"{reduced.method}: {reduced.unsupported}")
        way = record.cell.model, timing.dtype, timing.threads, timing.batch
        if way not in cpus:
            with using_threads(timing.threads):
                cpus[way] = quiet_cpu(plain.operators, timing.dtype)
        engine = timing.engine
        times = [roofline.seconds(one.operators, cpus[way], engine) for one in (plain, reduced)]
        estimated = roofline.speedup(*times)
        measured = timing.speedup.median
        error = estimated.point / measured - 1
        size = timing.batch, timing.threads
        rows.append(Cell(record.cell.label, engine, *size, measured, estimated, error))
    return rows, list(cpus.values())


def quiet_cpu(plain: Sequence[Operator], dtype: str) -> Device:
    """Measure this CPU while no other process uses it; waits `PATIENCE_S` for such a moment.

    Raises:
        BenchError: there was none.
    """
    busy = BUSY_SHARE * (os.cpu_count() or 1)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if look() <= busy:
            before = Snapshot.take()
            cpu = rates.this_cpu(plain, dtype)
            if Snapshot.take().others_since(before) <= busy:
                return cpu
        time.sleep(1)
    raise BenchError("other processes use this CPU: measure it when they have ended")


def show_cells(rows: Sequence[Cell], cpus: Sequence[Device], elsewhere: int) -> None:
    """Print the recorded and the estimated speed-ups."""
    for cpu in cpus:
        likely = cpu.rates[0]
        print(
            f"{cpu.source}, {cpu.dtype}: {likely.flops / 1e9:.0f} GFLOP/s, "
            f"{likely.bandwidth / 1e9:.1f} GB/s, {1e6 * likely.launch_s:.1f} µs an operator"
        )
    if elsewhere:
        print(f"{elsewhere} of {len(rows)} timings are of another host than this one")
    print(f"{'method':28} engine   batch  measured  estimated            error")
    for row in rows:
        shown = f"{row.estimated.point:.2f} ({row.estimated.low:.2f}-{row.estimated.high:.2f})"
        print(
            f"{row.method:28} {row.engine:7} {row.batch:6d} {row.measured:8.2f}x  {shown:18} "
            f"{row.error:+8.1%}"
        )
    for engine in dict.fromkeys(row.engine for row in rows):
        those = [row for row in rows if row.engine == engine]
        errors = np.abs([row.error for row in those])
        held = [row.estimated.low <= row.measured <= row.estimated.high for row in those]
        near = int((errors <= NEAR).sum())
        print(
            f"{engine}, within {NEAR:.0%}: {near} of {len(those)} ({near / len(those):.0%}); "
            f"error: median {np.median(errors):.1%}, p90 {np.quantile(errors, 0.9):.1%}; "
            f"in the range: {sum(held)} of {len(those)}"
        )


# --- GPUs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """|estimated / measured - 1| over some times of a device.

    `held` is the share in the estimated range; `reached` the share of the device's peak at which
    they ran: 5th percentile, median, 95th.
    """

    device: str
    what: str
    tokens: str
    times: int
    median: float
    p90: float
    held: float
    reached: tuple[float, ...]


def gpus() -> dict[str, Device]:
    """Return the GPUs of Vidur's tables, by the names of their folders."""
    sheet = "NVIDIA A40 data sheet (dense)"
    return {
        "a100": roofline.on_sheet("a100", DTYPE),
        "a40": roofline.of_peaks("a40", DTYPE, 149.7, 696, sheet),
        "h100": roofline.on_sheet("h100", DTYPE),
    }


def layer(row: Mapping[str, Any]) -> list[tuple[str, Operator]]:
    """Return the timed operators of a decoder layer's share on one worker, by Vidur's names."""
    n, d, workers = (int(row[k]) for k in ("num_tokens", "n_embd", "num_tensor_parallel_workers"))
    head, mlp = d // int(row["n_head"]), int(row["n_expanded_embd"]) // workers
    queries = int(row["n_head"]) // workers * head
    keys = max(int(row["n_kv_head"]) // workers, 1) * head
    up = mlp * (2 if row["use_gated_mlp"] else 1)
    return [
        ("attn_pre_proj", _product(n, d, queries + 2 * keys)),
        ("attn_post_proj", _product(n, queries, d)),
        ("mlp_up_proj", _product(n, d, up)),
        ("mlp_down_proj", _product(n, mlp, d)),
        ("mlp_act", Operator("act", 0, HALF * n * (up + mlp))),
        ("input_layernorm", Operator("norm", 0, HALF * 2 * n * d)),
        ("post_attention_layernorm", Operator("norm", 0, HALF * 2 * n * d)),
        ("add", Operator("add", 0, HALF * 3 * n * d)),
    ]


def _product(n: int, k: int, m: int) -> Operator:
    return Operator("mm", n * k * m, HALF * (n * k + k * m + n * m), product=(n, k, m))


def compared(folder: Path, device: Device) -> pd.DataFrame:
    """Return each layer and product in a device's tables: tokens, seconds measured, estimated.

    `reached` is the share of the device's peak at which it ran.
    """
    rows = []
    peak = device.rates[0].flops / roofline.COMPUTE[0]
    for table in map(pd.read_csv, sorted(folder.glob("**/mlp.csv"))):
        for row in table.to_dict("records"):
            parts = [(op, row.get(f"time_stats.{name}.median", 0) / 1e3) for name, op in layer(row)]
            parts = [(op, taken) for op, taken in parts if taken > 0]  # not all models have all
            products = [("product", [part]) for part in parts if part[0].product]
            for what, group in [("layer", parts), *products]:
                ran, measured = [op for op, _ in group], sum(taken for _, taken in group)
                times = Range.of(roofline.seconds(ran, device))
                reached = 2 * sum(op.macs for op in ran) / measured / peak
                rows.append((what, row["num_tokens"], measured, reached, *asdict(times).values()))
    if not rows:
        raise BenchError(f"{folder} has no mlp.csv: give Vidur's data/profiling/compute")
    columns = ["what", "tokens", "measured", "reached", "low", "point", "high"]
    return pd.DataFrame(rows, columns=columns)


def errors(device: str, times: pd.DataFrame) -> list[Errors]:
    """Return how far off a device's estimates are, of layers and products, few tokens and many."""
    rows = []
    many = times["tokens"] >= MANY
    for tokens, those in ((f"from {MANY}", many), (f"below {MANY}", ~many)):
        for what, some in times[those].groupby("what"):
            off = (some["point"] / some["measured"] - 1).abs()
            held = (some["low"] <= some["measured"]) & (some["measured"] <= some["high"])
            reached = tuple(some["reached"].quantile([0.05, 0.5, 0.95]))
            shares = float(off.median()), float(off.quantile(0.9)), float(held.mean())
            rows.append(Errors(device, str(what), tokens, len(some), *shares, reached))
    return rows


def show_errors(rows: Sequence[Errors]) -> None:
    """Print the errors by device."""
    print("device  what     tokens      times  median error  p90 error  in the range  of the peak")
    for row in rows:
        low, usual, high = row.reached
        print(
            f"{row.device:7} {row.what:8} {row.tokens:10} {row.times:6d} {row.median:13.1%} "
            f"{row.p90:10.1%} {row.held:13.0%}  {usual:.2f} ({low:.2f}-{high:.2f})"
        )


def main(
    records: Annotated[Path, typer.Option(help="a suite's records, of this machine")] = RECORDS,
    vidur: Annotated[
        Path | None, typer.Option(help="data/profiling/compute of a clone of microsoft/vidur")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
) -> None:
    """Estimated against measured: this CPU's speed-ups and, with --vidur, public times of GPUs."""
    try:
        found = [*timings(records)]
        rows, cpus = cells(found)
        known = gpus() if vidur else {}
        off = [
            row
            for name, device in known.items()
            for row in errors(name, compared(Path(str(vidur)) / name, device))
        ]
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        told = {"cpus": cpus, "cells": rows, "gpus": off}
        print(json.dumps({key: [asdict(one) for one in some] for key, some in told.items()}))
        return
    here = machine.fingerprint()
    show_cells(rows, cpus, sum(record.env.get("fingerprint") != here for record, _ in found))
    if off:
        print()
        show_errors(off)


if __name__ == "__main__":
    typer.run(main)
