r"""A report's table as LaTeX: \input it into a paper, or compile the file by itself.

Needs booktabs and siunitx, and adjustbox, which scales it to the page; set at 8 pt without scaling,
tabularx instead. Numbers are aligned by siunitx; what stands behind a number, such as its interval,
has a column of its own beside it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from bench.report.data.templates import TRIMMED, environment
from bench.report.tables.table import MISSING, Column, Table, unescape

if TYPE_CHECKING:
    from jinja2 import Environment

_EMPH = "\ue000", "\ue001"  # stand for themselves in no text
_SPECIAL = str.maketrans(
    {
        _EMPH[0]: r"\emph{",
        _EMPH[1]: "}",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{c: f"\\{c}" for c in "&%$#_{}"},
        **{c: f"${c}$" for c in "<>|"},
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
        "Δ": r"$\Delta$",
        "→": r"$\to$",
        "·": r"$\cdot$",
        "≈": r"$\approx$",
        "†": r"$^{\dagger}$",
        "‡": r"$^{\ddagger}$",
        "◊": r"$\diamond$",
        "⁹": "$^9$",
        "²": "$^2$",
        "–": "--",
        "…": r"\dots{}",
    }
)
HEAD_CHARACTERS = 12  # of a line of a column's header
TEXT_CHARACTERS = 34  # of a line of a column of words
# Of a table at 8 pt: a character's mean width, and the room between columns
CHARACTER_PT, GAP_PT = 4.3, 7.0
BROKEN_CHARACTERS = 20  # longer words are broken into lines there
_NUMBER = re.compile(r"([+−]?)(\d+)(?:\.(\d+))?(.*)", re.DOTALL)


def latex(table: Table, width_pt: float | None = None) -> str:
    """Return a table as LaTeX: the best of a band bold, the second underlined.

    Columns that are for the screen only are left out. The file compiles by itself too.

    Args:
        table: The table.
        width_pt: Set it at 8 pt on a page with so much room: long words are broken into lines, and
            columns without room stand below. None: it is scaled to the page that it comes to.
    """
    caption = f"{table.title}. {table.caption}" if table.title else table.caption
    small = width_pt is not None
    parts = _shown(table) if width_pt is None else parts_of(table, width_pt)
    tabulars = [_tabular(table, columns, small) for columns in parts]
    template = templates().get_template("table.tex.j2")
    about = {"caption": plain(caption), "label": table.label, "small": small}
    return template.render(tabulars=tabulars, **about)


def _shown(table: Table) -> list[list[int]]:
    return [[i for i, column in enumerate(table.columns) if not column.wide]]


def parts_of(table: Table, width_pt: float) -> list[list[int]]:
    """Return the columns of the parts of a table at 8 pt, which stand below each other.

    Each part begins with the words that name the rows.
    """
    (shown,) = _shown(table)
    names = list(takewhile(lambda i: table.columns[i].text, shown))
    room = width_pt - sum(_width_pt(table, i) for i in names)
    parts, left = [[*names]], room
    for index in shown[len(names) :]:
        width = _width_pt(table, index)
        if width > left and len(parts[-1]) > len(names):
            parts, left = [*parts, [*names]], room
        parts[-1].append(index)
        left -= width
    return parts


def lines_of(table: Table, width_pt: float) -> int:
    """Return about how many lines of 8 pt a table takes, its heads included."""
    total = 0
    for columns in parts_of(table, width_pt):
        long = [index for index in columns if _is_broken(table, index)]
        room = width_pt - sum(_width_pt(table, i) for i in columns if i not in long)
        characters = max(room / CHARACTER_PT / max(len(long), 1), 1)
        total += 3 + sum(
            max((-int(-len(line[i]) // characters) for i in long), default=1)
            for line in table.texts
        )
    return total


def _is_broken(table: Table, index: int) -> bool:
    longest = max((len(unescape(line[index])) for line in table.texts), default=0)
    return table.columns[index].text and longest > BROKEN_CHARACTERS


def _width_pt(table: Table, index: int) -> float:
    """Return about how wide a column is at 8 pt, the least of one of long words."""
    longest = max((len(unescape(line[index])) for line in table.texts), default=0)
    if _is_broken(table, index):
        longest = BROKEN_CHARACTERS
    longest = max(longest, *map(len, _wrapped(table.columns[index].header)))
    return longest * CHARACTER_PT + GAP_PT


def _tabular(table: Table, shown: Sequence[int], small: bool = False) -> str:
    """Return the rows and the heads of some columns, with a gap above each band but the first."""
    specs, heads, columns = zip(*(_printed(table, i, small) for i in shown), strict=True)
    bands = [row.get("band") for row in table.rows]
    gaps = ["\\addlinespace\n" if above != band else "" for above, band in pairwise(bands)]
    first = [gap + cell for gap, cell in zip(["", *gaps], columns[0], strict=False)]
    body = zip(first, *columns[1:], strict=True)
    head, *lines = (f"{' & '.join(cells)} \\\\\n" for cells in (heads, *body))
    rows = f"\\toprule\n{head}\\midrule\n{''.join(lines)}\\bottomrule\n"
    spec = "".join(specs)
    kind, width = ("tabularx", r"{\linewidth}") if "X" in spec else ("tabular", "")
    return f"\\begin{{{kind}}}{width}{{{spec}}}\n{rows}\\end{{{kind}}}\n"


@cache
def templates() -> Environment:
    r"""Return the templates of LaTeX files, whose braces must stay: <<value>> and <%block%>."""
    marks = {"variable": ("<<", ">>"), "block": ("<%", "%>"), "comment": ("<#", "#>")}
    starts = {f"{name}_start_string": start for name, (start, _) in marks.items()}
    ends = {f"{name}_end_string": end for name, (_, end) in marks.items()}
    made = environment(**starts, **ends, **TRIMMED)
    made.filters["plain"] = plain
    return made


def _printed(table: Table, index: int, small: bool) -> tuple[str, str, list[str]]:
    """Return a column's format, head and cells: of words, or of a number and what is behind it."""
    column: Column = table.columns[index]
    texts = [unescape(line[index]) for line in table.texts]
    numbers = [_NUMBER.fullmatch(text) for text in texts]
    odd = [text for text, n in zip(texts, numbers, strict=True) if not n and text != MISSING]
    if column.text or odd:
        wide = max(map(len, texts), default=0) > TEXT_CHARACTERS
        place = "X" if small else rf"p{{{TEXT_CHARACTERS // 2}em}}"
        broken = _is_broken(table, index) if small else wide
        spec = rf">{{\raggedright\arraybackslash}}{place}" if broken else "l"
        return spec, _head(column.header, "l"), [_words(text) for text in texts]
    present = [n for n in numbers if n]
    integers = max((len(n[2]) for n in present), default=1)
    digits = max((len(n[3] or "") for n in present), default=0)
    sign = "+" if any(n[1] for n in present) else ""
    behind = any(n[4] for n in present)
    spec = f"S[table-format={sign}{integers}.{digits}]" + (r"@{\,}l" if behind else "")
    cells = [
        _number(n, table.places[index].get(row, 0), integers)
        + (f" & {_words(n[4]) if n else ''}" if behind else "")
        for row, n in enumerate(numbers)
    ]
    return spec, _head(column.header, "c", 1 + behind), cells


