"""`run_bench.py check`: a table of properties by tower, and a line for whatever is not plain."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from bench.check.kit import FAILED, NOT_APPLICABLE, OK, PROPERTIES, Finding, check
from bench.core import registry

WIDTH = 170  # where the output is no terminal
CASES_A_TABLE = 10
STYLE = {OK: "green", FAILED: "bold red", NOT_APPLICABLE: "dim"}


def main(names: Sequence[str], *, json: bool = False) -> int:
    """Check the methods of these names, or all; print a table or JSON; return the exit code.

    Raises:
        BenchError: there is no such method.
    """
    classes = [registry.method(name) for name in names] or list(registry.methods().values())
    findings = [finding for cls in classes for finding in check(cls)]
    if json:
        print(jsonlib.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        show(findings)
    idle = {f.method for f in findings} - {f.method for f in findings if f.status != NOT_APPLICABLE}
    for name in sorted(idle):
        print(f"{name}: failed: it refuses every kind of tower", file=sys.stderr)
    return int(bool(idle) or any(finding.status == FAILED for finding in findings))


def show(findings: Sequence[Finding]) -> None:
    """One method: properties by towers; several: methods by properties. Then the lines."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    methods = list(dict.fromkeys(f.method for f in findings))
    if len(methods) > 1:
        console.print(_many(methods, findings))
    else:
        for cases in _columns(findings):
            console.print(_one(methods[0], cases, findings))
        for line in _reasons(findings):
            console.print(line, markup=False, highlight=False)
    failures = _failures(findings)
    for line in failures:
        console.print(line, style="red", markup=False, highlight=False)
    if not failures and any(f.status == OK for f in findings):
        console.print("every property holds wherever it applies", highlight=False)


def _columns(findings: Sequence[Finding]) -> Iterator[Sequence[str]]:
    """The towers by tables that fit on a screen, without those that the method refuses."""
    cases = list(dict.fromkeys(f.case for f in findings if f.status != NOT_APPLICABLE))
    cases = cases or list(dict.fromkeys(f.case for f in findings))
    for start in range(0, len(cases), CASES_A_TABLE):
        yield cases[start : start + CASES_A_TABLE]


def _one(method: str, cases: Sequence[str], findings: Sequence[Finding]) -> Table:
    at = {(f.property, f.case): f for f in findings}
    rows = [[name, *(_cell(at[name, case]) for case in cases)] for name in PROPERTIES]
    return _table([method, *(case.replace(" ", "\n") for case in cases)], rows)


def _many(methods: Sequence[str], findings: Sequence[Finding]) -> Table:
    """The worst that each property comes to on any tower."""
    rows = []
    for method in methods:
        row = [method]
        for name in PROPERTIES:
            met = {f.status for f in findings if (f.method, f.property) == (method, name)}
            worst = next(status for status in (FAILED, OK, NOT_APPLICABLE) if status in met)
            row.append(f"[{STYLE[worst]}]{worst}[/]")
        rows.append(row)
    return _table(["method", *PROPERTIES], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _cell(finding: Finding) -> str:
    word = finding.status
    if finding.property == "permutation" and word == OK:
        word = {"equivariant": "yes", "position-dependent": "no"}[finding.says]
    return f"[{STYLE[finding.status]}]{word}[/]"


def _failures(findings: Sequence[Finding]) -> list[str]:
    """Each thing that is wrong once, with the properties and towers where it shows."""
    wrong: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if finding.status == FAILED:
            wrong.setdefault((finding.method, finding.says), []).append(finding)
    lines = []
    for (method, says), alike in wrong.items():
        names, cases = (
            ", ".join(dict.fromkeys(getattr(f, key) for f in alike)) for key in ("property", "case")
        )
        lines.append(f"{method}: {names} failed on {cases}: {says}")
    return lines


def _reasons(findings: Sequence[Finding]) -> list[str]:
    """Why properties do not apply, each reason once; and what `permutation` means."""
    why: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.status == NOT_APPLICABLE:
            why.setdefault(finding.says, []).append(finding)
    lines = [f"n/a: {says} ({_where(alike)})" for says, alike in why.items()]
    return [*lines, "permutation: yes where the order of the patches does not matter, else no"]


def _where(findings: Sequence[Finding]) -> str:
    names = list(dict.fromkeys(f.property for f in findings))
    cases = list(dict.fromkeys(f.case for f in findings))
    towers = ", ".join(cases) if len(cases) < 5 else f"{len(cases)} towers"
    return towers if len(names) > 3 else f"{', '.join(names)} on {towers}"
