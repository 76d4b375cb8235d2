"""`run_bench.py check`: the kit at work on methods, its findings as a table or JSON."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from dataclasses import asdict

from bench.check.kit import FAILED, NOT_APPLICABLE, check
from bench.check.table import show
from bench.core.registry import method as lookup
from bench.core.registry import methods


def main(names: Sequence[str], *, json: bool = False) -> int:
    """Check the methods of these names, or all; print a table or JSON; return the exit code.

    Raises:
        BenchError: there is no such method.
    """
    classes = [lookup(name) for name in names] or list(methods().values())
    findings = [finding for cls in classes for finding in check(cls)]
    if json:
        print(jsonlib.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        show(findings)
    idle = {f.method for f in findings} - {f.method for f in findings if f.status != NOT_APPLICABLE}
    for name in sorted(idle):
        print(f"{name}: failed: it refuses every kind of tower", file=sys.stderr)
    return int(bool(idle) or any(finding.status == FAILED for finding in findings))