def _number(number: re.Match[str] | None, place: int, integers: int) -> str:
    """Write a number for siunitx; it cannot underline, so that digits that lack are phantoms."""
    if number is None:
        return "{--}"
    text = number[1].replace("−", "-") + number[2] + (f".{number[3]}" if number[3] else "")
    if place == 2:
        missing = "0" * (integers - len(number[2]))
        return "{" + (rf"\phantom{{{missing}}}" if missing else "") + rf"\underline{{{text}}}}}"
    return rf"\bfseries {text}" if place else text


def _head(header: str, place: str, columns: int = 1) -> str:
    lines = _wrapped(header)
    written = r" \\ ".join(map(_words, lines))
    text = rf"\shortstack[{place}]{{{written}}}" if len(lines) > 1 else written
    return rf"\multicolumn{{{columns}}}{{{place}}}{{{text}}}"


def _wrapped(header: str) -> list[str]:
    """Return the lines of a column's head."""
    parts = unescape(header).split(", ")
    wrapper = textwrap.TextWrapper(HEAD_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    return [line for part in parts for line in wrapper.wrap(part)] or [""]


def plain(markdown: str) -> str:
    """Return Markdown text as LaTeX: emphasis is kept, bold and code become plain."""
    text = re.sub(r"(?<!\\)(\*\*|`)", "", markdown)
    text = re.sub(r"(?<!\\)\*([^*]+)(?<!\\)\*", f"{_EMPH[0]}\\1{_EMPH[1]}", text)
    return _words(unescape(text))


@cache
def _words(text: str) -> str:
    text = re.sub(r'"([^"]*)"', "``\\1''", text.strip())
    written = text.translate(_SPECIAL)
    return "{}" + written if written.startswith("[") else written  # \\[…] would be a distance
