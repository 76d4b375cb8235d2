"""The report's tables: Markdown for reading, CSV with every digit beside it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from bench.report.data.differences import NOISE, OVER_RANDOM, Flag, flags
from bench.report.data.frame import Frames
from bench.report.data.rows import Row, known

MISSING = "–"
BAND_POINTS = 10  # width of a band of MACs within which methods are compared, in percent


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
        return [[column.write(row) for column in self.columns] for row in self.rows]

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


def remarked(table: Table, remark: str) -> Table:
    """Return a table whose caption ends with a remark, plain text; the same one without any."""
    return replace(table, caption=f"{table.caption} {escape(remark)}") if remark else table


@dataclass(frozen=True)
class Column:
    """A column: its header, the value behind it, how that is written, and which way is better."""

    header: str
    key: str
    write: Callable[[Row], str]
    better: int = 0  # 1: more, -1: less, 0: no contest
    text: bool = False
    wide: bool = False  # for the screen: a printed page has no room for it
    unless: str = ""  # field that says which rows cannot win


def escape(text: Any) -> str:
    """Make any text safe inside a cell of a Markdown table."""
    plain = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split()))
    return plain.replace("<", "&lt;").replace(">", "&gt;")


@cache
def unescape(text: str) -> str:
    """Undo what makes text safe in Markdown."""
    return html.unescape(re.sub(r"\\([\\`*\[\]|~_])", r"\1", text))


def signed(value: float, digits: int) -> str:
    """Write a number with its sign (a true minus), and zero without one."""
    text = f"{value:+.{digits}f}"
    if not float(text):
        return text[1:]
    return text.replace("-", "−")


def digits_for(values: Sequence[Any], significant: int = 3) -> int:
    """Return the decimals that give the smallest number so many significant digits."""
    sizes = [abs(value) for value in values if known(value) and value]
    if not sizes:
        return 0
    return min(6, max(0, significant - 1 - math.floor(math.log10(min(sizes)))))


def number(key: str, digits: int, suffix: str = "") -> Callable[[Row], str]:
    """Return a writer of one value."""
    return lambda row: f"{row[key]:.{digits}f}{suffix}" if known(row.get(key)) else MISSING


def with_half_width(ends: Sequence[str], digits: int) -> Callable[[Row], str]:
    """Return a writer of ``87.1 ±1.9``: half the width of the 95 % interval.

    Args:
        ends: The fields of the value, of its lower and of its upper end.
        digits: Decimals.
    """
    key, low, high = ends

    def write(row: Row) -> str:
        if not known(row.get(key)):
            return MISSING
        text = f"{row[key]:.{digits}f}"
        if not (known(row.get(low)) and known(row.get(high))):
            return text
        return f"{text} ±{(row[high] - row[low]) / 2:.{digits}f}"

    return write


def with_interval(
    ends: Sequence[str],
    digits: int,
    *,
    sign: bool = False,
    suffix: str = "",
    null: float | None = None,
    within: str = "",
) -> Callable[[Row], str]:
    """Return a writer of ``1.52× [1.48, 1.55]``: value and 95 % interval.

    Args:
        ends: The fields of the value, of its lower and of its upper end.
        digits: Decimals.
        sign: Write a plus before gains.
        suffix: Unit behind the value.
        null: The value that means no difference: an interval that holds it is marked as noise.
        within: Field of how far from `null` two equal things lie: what is no farther is noise too.
    """
    key, low, high = ends

    def one(value: float) -> str:
        return signed(value, digits) if sign else f"{value:.{digits}f}"

    def write(row: Row) -> str:
        if not known(row.get(key)):
            return MISSING
        text = one(row[key]) + suffix
        if not (known(row.get(low)) and known(row.get(high))):
            return text
        noise = null is not None and is_noise([row[end] for end in ends], row.get(within), null)
        mark = f" {NOISE}" if noise else ""
        return f"{text} [{one(row[low])}, {one(row[high])}]{mark}"

    return write


def is_noise(ends: Sequence[float], within: float | None, null: float) -> bool:
    """Whether a value may be `null`: its interval holds it, or two equal things lie as far away.

    Args:
        ends: The value, the lower and the upper end of its interval.
        within: How far from `null` two equal things lie; None where nothing tells.
        null: The value that means no difference.
    """
    value, low, high = ends
    alike = within is not None and abs(value - null) <= within
    return alike or low <= null <= high


def flagged(write: Callable[[Row], str], key: str, mark: str) -> Callable[[Row], str]:
    """Return a writer that puts a mark behind what another writes, where a field says so."""

    def marked(row: Row) -> str:
        text = write(row)
        return f"{text} {mark}" if row.get(key) and text != MISSING else text

    return marked


def all_flagged(
    write: Callable[[Row], str], marks: Sequence[Flag], before: str = "", behind: str = ""
) -> Callable[[Row], str]:
    """Return a writer that puts several marks behind; their fields have names around them."""
    for flag in marks:
        write = flagged(write, f"{before}{flag.field}{behind}", flag.mark)
    return write


def _places(column: Column, rows: Sequence[Row], texts: Sequence[str]) -> dict[int, int]:
    """Return who is best and second in each band, with those that print the same number."""
    bands: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        able = not (row["is_baseline"] or row.get(column.unless))
        if column.better and known(row.get(column.key)) and able:
            bands.setdefault(row["band"], []).append(index)
    found = {}
    for members in bands.values():
        members.sort(key=lambda index: -column.better * rows[index][column.key])
        printed = list(dict.fromkeys(texts[index].split()[0] for index in members))
        if len(printed) < 2:  # a contest of equals has no winner
            continue
        for index in members:
            place = printed.index(texts[index].split()[0]) + 1
            if place < min(3, len(printed)):  # the last one is not second
                found[index] = place
    return found


def band(row: Row) -> str:
    """Name the band of MACs a cell falls in, like ``45–55 %`` of the unreduced model's.

    Bands lie around the tens: methods that were solved for 50 % of the MACs meet in one.
    """
    share = row.get("gmacs_pct_of_unreduced")
    if share is None:
        return "MACs unknown"
    middle, half = middle_of_band(share), BAND_POINTS // 2
    if share >= 100:
        return "100 % or more"
    return f"{max(middle - half, 0)}–{min(middle + half, 100)} %"


def middle_of_band(share: float) -> int:
    """Return the ten that is nearest to a share of the MACs in percent."""
    return math.floor(share / BAND_POINTS + 0.5) * BAND_POINTS


def off_middle(row: Row) -> float:
    """Return how far a cell's share of the MACs is from the middle of its band, in percent."""
    share = float(row["gmacs_pct_of_unreduced"])
    return abs(share - middle_of_band(share))


