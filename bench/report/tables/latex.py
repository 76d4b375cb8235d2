r"""A report's table as LaTeX: \input it into a paper, or compile the file by itself.

Needs booktabs, siunitx and adjustbox. Numbers are aligned by siunitx; what stands behind a number,
such as its interval, has a column of its own beside it.
"""

from __future__ import annotations

import re
import textwrap
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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
_NUMBER = re.compile(r"([+−]?)(\d+)(?:\.(\d+))?(.*)", re.DOTALL)


def latex(table: Table) -> str:
    """Return a table as LaTeX: the best of a band bold, the second underlined.

    Columns that are for the screen only are left out. The file compiles by itself too.
    """
    shown = [i for i, column in enumerate(table.columns) if not column.wide]
    columns = [_Printed(table, i) for i in shown]
    return (
        environment()
        .get_template("table.tex.j2")
        .render(
            caption=plain(f"{table.title}. {table.caption}" if table.title else table.caption),
            label=table.label,
            spec="".join(column.spec for column in columns),
            heads=[column.head for column in columns],
            lines=list(zip(*(column.cells for column in columns), strict=True)),
            gaps=[bool(i and a != b) for i, (a, b) in enumerate(_bands(table))],
        )
    )


def _bands(table: Table) -> list[tuple[Any, Any]]:
    names = [row.get("band") for row in table.rows]
    return list(pairwise([*names[:1], *names]))


@cache
def environment() -> Environment:
    r"""Return the templates of LaTeX files, whose own braces must stay: <<value>> and <%block%>."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("bench.assets", "templates/report"),
        undefined=StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["plain"] = plain
    return found


class _Printed:
    """A column as LaTeX has it: one of words, or a number's and, where needed, one behind it."""

    def __init__(self, table: Table, index: int) -> None:
        column: Column = table.columns[index]
        texts = [unescape(line[index]) for line in table.texts]
        marks = [table.places[index].get(row, 0) for row in range(len(texts))]
        numbers = [_NUMBER.fullmatch(text) for text in texts]
        if column.text or any(
            n is None and t != MISSING for n, t in zip(numbers, texts, strict=True)
        ):
            longest = max(map(len, texts), default=0)
            self.spec = "l" if longest <= TEXT_CHARACTERS else _paragraph(TEXT_CHARACTERS)
            self.head, self.cells = _head(column.header, "l"), [_words(text) for text in texts]
            return
        found = [n for n in numbers if n]
        whole = max((len(n[2]) for n in found), default=1)
        digits = max((len(n[3] or "") for n in found), default=0)
        sign = "+" if any(n[1] for n in found) else ""
        behind = any(n[4] for n in found)
        self.spec = f"S[table-format={sign}{whole}.{digits}]" + (r"@{\,}l" if behind else "")
        self.head = _head(column.header, "c", 1 + behind)
        self.cells = [
            _number(n, mark, whole) + (f" & {_words(n[4]) if n else ''}" if behind else "")
            for n, mark in zip(numbers, marks, strict=True)
        ]


def _number(found: re.Match[str] | None, mark: int, whole: int) -> str:
    """Write a number for siunitx; it cannot underline, so that digits that lack are phantoms."""
    if found is None:
        return "{--}"
    text = found[1].replace("−", "-") + found[2] + (f".{found[3]}" if found[3] else "")
    if mark == 2:
        missing = "0" * (whole - len(found[2]))
        return "{" + (rf"\phantom{{{missing}}}" if missing else "") + rf"\underline{{{text}}}}}"
    return rf"\bfseries {text}" if mark else text


def _head(header: str, place: str, columns: int = 1) -> str:
    lines = [line for part in unescape(header).split(", ") for line in _wrapped(part)]
    written = r" \\ ".join(map(_words, lines))
    text = rf"\shortstack[{place}]{{{written}}}" if len(lines) > 1 else written
    return rf"\multicolumn{{{columns}}}{{{place}}}{{{text}}}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, HEAD_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _paragraph(characters: int) -> str:
    return rf">{{\raggedright\arraybackslash}}p{{{characters / 2:.0f}em}}"


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
