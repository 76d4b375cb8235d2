"""The command `run`: measure a suite, or what is named here."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import INTERRUPTED, Json, path
from bench.report import DEFAULT_FORMATS, build, check_out


def run(
    suite: Annotated[
        str | None, typer.Option(help="A suite's name (list suites) or a YAML file.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="embedded:…, timm:NAME, a Hugging Face id, a folder.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task's name (list tasks), or 'cost' for none.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method's name (list methods).")
    ] = None,
    r: Annotated[
        list[str] | None,
        typer.Option("--r", help="Tokens removed a layer: 8, or by tower: vision=16,text=6."),
    ] = None,
    keep_rate: Annotated[
        list[str] | None, typer.Option(help="Share of tokens kept at the chosen layers: 0.7.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Solve for the budget: '50% gmacs', '60% tokens', '70% latency'."),
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Hardware profile (list profiles); default auto.")
    ] = None,
    results: Annotated[
        Path, typer.Option(parser=path, help="Folder of the records, one JSON a cell.")
    ] = Path("results"),
    report: Annotated[
        Path | None, typer.Option(parser=path, help="Also write a report into this folder.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples used for accuracy.")] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Stop a cell once its paired difference is known to ± so many points."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Cost only, from the model's shape.")
    ] = False,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16 or float16; default the profile's.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes to time; default the profile's.")
    ] = None,
    answer_batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Batch sizes of timed answers of a language model; default 1."),
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Attention: sdpa or eager.")] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Runs the timed passes: eager, compile, graphs (CUDA); default eager."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time budget of the timings at each batch size.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of random weights and random methods.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Name of this machine's results folder.")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="Who measures: local, ray (a cluster), slurm (an array).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: auto, ray://HOST:PORT; else one is made.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at once; default one a GPU.")
    ] = None,
    shards: Annotated[
        int, typer.Option(min=1, help="Divide each cell's accuracy into so many jobs.")
    ] = 1,
    shard: Annotated[
        str | None, typer.Option(help="Take this shard of each accuracy alone: 1/4; see merge.")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Seconds after which a job is ended.")
    ] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(help="With --on slurm: partition=gpu, time=240 (minutes).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a suite, or models and methods named here; what is done already is skipped.

    With --suite the other options narrow that suite down or override its settings. An option that
    is a list may be given several times. The last line printed is a JSON summary.

    \b
    Examples:
      run_bench.py run --suite quick --report reports/quick
      run_bench.py run --suite quick --method tome --method crossget --r 16
      run_bench.py run --model embedded:vit-fashion --method evit --keep-rate 0.7
      run_bench.py run --model embedded:clip-emoji --method tome --budget "50% gmacs"
      run_bench.py run --model openai/clip-vit-base-patch16 --random-weights --batch 1 --batch 32
      run_bench.py run --model ./my-vit --task imagefolder:data/val --method tome --r 8
      run_bench.py run --suite standard --on ray --address auto --shards 8
    """
    options: dict[str, Any] = {
        "suite": suite, "model": model, "task": task, "method": method, "r": r,
        "keep_rate": keep_rate, "budget": budget, "profile": profile, "limit": limit,
        "precision": precision, "random_weights": random_weights, "dtype": dtype, "batch": batch,
        "answer_batch": answer_batch, "backend": backend, "engine": engine, "seconds": seconds,
        "seed": seed,
    }  # fmt: skip
    how = {
        "on": on, "address": address, "workers": workers, "shards": shards, "shard": shard,
        "time_limit": time_limit, "slurm": slurm, "events": as_json,
    }  # fmt: skip
    raise typer.Exit(run_suite(options, results, report, machine, how))


def run_suite(
    options: dict[str, Any],
    results: Path,
    report: Path | None,
    machine: str | None = None,
    how: dict[str, Any] | None = None,
) -> int:
    """Run and report; returns the exit code."""
    from bench.records import store

    store.Store(results).check_writable()  # before torch takes its seconds to load
    if report is not None:
        check_out(report, DEFAULT_FORMATS)
    from bench.runs import options as choose

    suite, origin = choose.suite(options)
    from bench.runs import executors

    command = shlex.join(["run_bench.py", *sys.argv[1:]])
    chosen = executors.how(**how or {})
    if chosen.on == "slurm":
        from bench.runs.arrays import run as start
    else:
        from bench.runs.runner import run as start
    summary = start(suite, origin, results, machine=machine, command=command, how=chosen)
    return ended(summary, results, report)


def merge(
    results: Annotated[
        Path, typer.Option(parser=path, help="Folder that shards were taken into.")
    ] = Path("results"),
    as_json: Json = False,
) -> None:
    """Put shards together that `run --shard i/n` has taken: times their cells, writes the records.

    Cells of which a shard is missing are named, and wait.

    \b
    Examples:
      run_bench.py run --suite standard --shard 1/2     # and 2/2, at the same time or elsewhere
      run_bench.py merge
    """
    from bench.runs import executors, sharing

    command = shlex.join(["run_bench.py", *sys.argv[1:]])
    summary = sharing.merge(results, command, how=executors.how(events=as_json))
    raise typer.Exit(ended(summary, results, None))


def ended(summary: Any, results: Path, report: Path | None) -> int:
    """Write the report, print the summary; returns the exit code."""
    from bench.records import store

    if report is not None and not summary.interrupted:
        folders = sorted(folder for folder in results.glob(f"*/{store.stem(summary.suite)}"))
        summary.report = str(build(folders, report))
        typer.echo(f"report: {summary.report}", err=True)
    print(json.dumps(summary.as_dict()), flush=True)
    if summary.interrupted:
        return INTERRUPTED
    return 1 if summary.failed else 0
