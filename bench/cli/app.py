"""The command line. Nothing heavy is imported before a command needs it: `--help` is instant."""

from __future__ import annotations

import json as jsonlib
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.core.errors import BenchError
from bench.report import MOST_FIGURES

DEFAULT_SUITE = "quick"
INTERRUPTED = 130  # what a shell reports after Ctrl-C

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what token reduction costs and saves: accuracy, MACs, time and memory.\n\n"
    "Without a command: the suite 'quick' (under ten minutes on two cores) and its report.\n\n"
    "\b\nExamples:\n"
    "  run_bench.py                                    the default suite and its report\n"
    "  run_bench.py run --suite standard               a finer sweep\n"
    "  run_bench.py run --model timm:deit_small_patch16_224 --random-weights \\\n"
    "               --method tome --r 13               what one method costs on one model\n"
    "  run_bench.py list methods                       what there is to compare\n"
    "  run_bench.py report                             rebuild the report from the records\n"
    "  run_bench.py compare HEAD~1 results             what a change made better or worse\n"
    "  run_bench.py cost llava-1.5-7b-hf --method divprune   from its shape, in seconds\n"
    "  run_bench.py verify                             recompute the costs that papers print\n",
)

Results = Annotated[Path, typer.Option(help="Folder of the records, one JSON a cell.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


class Listing(StrEnum):
    """What `list` can list."""

    methods = "methods"
    models = "models"
    tasks = "tasks"
    suites = "suites"
    profiles = "profiles"


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Run the default suite and write its report when no command is given."""
    if context.invoked_subcommand is None:
        raise typer.Exit(_run({"suite": DEFAULT_SUITE}, Path("results"), Path("reports/quick")))


@app.command()
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
    results: Results = Path("results"),
    report: Annotated[
        Path | None, typer.Option(help="Also write a report into this folder.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples used for accuracy.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Cost only, from the model's shape.")
    ] = False,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16 or float16; default the profile's.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes to time; default the profile's.")
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Attention: sdpa or eager.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time budget of the timings at each batch size.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of random weights and random methods.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Name of this machine's results folder.")
    ] = None,
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
    """
    options: dict[str, Any] = {
        "suite": suite, "model": model, "task": task, "method": method, "r": r,
        "keep_rate": keep_rate, "budget": budget, "profile": profile, "limit": limit,
        "random_weights": random_weights, "dtype": dtype, "batch": batch, "backend": backend,
        "seconds": seconds, "seed": seed,
    }  # fmt: skip
    raise typer.Exit(_run(options, results, report, machine))


def _run(
    options: dict[str, Any], results: Path, report: Path | None, machine: str | None = None
) -> int:
    """Run and report; returns the exit code."""
    from bench.records import store

    store.Store(results).check_writable()  # before torch takes its seconds to load
    from bench.runs import options as choose

    suite, origin = choose.suite(options)
    from bench.runs import runner

    command = shlex.join(["run_bench.py", *sys.argv[1:]])
    summary = runner.run(suite, origin, results, machine=machine, command=command)
    if report is not None and not summary.interrupted:
        from bench.report import build

        folders = sorted(folder for folder in results.glob(f"*/{store.slug(suite.name)}"))
        summary.report = str(build(folders, report))
        typer.echo(f"report: {summary.report}", err=True)
    print(jsonlib.dumps(summary.as_dict()), flush=True)
    if summary.interrupted:
        return INTERRUPTED
    return 1 if summary.failed else 0


@app.command()
def report(
    results: Annotated[
        list[Path] | None, typer.Argument(help="Folders of records; default: those of --suite.")
    ] = None,
    suite: Annotated[str, typer.Option(help="Whose records to report.")] = DEFAULT_SUITE,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write into; default reports/SUITE.")
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="Method, or label of a cell, that all others are compared with.")
    ] = "none",
    methods: Annotated[
        list[str] | None, typer.Option(help="Show these methods only: tome,crossget.")
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Show these hardware profiles only.")
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="csv, latex, html, markdown (all by default), paper.")
    ] = None,
    style: Annotated[
        str, typer.Option(help="Page of the figures: page, neurips, cvpr, icml, slides.")
    ] = "page",
    figures: Annotated[
        str, typer.Option(help="Draw so many models and tasks, the most complete ones, or all.")
    ] = str(MOST_FIGURES),
) -> None:
    """Rebuild a report from records, of one or several machines; needs no torch.

    \b
    Examples:
      run_bench.py report
      run_bench.py report --suite standard --methods tome,crossget
      run_bench.py report results/h100 results/cpu-mine --out reports/both
      run_bench.py report --format html            index.html alone: it needs no other file
      run_bench.py report --format paper --style neurips --out my-paper
      run_bench.py report --methods tome --figures all
    """
    from bench.report import DEFAULT_FORMATS, build

    if not results:
        results = _recorded(suite)
    if figures != "all" and not figures.isdigit():
        raise BenchError(f"--figures {figures} is neither a number nor 'all'")
    path = build(
        results,
        out or Path("reports") / suite,
        figures=None if figures == "all" else int(figures),
        baseline=baseline,
        methods=_words(methods),
        profiles=_words(profile),
        formats=_words(format) or DEFAULT_FORMATS,
        style=style,
    )
    print(path)


