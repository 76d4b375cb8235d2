"""Report on recorded studies: the package's report, with a section for each study.

python -m recipes.ablation.report                    of every study that has records
python -m recipes.ablation.report --suite tuned
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.report import build
from recipes.ablation import sections  # noqa: F401  (declares what the report shows of a study)

SUITES = ("tuned", "guidance")


def report(suite: str, results: Path = Path("results"), out: Path | None = None) -> Path:
    """Write the report of one suite; return its path.

    Raises:
        BenchError: If nothing was recorded.
    """
    folders = sorted(results.glob(f"*/{suite}")) or [results / suite]
    return build(folders, out or Path("reports") / suite)


def main(
    suite: Annotated[
        list[str] | None, typer.Option(help="of which suite; default: all recorded")
    ] = None,
    results: Annotated[Path, typer.Option(help="folder of the records")] = Path("results"),
) -> None:
    """Write the reports of recorded studies."""
    for name in suite or [name for name in SUITES if any(results.glob(f"*/{name}"))]:
        print(report(name, results))


if __name__ == "__main__":
    typer.run(main)
