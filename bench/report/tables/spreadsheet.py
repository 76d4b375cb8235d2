"""A report's table as CSV: every field with every digit, and no formula that would be run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from bench.report.data.rows import Row, known

_FORMULA = ("=", "+", "-", "@")  # what spreadsheets take for a formula begins with one of these
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def written(rows: Sequence[Row]) -> str:
    """Return rows as CSV under the names of all their fields; what a row lacks is empty."""
    file, names = io.StringIO(), list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(file, lineterminator="\n")  # pandas takes four times as long
    writer.writerow(map(harmless, names))
    columns = (_of_one_type([row.get(name) for row in rows]) for name in names)
    writer.writerows(zip(*columns, strict=True))
    return file.getvalue()


def _of_one_type(values: Sequence[Any]) -> list[Any]:
    """Return a column as it is written: of floats, where whole numbers meet a gap or a fraction."""
    present = [value for value in values if known(value)]
    kinds = set(map(type, present))
    if kinds == {int, float} or (kinds == {int} and len(present) < len(values)):
        return [float(value) if known(value) else "" for value in values]
    return [harmless(value) if known(value) else "" for value in values]


def harmless(value: Any) -> Any:
    """Return a cell of a CSV file that no spreadsheet runs; text that it would has a quote ahead.

    Text is one line. Numbers, negative ones included, stay numbers. Source: OWASP, CSV Injection.
    """
    if not isinstance(value, str):
        return value
    line = " ".join(value.split())
    return f"'{line}" if line.startswith(_FORMULA) and not _NUMBER.fullmatch(line) else line
