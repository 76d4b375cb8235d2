"""A report's table: one description of its columns for Markdown, CSV, LaTeX and the page."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from bench.report.data import disturbed
from bench.report.data.differences import NOISE, OVER_RANDOM, Flag, flags
from bench.report.data.rows import Row, known
from bench.report.data.stats import LEVEL
from bench.report.data.timings import is_noise

MISSING = "–"
SIGNIFICANT = 3  # digits of a column's smallest number
MOST_DIGITS = 6  # behind the point


@dataclass(frozen=True)
class Column:
    """A column: its header, the field behind it, how that is written, and which way is better.

    Attributes:
        header: Its head, as Markdown.
        key: The field that it shows, and that decides who is best.
        write: How it is written where it is more than a number with its interval, as Markdown.
        digits: Decimals; None: as many as give the smallest number three significant digits.
        most: The most decimals of those.
        ends: The fields of the interval's lower and upper end, where it has one.
        half: Write the interval as half its width, ``87.1 ±1.9``, not as ``1.52× [1.48, 1.55]``.
        sign: Write a plus before gains.
        suffix: Unit behind the value.
        null: The value that means no difference: an interval that holds it is marked as noise.
        within: Field of how far from `null` two equal things lie: what is no farther is noise too.
        marks: Fields, each with the mark that stands behind the text where the field says so.
        p: Field of the p value by which the marks judge: it stands beside a mark that says "noise"
            of an interval without the value of no difference.
        better: 1: more is, -1: less is, 0: no contest.
        text: Whether it shows words.
        wide: Whether it is for the screen only: a printed page has no room for it.
        unless: Field that says which rows cannot win.
        winners: Field that says who wins, where a test decides it and not the number alone.
    """

    header: str
    key: str
    write: Callable[[Row], str] | None = None
    digits: int | None = None
    most: int = MOST_DIGITS
    ends: Sequence[str] = ()
    half: bool = False
    sign: bool = False
    suffix: str = ""
    null: float | None = None
    within: str = ""
    marks: tuple[tuple[str, str], ...] = ()
    p: str = ""
    better: int = 0
    text: bool = False
    wide: bool = False
    unless: str = ""
    winners: str = ""

    def texts(self, rows: Sequence[Row]) -> list[str]:
        """Return what the column says of each row, as Markdown without emphasis."""
        plain = self.text or self.write
        digits = 0 if plain else self.decimals(row.get(self.key) for row in rows)
        return [self._marked(row, self._text(row, digits)) for row in rows]

    def decimals(self, values: Iterable[Any]) -> int:
        """Return the decimals of some values."""
        return min(self.most, digits_for(values)) if self.digits is None else self.digits

    def _text(self, row: Row, digits: int) -> str:
        if self.write:
            return self.write(row)
        if self.text:
            return escape(row.get(self.key) or MISSING)
        if not known(row.get(self.key)):
            return MISSING

        def one(value: float) -> str:
            return signed(value, digits) if self.sign else f"{value:.{digits}f}"

        text = one(row[self.key]) + self.suffix
        low, high = self._interval(row)
        if not (known(low) and known(high)):
            return text
        if self.half:
            return f"{text} ±{(high - low) / 2:.{digits}f}"
        ends = row[self.key], low, high
        noise = self.null is not None and is_noise(ends, row.get(self.within), self.null)
        return f"{text} [{one(low)}, {one(high)}]" + (f" {NOISE}" if noise else "")

    def _interval(self, row: Row) -> tuple[Any, Any]:
        low, high = self.ends or ("", "")
        return row.get(low), row.get(high)

    def _marked(self, row: Row, text: str) -> str:
        marks = [mark for field, mark in self.marks if row.get(field) and text != MISSING]
        low, high = self._interval(row)
        if (
            marks
            and known(low)
            and known(high)
            and low * high > 0
            and (row.get(self.p) or 0) >= LEVEL
        ):
            marks[-1] += f" (p {row[self.p]:.2f})"
        return " ".join([text, *marks])

    def flagged(self, flags: Iterable[Flag], before: str = "", behind: str = "") -> Column:
        """Return the column with the marks of some judgements, whose fields have names around."""
        added = tuple((f"{before}{flag.field}{behind}", flag.mark) for flag in flags)
        return replace(self, marks=self.marks + added)

    def timing(self, batch: int | str | None = None) -> Column:
        """Return the column with disturbed timings marked and out of the contest.

        Args:
            batch: The batch size in whose fields `with_timings` put them; None: rows are timings.
        """
        field = "disturbed" if batch is None else f"disturbed_batch{batch}"
        return replace(self, marks=(*self.marks, (field, disturbed.MARK)), unless=field)


def interval(header: str, keys: str, **how: Any) -> Column:
    """Return a column of values with intervals, whose fields are `keys` with the ends' names in.

    Example:
        >>> interval("speed-up", "speedup{}_x").ends
        ('speedup_low_x', 'speedup_high_x')
    """
    ends = keys.format("_low"), keys.format("_high")
    return Column(header, keys.format(""), ends=ends, **how)


def accuracy(header: str, stem: str, digits: int | None, winners: str, behind: str = "") -> Column:
    """Return a column of accuracies with half their intervals, of fields like ``accuracy_low``."""
    key, *ends = (f"{stem}_{end}{behind}" for end in ("value", "low", "high"))
    return Column(header, key, digits=digits, ends=ends, half=True, better=1, winners=winners)


def words(header: str, key: str) -> Column:
    """Return a column of words."""
    return Column(header, key, text=True)


@dataclass(frozen=True)
class Table:
    """A finished table.

    Attributes:
        name: File name without suffix.
        caption: What holds for every number in it, as Markdown.
        columns: What is shown of each row.
        rows: Every field of the rows, for the CSV file too.
        title: What the table is, as Markdown, where no heading says so.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""

    @cached_property
    def texts(self) -> list[list[str]]:
        """What each cell says, by row, as Markdown without emphasis."""
        columns = [column.texts(self.rows) for column in self.columns]
        return [list(line) for line in zip(*columns, strict=True)]

    @cached_property
    def places(self) -> list[dict[int, int]]:
        """For each column the rows that win (1) and come second (2) in their band."""
        columns = enumerate(self.columns)
        return [_places(c, self.rows, [line[i] for line in self.texts]) for i, c in columns]

    @cached_property
    def shown(self) -> str:
        """The table as Markdown; within a band of rows the best of each column is bold."""
        lines = [
            [
                f"**{text}**" if best.get(i) == 1 else text
                for text, best in zip(line, self.places, strict=True)
            ]
            for i, line in enumerate(self.texts)
        ]
        heads = [column.header for column in self.columns]
        rule = [":--" if column.text else "--:" for column in self.columns]
        # Not padded: one changed number must not rewrite the whole table in a diff.
        return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *lines])

    @property
    def label(self) -> str:
        """The name as LaTeX may refer to it."""
        return re.sub(r"[^A-Za-z0-9:.-]+", "-", self.name)

    def remarked(self, remark: str) -> Table:
        """Return a table whose caption ends with a remark, plain text; the same one without any."""
        return replace(self, caption=f"{self.caption} {escape(remark)}") if remark else self


