"""Rows and their tables, by hand: every field comes from its own place in the record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_report import SAMPLES, metric, vit, write
from test_report import synthetic as records

from bench.records.outcomes import sample_scores
from bench.records.record import (
    Accuracy,
    Cell,
    Cost,
    Generation,
    Latency,
    Macs,
    Memory,
    Params,
    Record,
    Speedup,
    Stage,
)
from bench.report import build, tables
from bench.report.data import frame, makers, stats
from bench.report.data.budgets import budgets
from bench.report.data.names import budget, series
from bench.report.data.rows import MIB, cell_row, latency_rows, token_rows
from bench.report.figures import breakeven, drawing, forest
from bench.report.headlines import headline
from bench.report.page import page_data
from bench.report.tables import spreadsheet
from bench.report.tables.across import across_tables
from bench.report.tables.answers import answer_table
from bench.report.tables.choices import choices_table
from bench.report.tables.comparison import cost_table, main_table
from bench.report.tables.table import Column, Table
from bench.report.tables.timings import timing_tables

MACS = Macs(6 * 10**9, 3 * 10**8, 61 * 10**8, 15 * 10**9, "one image")  # a bound of 2.5×
FIRST = Latency(
    1, "float32", "sdpa", "cpu", 2, [4.0, 5.0], [8.0, 9.0], 4.5, 5.5, 6.5, 210.0,
    Speedup(2.0, (1.75, 2.25)), Speedup(1.5, (1.25, 1.625), "eager"), 0.125, "plain", 0.375,
)  # fmt: skip
SECOND = Latency(
    8, "float32", "sdpa", "cpu", 2, [20.0, 30.0], [50.0, 51.0], 25.0, 35.0, 45.0, 310.0,
    Speedup(0.5, (0.375, 0.625)), Speedup(0.25, (0.125, 0.3125), "sdpa"), 0.25, "mask", 0.5,
)  # fmt: skip
STAGES = [
    Stage(name, [1.0], [2.0], ms, Speedup(speed, (speed - 0.125, speed + 0.25)))
    for name, ms, speed in (
        ("vision", 1.5, 1.25), ("prefill", 2.5, 1.5), ("ttft", 3.5, 1.75), ("decode", 4.5, 2.0),
        ("end_to_end", 5.5, 2.25),
    )
]  # fmt: skip
STAGE_MACS = {"vision": 1, "projector": 2, "prefill": 3, "decode": 4}
ANSWER = Generation(
    8,
    {name: n * 10**6 for name, n in STAGE_MACS.items()},
    {name: n * 10**7 for name, n in STAGE_MACS.items()},
    5 * MIB,
    9 * MIB,
    STAGES,
)


def base() -> Record:
    """The unreduced model, as fast as its twin."""
    alike = Speedup(1.0, (0.95, 1.03))
    latency = [replace(entry, speedup=alike) for entry in (FIRST, SECOND)]
    stages = [replace(stage, speedup=alike) for stage in STAGES]
    return record("none", 320, latency=latency, generation=replace(ANSWER, stages=stages))


def record(method: str = "tome", hits: int = 300, **cost: Any) -> Record:
    """One cell all of whose numbers differ."""
    outcomes = [1] * hits + [0] * (SAMPLES - hits)
    parts: dict[str, Any] = {
        "macs": MACS,
        "params": Params(5_000_000, 250_000),
        "tokens": {"vision": [(10, 8), (8, 5)]},
        "latency": [FIRST, SECOND],
        "memory": Memory(64 * MIB, 16 * MIB, 4, "VmHWM", 96 * MIB, 8 * MIB, 32 * MIB),
        "generation": ANSWER,
    }
    params = {} if method == "none" else {"r": 8}
    cell = Cell("s", "model", "task", method, params, method, "cpu", baseline=method == "none")
    return Record(
        key=method.ljust(64, "0"),
        status="ok",
        reason=None,
        cell=cell,
        accuracy=Accuracy(
            "accuracy", {"accuracy": metric(np.array(outcomes))}, {"correct": outcomes}
        ),
        cost=Cost(**(parts | cost)),
        provenance={},
        env={"machine": "box"},
        command="",
        created="2026-01-01",
        seconds=1.0,
    )


def shown(table: Table, method: str = "tome") -> dict[str, str]:
    """What a table shows of a method, by header; a repeated header has its number behind it."""
    (place,) = [i for i, row in enumerate(table.rows) if row["method"] == method]
    result: dict[str, str] = {}
    for column, text in zip(table.columns, table.texts[place], strict=True):
        same = sum(name.startswith(column.header) for name in result)
        result[f"{column.header} {same + 1}" if column.header in result else column.header] = text
    return result


def bold(table: Table, header: str) -> list[str]:
    """The methods that are best in a column."""
    (at,) = [i for i, column in enumerate(table.columns) if column.header == header]
    return [table.rows[i]["method"] for i, place in table.places[at].items() if place == 1]


def test_a_cells_row() -> None:
    row = cell_row(record(), "group", {})
    expected = {
        "gmacs": 6.0,
        "gmacs_unreduced": 15.0,
        "gmacs_pct_of_unreduced": 40.0,
        "reduction_gmacs": 0.3,
        "reduction_pct_of_macs": 5.0,
        "closed_form_gmacs": 6.1,
        "mac_bound_x": 2.5,
        "params_m": 5.0,
        "params_added_m": 0.25,
        "peak_mib": 64.0,
        "peak_mib_unreduced": 96.0,
        "peak_batch": 4,
        "setting": "r=8",
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["older"] is True  # it does not tell which code measured it


def test_timings_rows() -> None:
    first, second = latency_rows(record())
    common = {"condition": "cpu · float32 · sdpa · 2 threads", "device": "cpu", "dtype": "float32"}
    common |= {"backend": "sdpa", "engine": "eager", "threads": 2, "key": f"box/{record().key}"}
    common |= {"disturbed": False, "disturbance": None}
    assert first == common | {
        "batch": 1, "p50_ms": 4.5, "p95_ms": 5.5, "p99_ms": 6.5, "throughput_per_s": 210.0,
        "speedup_x": 2.0, "speedup_low_x": 1.75, "speedup_high_x": 2.25,
        "fastest_x": 1.5, "fastest_low_x": 1.25, "fastest_high_x": 1.625,
        "fastest_backend": "eager", "bound_share_pct": 80.0, "reduction_share_pct": 12.5,
        "utilisation_pct": 37.5, "attention_path": "plain",
    }  # fmt: skip
    assert second == common | {
        "batch": 8, "p50_ms": 25.0, "p95_ms": 35.0, "p99_ms": 45.0, "throughput_per_s": 310.0,
        "speedup_x": 0.5, "speedup_low_x": 0.375, "speedup_high_x": 0.625,
        "fastest_x": 0.25, "fastest_low_x": 0.125, "fastest_high_x": 0.3125,
        "fastest_backend": "sdpa", "bound_share_pct": 20.0, "reduction_share_pct": 25.0,
        "utilisation_pct": 50.0, "attention_path": "mask",
    }  # fmt: skip


def test_token_rows() -> None:
    rows = [(row["tower"], row["layer"], row["tokens"]) for row in token_rows(record())]
    assert rows == [("vision", 0, 10), ("vision", 1, 8), ("vision", 2, 5)]


def test_the_main_table_shows_each_number_under_its_head() -> None:
    frames = frame.build([base(), record()])
    row = shown(main_table(frames, frames.groups()[0]))
    assert list(row)[3:5] == ["accuracy %", "Δ to none"]  # other tests are about the second
    assert row["accuracy %"] == "75.0 ±4.2"  # 196 √(0.75 · 0.25 / 400)
    assert {name: row[name] for name in list(row)[5:]} == {
        "% of unreduced": "40.0",
        "speed-up, b8": "0.50× [0.38, 0.62]",
    }
    costs = shown(cost_table(frames, frames.groups()[0]))
    assert {name: costs[name] for name in list(costs)[3:]} == {
        "GMACs": "6.00",
        "% of unreduced": "40.0",
        "% reducing": "5.00",
        "Params M": "5.00",
        "peak MiB, b4": "64",
        "p50 ms, b1": "4.50",
        "p50 ms, b8": "25.0",
        "per s, b8": "310",
        "speed-up, b1": "2.00× [1.75, 2.25]",
        "speed-up, b8": "0.50× [0.38, 0.62]",
        "of MAC bound %, b1": "80",
        "of MAC bound %, b8": "20",
    }


def test_timing_tables_show_each_number_under_its_head() -> None:
    frames = frame.build([base(), record()])
    one, eight = timing_tables(frames, frames.groups()[0])
    assert shown(one) == {
        "MACs left": "35–45 %", "Method": "tome", "Setting": "r=8", "p50 ms": "4.50",
        "p95 ms": "5.50", "p99 ms": "6.50", "per s": "210.0", "speed-up": "2.00× [1.75, 2.25]",
        "of MAC bound %": "80", "vs fastest (eager)": "1.50× [1.25, 1.62]", "reducing %": "12.5",
        "of peak %": "37.5", "attention": "plain",
    }  # fmt: skip
    assert shown(eight)["speed-up"] == "0.50× [0.38, 0.62]"
    assert shown(eight)["vs fastest (sdpa)"] == "0.25× [0.12, 0.31]"
    assert eight.caption.startswith("Batch 8 · cpu · float32 · sdpa · 2 threads")


def test_an_answers_table_shows_each_number_under_its_head() -> None:
    frames = frame.build([base(), record()])
    table = answer_table(frames, frames.groups()[0])
    assert table
    row = shown(table)
    assert list(row.values())[3:8] == ["1.00", "2.00", "3.00", "4.00", "5.000"]
    assert list(row.values())[8:] == [
        "1.50", "1.25× [1.12, 1.50]", "2.50", "1.50× [1.38, 1.75]", "3.50", "1.75× [1.62, 2.00]",
        "4.50", "2.00× [1.88, 2.25]", "5.50", "2.25× [2.12, 2.50]",
    ]  # fmt: skip
    (csv,) = [row for row in table.rows if row["method"] == "tome"]
    assert (csv["kv_mib"], csv["kv_mib_unreduced"]) == (5.0, 9.0)
    assert (csv["vision_mmacs"], csv["vision_mmacs_unreduced"]) == (1.0, 10.0)


def rivals() -> list[Record]:
    """Two methods in one band: the one is slower and more accurate, the other faster."""
    slower = [
        replace(
            entry,
            p50_ms=2 * entry.p50_ms,
            p95_ms=2 * entry.p95_ms,
            p99_ms=2 * entry.p99_ms,
            throughput_per_s=entry.throughput_per_s / 2,
            speedup=Speedup(entry.speedup.median / 2, entry.speedup.ci95),
        )
        for entry in (FIRST, SECOND)
    ]
    memory = Memory(32 * MIB, 16 * MIB, 4, "VmHWM")
    return [
        base(),
        record("tome", 280),
        record("evit", 310, latency=slower, memory=memory),
    ]


def test_more_is_better_of_speed_and_less_of_time_and_memory() -> None:
    frames = frame.build(rivals())
    group = frames.groups()[0]
    main = main_table(frames, group)
    costs = cost_table(frames, group)
    assert bold(main, "accuracy %") == bold(costs, "peak MiB, b4") == ["evit"]
    for head in ("p50 ms, b1", "p50 ms, b8", "per s, b8", "speed-up, b1", "of MAC bound %, b8"):
        assert bold(costs, head) == ["tome"], head
    for table in timing_tables(frames, group):
        for head in ("p50 ms", "p95 ms", "p99 ms", "per s", "speed-up", "of MAC bound %"):
            assert bold(table, head) == ["tome"], head


def test_the_baseline_competes_with_nobody() -> None:
    column = Column("x", "x", digits=0, better=1)
    rows = [{"x": x, "band": "", "is_baseline": x == 9.0} for x in (9.0, 3.0, 2.0, 1.0)]
    assert Table("t", "", [column], rows).places[0] == {1: 1, 2: 2}


def test_what_a_paired_test_cannot_tell_from_the_best_shares_its_place() -> None:
    """Of 310 hits 30 more than another are a lead, and 2 more are none."""
    close = record("pitome", 308, latency=[])
    frames = frame.build([*rivals(), close])
    group = frames.groups()[0]
    rows = {row["method"]: row["among_best"] for row in frames.by_group[group]}
    assert rows == {"none": None, "evit": True, "pitome": True, "tome": False}
    assert bold(main_table(frames, group), "accuracy %") == ["evit", "pitome"]
    (across,) = across_tables(frames)
    assert {across.rows[i]["method"] for i in across.places[2]} == {"evit", "pitome"}
    text = headline(frames, group)
    assert text == (
        "At 35–45 % of the MACs 2 of 3 settings share the lead: **evit r=8** and **pitome "
        "r=8** (accuracy 77.5 to 77.0 %; none 80.0); the fastest of them is **evit r=8**, measured "
        "speed-up 0.25× at batch 8 (MAC bound 2.50×)."
    )
    alone = frame.build([base(), record("evit", 310), close])
    assert bold(main_table(alone, alone.groups()[0]), "accuracy %") == []  # equals have no winner


def test_the_headline_names_the_most_accurate_near_half_the_macs() -> None:
    far = replace(MACS, total=2 * 10**9)
    others = [record("pitome", 319, macs=far), record("topk", 318, macs=far)]
    frames = frame.build([*rivals(), *others])
    text = headline(frames, frames.groups()[0])
    assert text == (
        "At 35–45 % of the MACs **evit r=8** is the most accurate of 2 settings: accuracy 77.5 % "
        "(−2.5 to none), measured speed-up 0.25× at batch 8 (MAC bound 2.50×)."
    )


def test_short_names_head_a_report() -> None:
    names = {"model": "My ViT", "task": "ImageNet"}
    cells = [replace(r, cell=replace(r.cell, names=names)) for r in rivals()]
    frames = frame.build([*cells[:2], rivals()[2]])
    (group,) = frames.groups()
    assert frames.title(group) == "My ViT · ImageNet"
    assert frames.notes == ("My ViT: model", "ImageNet: task")
    panels, shown, _ = page_data.cells(frames)
    assert panels[0]["title"] == "My ViT · ImageNet"
    assert {(cell["model"], cell["task"]) for cell in shown} == {("My ViT", "ImageNet")}
    assert frame.build(rivals()).title(group) == "model · task"


def test_milliseconds_above_a_figure_are_those_of_the_unreduced_model() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.set_xlim(0.5, 4)
    # At a speed-up of 1.25 the unreduced model's twin took 8 ms: 10 ms unreduced.
    drawing._latency_axis(ax, [{"method": "none", "p50_ms": 8.0, "speedup_x": 1.25}])
    (above,) = ax.child_axes
    formatter = above.xaxis.get_major_formatter()
    assert [formatter(x, 0) for x in (1.0, 2.0, 4.0)] == ["10", "5", "2.5"]


def test_a_map_hatches_what_is_slower() -> None:
    places = {(1, 224): 0.8, (8, 224): 1.2, (1, 384): 1.1, (8, 384): 1.5}
    figure = breakeven.draw([("a method", places)])
    ax = figure.axes[0]
    hatched = [patch.get_xy() for patch in ax.patches if patch.get_hatch()]
    assert hatched == [(0, 1)]  # batch 1 stands left, 224 px below
    values = [float(text.get_text()) for text in ax.texts]
    assert values == [1.1, 1.5, 0.8, 1.2]


def test_a_map_takes_the_setting_nearest_to_the_middle_of_its_band() -> None:
    near, far = Speedup(1.25, (1.2, 1.3)), Speedup(3.0, (2.9, 3.1))
    cells = []
    for size in (224, 384):
        for params, total, speedup in (({"r": 8}, 61, near), ({"r": 9}, 64, far)):
            macs = replace(MACS, total=total * 10**8, baseline_total=10**10)
            timed = [replace(entry, speedup=speedup) for entry in (FIRST, SECOND)]
            one = record(macs=macs, latency=timed)
            cell = replace(one.cell, model=f"vit_{size}", params=params)
            cells.append(replace(one, key=f"{size}{total}".ljust(64, "0"), cell=cell))
    ((name, places),) = breakeven.maps(frame.build(cells))
    assert str(name) == "vit_* · tome, 55–65 % of MACs"
    assert places == {(batch, size): 1.25 for batch in (1, 8) for size in (224, 384)}


@pytest.mark.parametrize("hits", [(300, 310), (310, 300)])
def test_tasks_are_compared_by_the_setting_nearest_to_the_middle_of_a_band(
    hits: tuple[int, int],
) -> None:
    cells = [base()]
    for params, total, right in zip(({"r": 8}, {"r": 9}), (61, 64), hits, strict=True):
        one = record(hits=right, macs=replace(MACS, total=total * 10**8, baseline_total=10**10))
        cell = replace(one.cell, params=params)
        cells.append(replace(one, key=f"{total}".ljust(64, "0"), cell=cell))
    (budget,) = budgets(frame.build(cells))
    ((chosen,),) = [cells.values() for cells in budget.cells.values()]
    assert (budget.name, chosen["setting"]) == ("55–65 %", "r=8")


def test_the_page_holds_the_timings_of_each_batch() -> None:
    frames = frame.build([base(), record()])
    _, cells, _ = page_data.cells(frames)
    (cell,) = [cell for cell in cells if cell["method"] == "tome"]
    assert cell["speeds"] == {
        "1": [4.5, 2.0, 1.75, 2.25, 0, 0],
        "8": [25.0, 0.5, 0.375, 0.625, 0, 0],
    }
    assert (cell["tokens"], cell["peak_mib"], cell["gmacs_pct_of_unreduced"]) == (6.5, 64.0, 40.0)


def exact_ends(won: int, lost: int, n: int) -> tuple[float, float]:
    """The interval of a bootstrap of hits, from the distribution of the sum, step by step."""
    steps = np.array([lost, n - won - lost, won]) / n
    chances: Sequence[float] = [1.0]
    for _ in range(n):
        chances = np.convolve(chances, steps)
    low, high = np.searchsorted(np.cumsum(chances), [0.025, 0.975])
    return (low - n) / n, (high - n) / n


def test_a_paired_difference_by_hand() -> None:
    """Of 40 samples ours has 6 that theirs misses, and misses 1 that theirs has."""
    ours, theirs = np.ones(40), np.ones(40)
    theirs[:6], ours[6] = 0, 0
    result = stats.paired_difference(ours, theirs)
    assert result.value == pytest.approx(5 / 40) and result.n == 40
    assert result.p == pytest.approx(2 * (1 + 7) / 2**7)  # 0 or 1 of 7 coins, either way
    assert (result.low, result.high) == pytest.approx(exact_ends(7, 2, 42))
    other = stats.paired_difference(theirs, ours)
    assert (other.value, other.low, other.high) == pytest.approx(
        (-result.value, -result.high, -result.low)
    )


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])


def test_scores_count_ranks_from_zero() -> None:
    outcomes = {"rank": [0, 1, 4, 5], "rank_i2t": [0, 9, 10, 3]}
    assert sample_scores("top1", outcomes) == pytest.approx([1, 0, 0, 0])
    assert sample_scores("top5", outcomes) == pytest.approx([1, 1, 1, 0])
    assert sample_scores("i2t_r10", outcomes) == pytest.approx([1, 1, 0, 1])
    assert sample_scores("t2i_r1", outcomes) is None


def test_the_synthetic_records_are_told_apart() -> None:
    """The other tests compare printed numbers with a record's: equal ones would prove nothing."""
    for entries in zip(*(r.cost.latency for r in vit(records())[1:]), strict=True):
        assert len({entry.speedup.median for entry in entries}) == len(entries)


