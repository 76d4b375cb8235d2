"""The commands about contributed records: `leaderboard`, and `recheck`, which re-runs a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import INTERRUPTED, path


def leaderboard(
    results: Annotated[
        list[Path],
        typer.Argument(parser=path, help="Folders of records, one a machine or group."),
    ],
    out: Annotated[Path, typer.Option(parser=path, help="Folder of the site.")] = Path(
        "site/leaderboard"
    ),
) -> None:
    """Write a static site of contributed records: who is best by task, model and budget.

    Each record is audited first; one that contradicts itself is named with its field, and nothing
    is written. The site needs no network: index.html, and the records that it links to.

    \b
    Examples:
      run_bench.py leaderboard results
      run_bench.py leaderboard results/h100 contributed/lab-a contributed/lab-b --out site/
    """
    from bench.report.leaderboard import site

    print(site.build(results, out))


def recheck(
    results: Annotated[
        Path, typer.Argument(parser=path, help="A contributed folder of records, or one record.")
    ],
    sample: Annotated[int, typer.Option(min=1, max=1_000_000, help="Records to re-run.")] = 5,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws the sample; without it nobody can foresee it.")
    ] = None,
    out: Annotated[
        Path, typer.Option(parser=path, help="Folder of recheck.md and recheck.json.")
    ] = Path("recheck"),
    run: Annotated[bool, typer.Option(help="Re-run the sample, or audit all records only.")] = True,
) -> None:
    """Re-run a random sample of somebody's records here, and write whether they hold.

    Outcomes and counts must agree; times only where the machine is of the same kind, as far as
    their intervals overlap. What cannot run here is not rechecked, which is no agreement. Exit code
    0: what was re-run agrees; 1: something disagrees, or nothing could be re-run; 2: a record
    contradicts itself.

    \b
    Examples:
      run_bench.py recheck contributed/lab-a --sample 5
      run_bench.py recheck contributed/lab-a --no-run        the audit alone: no weights, no torch
      run_bench.py recheck results/MACHINE/quick/RECORD.json --sample 1
      run_bench.py recheck contributed/lab-a --seed 7        the sample of a report with that seed
    """
    from bench.records import audit

    records = audit.audit_all(results)  # before torch takes its seconds to load
    print(f"{len(records)} records passed their audit")
    if not run:
        return
    import secrets

    from bench.runs import recheck as checking

    drawn = secrets.randbits(31) if seed is None else seed
    report = checking.recheck(records, sample, drawn, out, lambda line: typer.echo(line, err=True))
    print(f"{report.verdict}: {out / checking.NAME}.md")
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(int(report.verdict != "agrees"))
