"""The commands that show records: `report`, `compare`, and `tokens`, which adds to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import DEFAULT_SUITE, path, path_text
from bench.core.errors import BenchError
from bench.core.numbers import whole
from bench.report import DEFAULT_FORMATS, MOST_FIGURES, build


def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(parser=path, help="Folders of records; default: those of --suite."),
    ] = None,
    suite: Annotated[str, typer.Option(help="Whose records to report.")] = DEFAULT_SUITE,
    root: Annotated[
        Path, typer.Option("--results", parser=path, help="Folder of the records, as in `run`.")
    ] = Path("results"),
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder to write into; default reports/SUITE.")
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
    if not results:
        results = _recorded(suite, root)
    try:
        most = None if figures == "all" else whole(figures)
    except BenchError as error:
        raise BenchError(f"--figures: {error}: give one, or 'all'") from None
    file = build(
        results,
        out or Path("reports") / _folder(suite),
        figures=most,
        baseline=baseline,
        methods=_words(methods),
        profiles=_words(profile),
        formats=_words(format) or DEFAULT_FORMATS,
        style=style,
    )
    print(file)


def _words(values: list[str] | None) -> list[str]:
    """Return what was named, in several options or in one with commas."""
    return [word for value in values or [] for word in value.split(",") if word]


def compare(
    a: Annotated[
        str,
        typer.Argument(parser=path_text, help="A results folder, or a git revision's results/."),
    ],
    b: Annotated[str, typer.Argument(parser=path_text, help="The same, the newer one.")],
) -> None:
    """Print what got better, what got worse and what is within noise, as Markdown; no torch.

    \b
    Examples:
      run_bench.py compare results/h100 results/cpu-mine
      run_bench.py compare HEAD~1 results
    """
    from bench.report.tables import compare as comparison

    print(comparison.compare(a, b))


def tokens(
    results: Annotated[
        list[Path] | None,
        typer.Argument(parser=path, help="Suites' folders; default: those of --suite."),
    ] = None,
    suite: Annotated[str, typer.Option(help="Whose recorded cells to show.")] = DEFAULT_SUITE,
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="Images of each task.")] = 4,
) -> None:
    """Note which patches of sample images each recorded cell keeps, merges and drops.

    The report then shows them: run_bench.py report.
    """
    if not results:
        results = _recorded(suite, Path("results"))
    from bench.runs import tokens as fates

    for file in fates.main(results, samples):
        print(file)


def _recorded(suite: str, root: Path) -> list[Path]:
    name = _folder(suite)
    folders = sorted(folder for folder in root.glob(f"*/{name}") if folder.is_dir())
    if not folders:
        raise BenchError(
            f"no records in {root}/*/{name[:80]}: run_bench.py run --suite {suite[:80]}"
        )
    return folders


def _folder(suite: str) -> str:
    from bench.records.store import stem

    return stem(suite)