NEW_TABLE = """
from bench.report.data.makers import makes
from bench.report.tables.table import Column, Table, words


@makes("table", 65, fold="Memory alone")
def memory_table(frames, group):
    columns = [words("Method", "method"), Column("peak MiB", "peak_mib", digits=0)]
    return Table(f"{group}--memory", "Peak memory.", columns, frames.by_group[group])
"""


def test_a_new_table_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "memory_alone.py").write_text(NEW_TABLE)
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path / "new")])
    root = write(rivals(), tmp_path / "r")
    text = build([root], tmp_path / "out", formats=["csv", "latex", "markdown"]).read_text()
    name = "bench.report.tables.memory_alone"
    del makers._MAKERS[name, "memory_table"], sys.modules[name]
    order = [text.index(part) for part in ("against each other", "Memory alone", "Every accuracy")]
    assert order == sorted(order) and "| tome | 64 |" in text
    (csv, tex) = sorted((tmp_path / "out/tables").glob("*--memory.*"))
    assert "peak_mib" in csv.read_text() and "tome & 64" in tex.read_text()


def test_cells_meet_at_the_share_of_the_macs_that_they_were_solved_for() -> None:
    def cell(method: str, share: int, budget: str | None) -> Record:
        one = record(method, macs=replace(MACS, total=share * 15 * 10**7))
        return replace(one, provenance={"budget": budget} if budget else {})

    cells = [
        base(),
        cell("tome", 48, "50% gmacs"),
        cell("evit", 54, "50% gmacs"),  # as near as it comes
        cell("topk", 46, None),
        cell("pool", 34, "33% gmacs"),
        cell("ats", 62, None),
        cell("tofu", 61, "40% tokens"),  # no share of the MACs
    ]
    frames = frame.build(cells)
    rows = {row["method"]: row["band"] for row in frames.by_group[frames.groups()[0]]}
    near = {"tome": "50 %", "evit": "50 %", "topk": "50 %", "pool": "33 %"}
    assert rows == {"none": "none", **near, "ats": "55–65 %", "tofu": "55–65 %"}
    alone = frame.build([base(), cell("topk", 46, None), cell("evit", 54, None)])
    rows = {row["method"]: row["band"] for row in alone.by_group[alone.groups()[0]]}
    assert rows == {"none": "none", "topk": "45–55 %", "evit": "45–55 %"}


