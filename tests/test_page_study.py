"""The study's other parts on the page: every table of the report, and figures as tables."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import synthetic
from test_report_plots import resolutions, tasks

from bench.report.content import content
from bench.report.data import frame
from bench.report.data.budgets import budgets
from bench.report.figures import breakdown, breakeven, ranks
from bench.report.page import page, study
from bench.report.tables.table import unescape


def lines(text: str) -> list[list[str]]:
    """The rows of all tables that the report made, as a reader sees them."""
    rows = re.findall(r"<tr>((?:<td.*?</td>)+)</tr>", text, re.S)
    plain = [re.sub(r"</?b>", "", row) for row in rows]
    return [[html.unescape(t) for t in re.findall(r"<td[^>]*>(.*?)</td>", r, re.S)] for r in plain]


def test_every_table_of_the_report_is_on_the_page(tmp_path: Path) -> None:
    made = content(frame.build(resolutions()), most=0)
    page.write(made, tmp_path)
    text = (tmp_path / page.NAME).read_text(encoding="utf-8")
    shown = lines(text)
    tables = [table for section in made.sections for table in section.tables]
    assert len(tables) > 5
    for table in tables:
        assert all([unescape(t) for t in line] in shown for line in table.texts), table.name
    best = next(table for table in tables if 1 in table.places[-1].values())
    row = next(row for row, place in best.places[-1].items() if place == 1)
    assert f"<b>{html.escape(unescape(best.texts[row][-1]))}</b>" in text
    names = re.findall(r'<details class="fold" id="([^"]*)">', text)
    assert len(set(names)) == len(names) > 2 and "study-where-reduction-pays" in names


def test_sections_of_equal_names_have_names_of_their_own() -> None:
    made = content(frame.build(synthetic()), most=0)
    one = made.groups[0]
    twins = replace(made, groups=[one, replace(one, title=f"{one.title}!"), one])
    parts = [part for part in study.parts(twins).values() if part.title.startswith(one.title)]
    assert len(parts) == 3


def test_break_even_is_that_of_the_map() -> None:
    frames = frame.build(resolutions())
    maps, tables = breakeven.maps(frames), list(study.break_even(frames))
    cells = {
        (table.caption, row["method"], row["px"], batch): text
        for table in tables
        for row, line in zip(table.rows, table.texts, strict=True)
        for batch, text in zip((1, 8, 32), line[2:], strict=True)
    }
    assert len(cells) == sum(len(places) for _, places in maps)
    for sweep, places in maps:
        for (batch, px), speed in places.items():
            (text,) = (
                text
                for (caption, *place), text in cells.items()
                if place == [sweep.method, px, batch] and f" {sweep.share} of" in caption
            )
            assert text == f"{speed:.2f}×" + (" slower" if speed < 1 else "")
    assert any("slower" in text for text in cells.values())
    assert list(study.break_even(frame.build(synthetic()))) == []


def test_ranks_and_times_are_those_of_the_figures() -> None:
    frames = frame.build(tasks(6))
    ranking = ranks.ranking(budgets(frames))
    (table,) = study.mean_ranks(frames)
    assert ranking and {row["method"]: row["rank"] for row in table.rows} == ranking.means
    assert [row["rank"] for row in table.rows] == sorted(ranking.means.values())
    group = frames.groups()[0]
    _, points = breakdown.splits(frames, group)
    (table,) = study.time_split(frames, group)
    assert len(table.rows) == len(points) > 0
    for row in table.rows:
        parts = [row[name] for name, *_ in breakdown.PARTS]
        assert sum(parts) == pytest.approx(row["time"])
        assert parts in [pytest.approx(list(point["parts"])) for point in points]