def group_rows(frames: Frames, group: str) -> list[Row]:
    """Return a table's rows by band, the baseline first, the most accurate first within a band."""
    rows = [
        row | {"band": frames.baseline if row["is_baseline"] else band(row)}
        for row in frames.by_group[group]
    ]
    return sorted(rows, key=by_band)


def by_band(row: Row) -> tuple[Any, ...]:
    """Return what rows are sorted by: the baseline, bands of MACs, accuracy within a band."""
    share = row["gmacs_pct_of_unreduced"]
    level = math.inf  # what is unknown comes last
    if share is not None:
        level = -math.inf if share >= 100 else -middle_of_band(share)
    accuracy = row["accuracy_value"]
    return (
        not row["is_baseline"],
        level,
        accuracy is None,
        -(accuracy or 0.0),
        -(share or 0.0),
        row["method"],
        row["setting"],
    )


def text_column(header: str, key: str) -> Column:
    """Return a column of words."""
    return Column(header, key, lambda row: escape(row.get(key) or MISSING), text=True)


def name_columns(rows: Sequence[Row], *, flag: bool = False) -> list[Column]:
    """Return the columns that say what a row is: its band (once), method and setting.

    Where a table has no accuracies, what is said of a method and random is flagged by its name.
    """
    first = {id(row) for i, row in enumerate(rows) if not i or rows[i - 1]["band"] != row["band"]}
    method = text_column("Method", "method")
    if flag:
        method = replace(method, write=all_flagged(method.write, flags(OVER_RANDOM)))
    return [
        Column(
            "MACs left",
            "band_shown",
            lambda row: escape(row["band"]) if id(row) in first and not row["is_baseline"] else "",
            text=True,
        ),
        method,
        text_column("Setting", "setting"),
    ]