def test_a_series_is_a_method_with_what_is_no_budget_in_words() -> None:
    assert series("tome", {"r": 8, "layers": [1, 2]}) == "tome"
    assert series("crossget", {"r": 8, "guided_matching": False, "guided_ensemble": False}) == (
        "crossget, unguided"
    )
    assert series("crossget", {"guided_matching": False}) == "crossget, no guided matching"
    assert series("prumerge", {"keep_rate": 0.5, "plus": True, "k_neighbours": 3}) == (
        "prumerge, plus, k neighbours 3"
    )
    one = {"keep_rate": {"language": 0.5}, "layers": {"language": [2]}}
    assert series("random", one) == "random, language"
    assert budget(one) == "keep_rate=0.5, layers=2"
    assert series("tome", {"r": {"vision": 8, "text": 4}}) == "tome"
    assert budget({"r": {"vision": 8, "text": 4}}, "seed 1") == "r=vision:8+text:4, seed 1"
    cells = [base(), record("crossget"), record("crossget")]
    cells[2] = replace(
        cells[2],
        key="c" * 64,
        cell=replace(
            cells[2].cell, params={"r": 8, "guided_matching": False, "guided_ensemble": False}
        ),
    )
    assert frame.build(cells).series == ("crossget", "crossget, unguided", "none")


