"""Rows of a data set's file: a field that is not as its format has it is one line that names it.

whole = document(data, file, "VQAv2 questions file", "vqav2:QUESTIONS[:ANNOTATIONS]:IMAGES")
[(row.number("question_id"), row.text("question")) for row in whole.rows("questions")]
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, shown

NOTHING: Any = object()  # in place of a default: the field has to be there


@dataclass(frozen=True, slots=True)
class Row:
    """A mapping or list of a file, with checked access to its fields.

    Attributes:
        values: as they were read.
        above: where the row is, such as "pope.json is no POPE file".
        form: of the task's names.
        place: of the row in what is above it, from 1; None for the document itself.
    """

    values: Any
    above: str
    form: str
    place: int | None = None

    def value(self, name: str | int, default: Any = NOTHING) -> Any:
        """Return a field as it is, or the default where the row has none."""
        try:
            return self.values[name]
        except (KeyError, IndexError, TypeError):
            if default is NOTHING or not isinstance(self.values, dict):
                raise self._error(f"it has no {name!r}") from None
            return default

    def text(self, name: str | int, default: Any = NOTHING) -> str:
        """Return a field that is a text."""
        value = self.value(name, default)
        if not isinstance(value, str):
            raise self.fault(name, "a text")
        return value

    def number(self, name: str | int, default: Any = NOTHING) -> int:
        """Return a field that is a whole number."""
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fault(name, "a whole number")
        return value

    def numbers(self, name: str, count: int) -> list[float]:
        """Return a field that is a list of so many finite numbers."""
        values = self.value(name)
        fine = isinstance(values, list) and len(values) == count
        if not fine or not all(_is_number(value) for value in values):
            raise self.fault(name, f"a list of {count} numbers")
        return [float(value) for value in values]

    def identifier(self, name: str, default: Any = NOTHING) -> int | str:
        """Return a field that is a text or a whole number."""
        value = self.value(name, default)
        return value if isinstance(value, str) else self.number(name, default)

    def texts(self, name: str) -> list[str]:
        """Return a field that is a text, or a list of them."""
        value = self.value(name)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self.fault(name, "a text or a list of texts")
        return texts

    def rows(self, name: str, default: Any = NOTHING, least: int = 0) -> list[Row]:
        """Return the rows of a field that is a list of at least so many."""
        value = self.value(name, default)
        if not isinstance(value, list) or len(value) < least:
            raise self.fault(name, f"a list of {least} or more")
        above = f"{self._where} {name},"
        return [Row(one, above, self.form, i) for i, one in enumerate(value, 1)]

    def fault(self, name: str | int, wanted: str) -> BenchError:
        """Return the error that a field is not what its format has."""
        return self._error(f"{name!r} is {shown(repr(self.values[name]), 40)}, not {wanted}")

    def _error(self, what: str) -> BenchError:
        return BenchError(f"{self._where} {what}: mend it for {self.form}")

    @property
    def _where(self) -> str:
        return self.above + (":" if self.place is None else f" row {self.place}:")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def document(data: Any, file: Path, what: str, form: str) -> Row:
    """Return a document that was read from a file, to look at its fields.

    Args:
        data: its value.
        file: where it is from.
        what: it should be, such as "POPE file".
        form: of the task's names.
    """
    return Row(data, f"{shown(file)} is no {what}", form)


def listed(data: Any, file: Path, what: str, form: str) -> list[Row]:
    """Return the rows of a document that is a list of them; raises BenchError where it is empty."""
    if not isinstance(data, list) or not data:
        raise BenchError(f"{shown(file)} is no {what}: it has no rows: {form}")
    above = document(data, file, what, form)._where
    return [Row(one, above, form, i) for i, one in enumerate(data, 1)]


def unlike(identifiers: Iterable[Any], file: Path, form: str) -> None:
    """Raise BenchError where an identifier is there twice."""
    seen = set()
    for one in identifiers:
        if one in seen:
            raise BenchError(f"{shown(file)} has {shown(repr(one), 40)} twice: keep one for {form}")
        seen.add(one)
