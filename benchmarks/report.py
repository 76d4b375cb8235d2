"""How long does a report of many records take?

Makes a results folder out of the committed records: the same cells again under other models' names,
each copy with the outcomes of a bootstrap sample of the recorded samples, so that no two copies
score alike. Times `run_bench.py report` on it, in a process of its own.

    python benchmarks/report.py
    python benchmarks/report.py --records 300 --keep many --figures all
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from bench.records.outcomes import scores_by_seed
from bench.records.record import Accuracy, Record
from bench.records.store import Store
from bench.report.data import load

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("quick", "matched", "vlm", "tasks")
MACHINE = "synthetic"


def copies(count: int) -> Iterator[Record]:
    """Yield `count` records: every committed cell, and again under the next model's name."""
    folders = [folder for suite in SUITES for folder in sorted(ROOT.glob(f"results/*/{suite}"))]
    known, _ = load.newest(load.read(folders)[0])
    for index, record in itertools.islice(
        ((i, r) for i in itertools.count() for r in known), count
    ):
        cell = replace(record.cell, model=f"{record.cell.model}-{index}")
        key = hashlib.sha256(f"{index} {load.uid(record)}".encode()).hexdigest()
        env = record.env | {"machine": MACHINE}
        accuracy = redrawn(record.accuracy, index)
        yield replace(record, key=key, cell=cell, env=env, accuracy=accuracy)


def redrawn(old: Accuracy, seed: int) -> Accuracy:
    """Return outcomes drawn from the recorded ones, the same samples for every cell of a copy."""

    def pick(values: list[Any]) -> list[Any]:
        drawn = np.random.default_rng([seed, len(values)]).integers(len(values), size=len(values))
        return [values[place] for place in drawn]

    outcomes, *repeats = (
        {name: pick(values) for name, values in one.items()} for one in (old.outcomes, *old.repeats)
    )
    drawn = replace(old, outcomes=outcomes, repeats=repeats)
    metrics = dict(old.metrics)
    for name, metric in old.metrics.items():
        scores = scores_by_seed(name, drawn)
        if scores is not None:
            value = float(scores.mean()) * (100 if metric.unit == "%" else 1)
            ends = metric.ci95 and tuple(end + value - metric.value for end in metric.ci95)
            metrics[name] = replace(metric, value=value, ci95=ends)
    return replace(drawn, metrics=metrics)


def fill(folder: Path, count: int) -> None:
    """Write `count` records as a store would."""
    for record in copies(count):
        path = Store(folder).path(record.cell, record.key, MACHINE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json(), encoding="utf-8")


def timed(results: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Report on a folder in a new process: seconds, and what was written."""
    command = [
        sys.executable,
        str(ROOT / "run_bench.py"),
        "report",
        str(results),
        "--out",
        str(out),
    ]
    before, start = os.times(), time.perf_counter()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, os.times()
    files = [path for path in out.rglob("*.*") if path.is_file()]
    cpu = after.children_user + after.children_system
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu - before.children_user - before.children_system, 1),
        "figures": sum(path.suffix == ".png" for path in files),
        "tables": sum(path.suffix == ".csv" for path in files),
        "mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
    }


def main(
    records: Annotated[int, typer.Option(help="how many")] = 5000,
    keep: Annotated[Path | None, typer.Option(help="folder for records and report")] = None,
    figures: Annotated[str, typer.Option(help="passed on to the report")] = "",
) -> None:
    """Time the report of many records, made from the committed ones."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        fill(folder / "results", records)
        options = ["--figures", figures] if figures else []
        print(
            json.dumps({"records": records, **timed(folder / "results", folder / "out", options)})
        )


if __name__ == "__main__":
    typer.run(main)