def test_choices_name_the_tied_and_the_fastest_of_them() -> None:
    close = record("pitome", 308, latency=[replace(SECOND, speedup=Speedup(0.75, (0.7, 0.8)))])
    frames = frame.build([*rivals(), close])
    table = choices_table(frames)
    assert table is not None
    (row,) = table.rows
    assert (row["leaders"], row["settings"]) == ("evit r=8, pitome r=8", 3)
    assert (row["fastest"], row["speedup_x"]) == ("pitome r=8", 0.75)
    shaky = replace(close, cost=replace(close.cost, latency=[replace(SECOND, disturbed=True)]))
    (row,) = choices_table(frame.build([*rivals(), shaky])).rows  # type: ignore[union-attr]
    assert row["fastest"] == "evit r=8"
    assert choices_table(frame.build([base(), record()])) is None


def test_a_forest_has_a_panel_for_each_budget_with_one_setting_a_method() -> None:
    frames = frame.build([*rivals(), record("pitome", 308, latency=[])])
    (group,) = frames.groups()
    (plot,) = forest.forest_plots(frames, group)
    figure = plot.draw()
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["tome", "pitome", "evit"]
    assert list(forest.forest_plots(frame.build(rivals()), group)) == []  # two methods
    twice = record("tome", 250, macs=MACS)
    twice = replace(twice, key="t" * 64, cell=replace(twice.cell, params={"r": 9}))
    swept = frame.build([*rivals(), record("pitome", 308), twice])
    assert list(forest.forest_plots(swept, group)) == []


def test_a_csv_file_is_what_pandas_writes() -> None:
    import pandas as pd

    rows: list[dict[str, Any]] = [
        {"name": "=1+1", "n": 8, "x": 1e-7, "mixed": 3, "some": None, "flag": True, "-y": "a,b"},
        {"name": 'a "b"\nc', "n": 9, "x": -2.5, "mixed": 0.1, "some": 5, "flag": None},
        {"name": "-3", "n": 10, "x": float("nan"), "mixed": 1e22, "some": 7, "late": [1, 2]},
    ]
    columns = pd.DataFrame(rows, dtype=object).rename(columns=spreadsheet.harmless)
    wanted = columns.map(spreadsheet.harmless).to_csv(index=False, lineterminator="\n")
    assert spreadsheet.written(rows) == wanted
    assert '\'=1+1,8,1e-07,3.0,,True,"a,b",\n' in wanted
