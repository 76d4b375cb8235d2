"""A report of cells under several engines: speed-ups side by side, accuracies told once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report_rows import FIRST, base, record, shown

from bench.records.record import Record, Speedup
from bench.report.data import disturbed, frame
from bench.report.data.budgets import budgets
from bench.report.data.frame import Frames
from bench.report.tables.engines import engine_tables


def under(engine: str, cell: Record, speed: float, **timing: object) -> Record:
    """The cell as it was timed under an engine."""
    latency = replace(FIRST, engine=engine, speedup=Speedup(speed, (speed - 0.1, speed + 0.1)))
    return replace(
        cell,
        key=f"{engine}-{cell.key}"[:64],
        cell=replace(cell.cell, engine=engine),
        cost=replace(cell.cost, latency=[replace(latency, **timing)]),
    )


@pytest.fixture
def frames() -> Frames:
    cells = [
        *(under("compile", cell, speed) for cell, speed in ((base(), 1.0), (record(), 1.75))),
        *(under("eager", cell, speed) for cell, speed in ((base(), 1.0), (record(), 1.5))),
        under("eager", record("evit", 250), 1.25, disturbed=True, disturbance="load 2.0"),
    ]
    return frame.build(cells)


def test_engines_stand_side_by_side_eager_first(frames: Frames) -> None:
    (table,) = engine_tables(frames)
    heads = [column.header for column in table.columns]
    assert heads[3:] == ["MAC bound", "eager, b1", "compile, b1"]
    tome = shown(table)
    assert tome["MAC bound"] == "2.50×"
    assert tome["eager, b1"].startswith("1.50× [1.40, 1.60]")
    assert tome["compile, b1"].startswith("1.75× [1.65, 1.85]")
    assert "sdpa · 2 threads, and cpu · float32 · sdpa, compile" in table.caption


def test_what_one_engine_lacks_is_left_out_and_the_disturbed_is_marked(frames: Frames) -> None:
    (table,) = engine_tables(frames)
    evit = shown(table, "evit")
    assert evit["compile, b1"] == "–"
    assert evit["eager, b1"].endswith(disturbed.MARK)
    assert disturbed.LEGEND in table.caption


def test_one_engine_makes_no_such_table() -> None:
    assert engine_tables(frame.build([base(), record()])) == []


def test_an_accuracy_is_told_once_whatever_the_engines(frames: Frames) -> None:
    assert len(frames.groups()) == 2
    (told,) = frames.accuracies()
    assert frames.by_group[told][0]["engine"] == "eager"
    assert {group for band in budgets(frames) for row in band.cells.values() for group in row} == {
        told
    }