def _words(values: list[str] | None) -> list[str]:
    """Return what was named, in several options or in one with commas."""
    return [word for value in values or [] for word in value.split(",") if word]


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A results folder, or a git revision's results/.")],
    b: Annotated[str, typer.Argument(help="The same, the newer one.")],
) -> None:
    """Print what got better, what got worse and what is within noise, as Markdown; no torch.

    \b
    Examples:
      run_bench.py compare results/h100 results/cpu-mine
      run_bench.py compare HEAD~1 results
    """
    from bench.report.tables import compare as comparison

    print(comparison.compare(a, b))


@app.command()
def tokens(
    results: Annotated[
        list[Path] | None, typer.Argument(help="Suites' folders; default: those of --suite.")
    ] = None,
    suite: Annotated[str, typer.Option(help="Whose recorded cells to show.")] = DEFAULT_SUITE,
    samples: Annotated[int, typer.Option(min=1, help="Images of each task.")] = 4,
) -> None:
    """Note which patches of sample images each recorded cell keeps, merges and drops.

    The report then shows them: run_bench.py report.
    """
    if not results:
        results = _recorded(suite)
    from bench.runs import tokens as fates

    for path in fates.main(results, samples):
        print(path)


def _recorded(suite: str) -> list[Path]:
    found = sorted(Path("results").glob(f"*/{suite}"))
    if not found:
        raise BenchError(f"no records in results/*/{suite}: run_bench.py run --suite {suite}")
    return found


@app.command("list")
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


@app.command()
def submit(
    record: Annotated[Path, typer.Argument(help="A record of a run, one JSON file of results/.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Write a record's answers as evaluation servers take them (VQAv2, POPE, captions, NLVR2)."""
    from bench.runs.submission import write

    print(f"{out}: {write(record, out):,} bytes")


@app.command()
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
        int | None, typer.Option(min=0, help="Tokens of the prompt beside the image's [36].")
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


@app.command()
def verify(
    json: Json = False,
    only: Annotated[
        str | None, typer.Option(help="Only figures whose id contains this text.")
    ] = None,
) -> None:
    """Recompute the costs that papers print and compare; exit code 1 when one is off."""
    from bench.runs.verify import main as check

    raise typer.Exit(check(json=json, only=only))


@app.command()
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
    from bench.check.kit import main as conformance

    raise typer.Exit(conformance([] if every else methods or [], json=json))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Lower case, words joined by hyphens.")],
) -> None:
    """Start a method: a working file in methods/ and its test, to be changed from there."""
    from bench.check.new import create

    for path in create(name):
        print(path)
    print(f"next: run_bench.py check {name}, and `make readme` for the table of methods")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],  # training explains its own options
    }
)
def train(context: typer.Context) -> None:
    """Train an embedded model again, or fine-tune a CLIP with reduction on; resumes if stopped."""
    from bench.training.train import main as start

    command = shlex.join(["run_bench.py", *sys.argv[1:]])
    raise typer.Exit(start(context.args or ["--help"], command))


def main() -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    try:
        code = app(prog_name=Path(sys.argv[0]).name, standalone_mode=False)
    except BenchError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        wording = getattr(error, "format_message", None)  # a mistake in the options themselves
        if wording is None:
            raise
        _fail(f"{wording()} (see --help)")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
