"""LaTeX tables: what they hold, and that each compiles by itself and inside a paper."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench.report.tables.latex import latex, lines_of, parts_of
from bench.report.tables.table import Column, Table, interval, words

needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="needs pdflatex (texlive-latex-extra, texlive-science)"
)
NAMES = ("a_b | 5 % & *c* <x> ~^\\ $1 #{}", "[−1, 2]", "plain “é”", "last")
PAPER = r"""
\documentclass{article}
\usepackage{adjustbox,booktabs,siunitx}
\begin{document}
\input{one}
\input{one}
Table~\ref{tab:t-1} \\ text
\end{document}
"""


def table() -> Table:
    x = (9.04, 12.0, 10.5, 8.0)
    ends = (None, (-1.0, 0.25), (0.5, 2.0), (-12.5, -2.0))
    rows = [
        {"name": name, "band": "b" if i < 3 else "c", "is_baseline": False, "x": value}
        | dict(zip(("d", "d_low", "d_high"), (sum(e) / 2, *e) if e else (None,) * 3, strict=True))
        for i, (name, value, e) in enumerate(zip(NAMES, x, ends, strict=True))
    ]
    columns = [
        words("Name", "name"),
        Column("x, b16", "x", digits=1, better=1),
        interval("Δ", "d{}", digits=2, sign=True),
        Column("screen only", "x", digits=3, wide=True),
    ]
    return Table("t_1", r"A ± B \* **bold** & `code` *so*", columns, rows, "Title")


def test_a_table_holds_what_markdown_shows() -> None:
    text = latex(table())
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert lines == [
        r"\multicolumn{1}{l}{Name} & \multicolumn{1}{c}{\shortstack[c]{x \\ b16}} & "
        r"\multicolumn{2}{c}{$\Delta$} \\",
        r"a\_b $|$ 5 \% \& *c* $<$x$>$ \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\$1 \#\{\} & 9.0 & {--} &  \\",
        r"{}[$-$1, 2] & \bfseries 12.0 & -0.38 & {}[$-$1.00, +0.25] \\",
        r"plain “é” & {\underline{10.5}} & +1.25 & {}[+0.50, +2.00] \\",
        r"last & 8.0 & -7.25 & {}[$-$12.50, $-$2.00] \\",
    ]
    assert r"\begin{tabular}{lS[table-format=2.1]S[table-format=+1.2]@{\,}l}" in text
    assert text.count(r"\addlinespace") == 1  # between bands
    assert (
        r"\caption{Title. A $\pm$ B * bold \& code \emph{so}}" in text
        and r"\label{tab:t-1}" in text
    )


def test_digits_that_lack_are_phantoms_under_a_line() -> None:
    columns = [Column("x", "x", digits=0, better=-1)]
    rows = [{"x": x, "band": "", "is_baseline": False} for x in (7.0, 8.0, 110.0)]
    assert r"{\phantom{00}\underline{8}}" in latex(Table("t", "c", columns, rows))


def test_long_words_are_broken_into_lines() -> None:
    rows = [{"x": "so many words " * 9, "band": "", "is_baseline": False}]
    text = latex(Table("t", "c", [words("x", "x")], rows))
    assert r"\begin{tabular}{>{\raggedright\arraybackslash}p{17em}}" in text


def test_a_table_at_8_pt_is_broken_where_a_page_ends() -> None:
    narrow = replace(table(), rows=[row | {"name": row["name"][:5]} for row in table().rows])
    assert parts_of(narrow, 400) == [[0, 1, 2]]  # what is for the screen only is left out
    assert parts_of(narrow, 130) == [[0, 1], [0, 2]]  # the names of the rows stand in both
    assert lines_of(narrow, 130) == 2 * lines_of(narrow, 400) == 2 * (3 + 4)
    text = latex(narrow, 130)
    assert text.count(r"\begin{tabular}") == text.count("last & ") == 2
    long = replace(narrow, rows=[row | {"name": "so many words " * 9} for row in narrow.rows])
    assert lines_of(long, 400) > lines_of(narrow, 400)
    assert r"\begin{tabularx}{\linewidth}{>{\raggedright\arraybackslash}X" in latex(long, 400)


def compiled(folder: Path, name: str) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]


@needs_latex
def test_a_table_compiles_by_itself_and_inside_a_paper(tmp_path: Path) -> None:
    (tmp_path / "one.tex").write_text(latex(table()), encoding="utf-8")
    (tmp_path / "paper.tex").write_text(PAPER, encoding="utf-8")
    rows = [row | {"name": "so many words " * 9} for row in table().rows]
    (tmp_path / "small.tex").write_text(latex(replace(table(), rows=rows), 200), encoding="utf-8")
    for name in ("one", "paper", "small"):
        compiled(tmp_path, f"{name}.tex")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