def _places(column: Column, rows: Sequence[Row], texts: Sequence[str]) -> dict[int, int]:
    """Return who is best and second in each band, with those that print the same number.

    Where a test decides, all that share the first place are best, and none is second.
    """
    bands: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        able = not (row.get("is_baseline") or row.get(column.unless))
        if column.better and known(row.get(column.key)) and able:
            bands.setdefault(row.get("band", ""), []).append(index)
    places: dict[int, int] = {}
    for members in bands.values():
        if column.winners:
            winners = [index for index in members if rows[index].get(column.winners)]
            places |= dict.fromkeys(winners if len(winners) < len(members) else [], 1)
            continue
        members.sort(key=lambda index: -column.better * rows[index][column.key])
        printed = list(dict.fromkeys(texts[index].split()[0] for index in members))
        if len(printed) < 2:  # a contest of equals has no winner
            continue
        for index in members:
            place = printed.index(texts[index].split()[0]) + 1
            if place < min(3, len(printed)):  # the last one is not second
                places[index] = place
    return places


def escape(text: Any) -> str:
    """Make any text safe inside a cell of a Markdown table."""
    plain = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split()))
    return plain.replace("<", "&lt;").replace(">", "&gt;")


@cache
def unescape(text: str) -> str:
    """Undo what makes text safe in Markdown."""
    return html.unescape(re.sub(r"\\([\\`*\[\]|~_])", r"\1", text))


def probability(p: float) -> str:
    """Write a p value, as Markdown."""
    return f"{p:.3f}" if p >= 0.0005 else "&lt;0.001"


def signed(value: float, digits: int) -> str:
    """Write a number with its sign (a true minus), and zero without one."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def digits_for(values: Iterable[Any]) -> int:
    """Return the decimals that give the smallest number three significant digits."""
    sizes = [abs(value) for value in values if known(value) and value]
    if not sizes:
        return 0
    return min(MOST_DIGITS, max(0, SIGNIFICANT - 1 - math.floor(math.log10(min(sizes)))))


def name_columns(rows: Sequence[Row], *, flag: bool = False) -> list[Column]:
    """Return the columns that say what a row is: its band (once), method and setting.

    Where a table has no accuracies (`flag`), a method's comparison with random is marked by its
    name.
    """
    first = {id(row) for i, row in enumerate(rows) if not i or rows[i - 1]["band"] != row["band"]}

    def band(row: Row) -> str:
        return escape(row["band"]) if id(row) in first and not row["is_baseline"] else ""

    method = words("Method", "method")
    return [
        Column("MACs left", "band_shown", band, text=True),
        method.flagged(flags(OVER_RANDOM)) if flag else method,
        words("Setting", "setting"),
    ]
