"""Recompute the published costs: does this code count what the authors counted?

A figure is off when it differs by more than 1 % (or its own tolerance) and by more than half a unit
of its last printed digit. No weights are needed, and none are loaded.

    python run_bench.py verify
    python run_bench.py verify --only deit-s/evit --json
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from bench.runs import published
from bench.runs.published import UNITS, Cost

VERDICTS = {"ok": "green", "off": "bold red", "unsupported": "dim"}
Verdict = Literal["ok", "off", "unsupported"]


@dataclass(frozen=True)
class Check:
    """A published cost beside ours; `ours` is None where unsupported."""

    cost: Cost
    ours: float | None

    @property
    def verdict(self) -> Verdict:
        """Whether the two agree."""
        if self.ours is None:
            return "unsupported"
        return "ok" if self.cost.within(self.ours) else "off"

    @property
    def difference_percent(self) -> float | None:
        """(ours - published) / published, in percent."""
        if self.ours is None:
            return None
        theirs = float(self.cost.published)
        return 100 * (self.ours - theirs) / theirs

    def as_dict(self) -> dict[str, Any]:
        """For a program to read."""
        return asdict(self.cost) | {
            "unit": UNITS[self.cost.quantity],
            "ours": self.ours,
            "difference_percent": self.difference_percent,
            "verdict": self.verdict,
        }


def checks(only: str | None = None) -> Iterator[Check]:
    """Recompute the published costs one by one; `only` as for `published.costs`."""
    for cost in published.costs(only):
        yield Check(cost, None if cost.unsupported else published.recompute(cost))


def _table(results: list[Check]) -> Table:
    """One section a figure, its id and source in the first row."""
    table = Table(title="Published costs, recomputed without weights")
    for name in ("figure", "cost"):
        table.add_column(name, overflow="fold")
    for name in ("published", "ours", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("unit", "verdict"):
        table.add_column(name, no_wrap=True)
    table.add_column("source; what was counted; why unsupported", overflow="fold")
    for _, group in groupby(results, key=lambda check: check.cost.figure):
        said = ""
        for i, check in enumerate(group):
            why = check.cost.unsupported
            remarks = (check.cost.source if i == 0 else "", check.cost.counted, why)
            remark = "; ".join(text for text in remarks if text and text != said)
            table.add_row(*_row(check, first=i == 0), remark)
            said = why
        table.add_section()
    return table


def _row(check: Check, first: bool) -> list[str]:
    cost, difference = check.cost, check.difference_percent
    return [
        cost.figure if first else "",
        cost.label,
        cost.published,
        "" if check.ours is None else f"{check.ours:.{max(3, cost.decimals)}f}",
        "" if difference is None else f"{difference:+.2f} %",
        UNITS[cost.quantity],
        f"[{VERDICTS[check.verdict]}]{check.verdict}[/]",
    ]


def main(json: bool = False, only: str | None = None) -> int:
    """Recompute the published costs and print them beside ours.

    Args:
        json: print one JSON document instead of the table.
        only: keep figures whose id contains this text.

    Returns:
        Exit status: 1 when a figure is off, else 0.
    """
    console = Console(stderr=json)
    if not console.is_terminal:
        console = Console(stderr=json, width=160)  # in a log: wide enough for the table
    results = []
    with console.status("recomputing") as status:
        for check in checks(only):
            status.update(f"recomputed {check.cost.figure} {check.cost.label}")
            results.append(check)
    counts = {verdict: sum(c.verdict == verdict for c in results) for verdict in VERDICTS}
    if json:
        print(jsonlib.dumps({"checks": [c.as_dict() for c in results], "counts": counts}, indent=1))
    else:
        console.print(_table(results))
        console.print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    return 1 if counts["off"] else 0
