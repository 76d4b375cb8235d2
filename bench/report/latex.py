r"""A report's table as LaTeX, for a paper: \input it with the package booktabs."""

from __future__ import annotations

import html
import re

from bench.report.tables import Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "→": r"$\to$",
    "–": "--",
    "·": r"$\cdot$",
}


def latex(table: Table) -> str:
    """Return a table as LaTeX: what the Markdown shows, bold included, in a tabular."""
    head, rule, *lines = [_cells(line) for line in table.shown.splitlines()]
    kinds = "".join("l" if mark.startswith(":") else "r" for mark in rule)
    body = [" & ".join(map(_plain, line)) + r" \\" for line in [head, *lines]]
    parts = [f"% {_unescape(table.caption)}", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    parts += [body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _plain(cell: str) -> str:
    bold = re.fullmatch(r"\*\*(.*)\*\*", cell)
    text = "".join(_SPECIAL.get(c, c) for c in _unescape(bold[1] if bold else cell))
    if text.startswith("["):  # \\[…] would be read as a distance
        text = "{}" + text
    return rf"\textbf{{{text}}}" if bold else text


def _unescape(text: str) -> str:
    """Undo what makes text safe in Markdown."""
    return html.unescape(re.sub(r"\\([\\`*\[\]|~_])", r"\1", text))
