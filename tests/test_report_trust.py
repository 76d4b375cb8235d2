"""What a report says of its own numbers: disturbed, within the A/A spread, mixed, older."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import test_report_tuned
from test_report import synthetic, tables_in, vit, write
from test_report_plots import resolutions

from bench.records import sources
from bench.records.record import Generation, Latency, Record, Speedup, Stage
from bench.records.sources import family_hash, measurement_hash
from bench.report import build
from bench.report.content import content
from bench.report.data import disturbed, equal, frame, mixture
from bench.report.data.timings import is_noise
from bench.report.figures import breakeven, plots, style
from bench.report.headlines import headline, where
from bench.report.tables.compare import compare
from bench.report.tables.comparison import main_table
from bench.report.tables.latex import latex
from bench.report.tables.provenance import machines
from bench.report.tables.table import Column, Table
from recipes.ablation import sections

Change = Callable[[Latency], Latency]
OLDER = "records were measured by an earlier version of the measuring code: run the suite again"


@pytest.fixture
def records() -> list[Record]:
    """The cells of one model, measured by the code at hand."""
    code = {"measurement_sha256": measurement_hash()}
    code |= {"family": "timm", "family_sha256": family_hash("timm")}
    return [replace(r, provenance=r.provenance | code) for r in vit(synthetic())]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)
    monkeypatch.setattr("bench.report.figures.plots.save_pdf", lambda plot, folder: None)


def changed(records: Iterable[Record], label: str, batch: int, change: Change) -> list[Record]:
    """The records with one timing of one cell changed."""
    result = []
    for record in records:
        latency = [
            change(e) if (record.cell.label, e.batch) == (label, batch) else e
            for e in record.cost.latency
        ]
        result.append(replace(record, cost=replace(record.cost, latency=latency)))
    return result


def shaken(entry: Latency) -> Latency:
    return replace(entry, disturbed=True, disturbance="3.9 of 2 processors busy")


def timed(speed: float, low: float, high: float) -> Change:
    return lambda entry: replace(entry, speedup=Speedup(speed, (low, high)))


def with_answer(record: Record, speed: float, shaky: bool) -> Record:
    stages = [
        Stage(name, [5.0], [5.0 * speed], 5.0, Speedup(speed, (speed - 0.01, speed + 0.01)))
        for name in ("vision", "prefill", "ttft", "decode", "end_to_end")
    ]
    macs = dict.fromkeys(("vision", "projector", "prefill", "decode"), 10**6)
    answer = Generation(8, macs, macs, 2**20, 2**20, stages, disturbed=shaky)
    return replace(record, cost=replace(record.cost, generation=answer))


def parts_of(records: Iterable[Record]) -> dict[str, Table]:
    """The tables of the first model and task, by the ends of their names."""
    section = content(frame.build(list(records))).groups[0]
    return {table.name.rpartition("--")[2]: table for table in section.tables}


def section_of(records: list[Record]) -> dict[str, Table]:
    """The tables of the only study, by the ends of their names."""
    (section,) = sections.sections(frame.build(records))
    return {table.name.rpartition("--")[2]: table for table in section.tables}


def lines_of(table: Table) -> dict[str, list[str]]:
    """What a table shows of each setting."""
    rows = zip(table.rows, table.texts, strict=True)
    return {f"{row['method']} {row['setting']}".strip(): line for row, line in rows}


def row_of(table: Table, label: str) -> dict[str, str]:
    """What a table shows of one setting, by header."""
    heads = [column.header for column in table.columns]
    return dict(zip(heads, lines_of(table)[label], strict=True))


# --- disturbed ----------------------------------------------------------------------------------


def test_a_disturbed_timing_is_marked_behind_its_times_and_nowhere_else(
    records: list[Record],
) -> None:
    parts = parts_of(changed(records, "tome r=13", 32, shaken))
    row = row_of(parts["main"], "tome r=13")
    assert {head for head, text in row.items() if text.endswith(" ◊")} == {"speed-up, b32"}
    row = row_of(parts["costs"], "tome r=13")
    marked = {head for head, text in row.items() if text.endswith(" ◊")}
    assert marked == {"p50 ms, b32", "per s, b32", "speed-up, b32", "of MAC bound %, b32"}
    others = [line for line in parts["main"].texts if "◊" in "".join(line)]
    assert len(others) == 1  # the row itself
    by_batch = {str(batch): parts[f"timing-b{batch}"] for batch in (1, 8, 32)}
    row = row_of(by_batch["32"], "tome r=13")
    marked = {head for head, text in row.items() if text.endswith(" ◊")}
    assert marked == {"p50 ms", "p95 ms", "p99 ms", "per s", "speed-up", "of MAC bound %"}
    # The legend stands where a mark does.
    legend = "◊: disturbed by other load"
    assert legend in parts["main"].caption and legend in by_batch["32"].caption
    for table in (by_batch["1"], by_batch["8"], parts["accuracy"]):
        assert "◊" not in table.caption + table.shown
    assert r"$\diamond$" in latex(parts["main"])


def test_a_disturbed_timing_that_the_main_table_does_not_show_needs_no_legend(
    records: list[Record],
) -> None:
    frames = frame.build(changed(records, "tome r=13", 8, shaken))
    table = main_table(frames, frames.groups()[0])
    assert "◊" not in table.caption + table.shown
    assert [row["disturbed_batch8"] for row in table.rows].count(True) == 1


def test_a_disturbed_answer_is_marked_in_all_its_stages(records: list[Record]) -> None:
    cells = [with_answer(r, 1.5, r.cell.label == "tome r=8") for r in records[:14]]
    table = parts_of(cells)["answers"]
    shown = lines_of(table)
    counts = {label: sum(text.endswith(" ◊") for text in line) for label, line in shown.items()}
    assert counts["tome r=8"] == 10  # five stages, each a time and a speed-up
    assert sum(counts.values()) == 10 and "◊: disturbed" in table.caption
    quiet = parts_of([with_answer(r, 1.5, False) for r in records[:14]])
    assert "◊" not in quiet["answers"].caption


def test_a_disturbed_seed_marks_the_speedup_of_a_setting() -> None:
    cells = test_report_tuned.everything()
    label = test_report_tuned.record(test_report_tuned.WHOLE).cell.label
    (victim,) = [r for r in cells if r.cell.label == label and r.cell.model.endswith("0.5-1")]
    shaky = changed([victim], label, 16, shaken)[0]
    cells = [shaky if r is victim else r for r in cells]
    study = section_of(cells)
    table = study["mean_recall"]
    texts = [line[-1] for line in table.texts]
    assert [text.endswith(" ◊") for text in texts].count(True) == 1
    assert "◊: disturbed" in table.caption
    study = section_of(test_report_tuned.everything())
    assert "◊" not in study["mean_recall"].caption


def test_a_disturbed_timing_is_never_the_best_nor_second() -> None:
    column = Column("ms", "ms", digits=0, better=-1).timing()
    rows = [
        {"ms": ms, "band": "", "is_baseline": False, "disturbed": ms in (1.0, 3.0)}
        for ms in (1.0, 2.0, 3.0, 4.0, 5.0)
    ]
    table = Table("t", "", [column], rows)
    assert table.places[0] == {1: 1, 3: 2}
    assert [line[0] for line in table.texts] == ["1 ◊", "2", "3 ◊", "4", "5"]
    assert re.findall(r"\*\*(.+?)\*\*", table.shown) == ["2"]


def test_bold_skips_the_disturbed_in_every_table_of_timings(records: list[Record]) -> None:
    def bold(cells: list[Record]) -> set[str]:
        shown = [
            table
            for name, table in parts_of(cells).items()
            if name.startswith(("main", "costs", "tim"))
        ]
        return {
            f"{table.name} {row['method']} {row['setting']} {table.columns[i].header}"
            for table in shown
            for i, places in enumerate(table.places)
            for at, place in places.items()
            if place == 1 and (row := table.rows[at])
        }

    label = "tome r=13"
    fast = changed(records, label, 32, lambda e: replace(e, p50_ms=1.0))
    fast = changed(fast, label, 32, timed(99.0, 98.0, 99.5))
    winners = {name for name in bold(fast) if label in name and "ms" in name}
    assert any("--costs" in name for name in winners)
    assert any("--timing-b32" in name for name in winners)
    shaky = bold(changed(fast, label, 32, shaken))
    assert not {n for n in shaky if label in n and ("b32" in n)}
    assert {n for n in shaky if "p50 ms, b32" in n}  # somebody else is the best now


def test_the_headline_rests_on_no_disturbed_timing(records: list[Record]) -> None:
    frames = frame.build(records)
    (group,) = frames.groups()
    tied = [row["label"] for row in frames.by_group[group] if row["among_best"]]
    tied = [label for label in tied if label.endswith("r=16")]  # those near half the MACs
    speeds = {
        record.cell.label: {entry.batch: entry.speedup.median for entry in record.cost.latency}
        for record in records
        if record.cell.label in tied
    }
    best, other = sorted(tied, key=lambda label: -speeds[label][32])
    plain = headline(frames, group)
    assert "2 of 7 settings share the lead: " in plain
    assert f"**{best}**" in plain and f"**{other}**" in plain
    assert f"the fastest of them is **{best}**, measured speed-up {speeds[best][32]:.2f}×" in plain
    shaky = changed(records, best, 32, shaken)
    text = headline(frame.build(shaky), group)
    assert f"the fastest of them is **{other}**" in text
    assert f"measured speed-up {speeds[other][32]:.2f}× at batch 32" in text
    shaky = changed(shaky, other, 32, shaken)
    text = headline(frame.build(shaky), group)
    most = max(by_batch[8] for by_batch in speeds.values())
    assert f"measured speed-up {most:.2f}× at batch 8" in text and "batch 32" not in text
    for label in tied:
        for batch in (1, 8):
            shaky = changed(shaky, label, batch, shaken)
    text = headline(frame.build(shaky), group)
    assert "×" not in text and "speed-up not told: disturbed by other load" in text
    assert f"**{best}**" in text  # the accuracy is as good as before


def test_the_breakeven_map_has_no_disturbed_place() -> None:
    records = resolutions()
    name, places = breakeven.maps(frame.build(records))[0]
    assert (32, 384) in places
    shaky = [
        r
        for one in records
        for r in (
            changed([one], one.cell.label, 32, shaken) if one.cell.model.endswith("384") else [one]
        )
    ]
    frames = frame.build(shaky)
    maps = dict(breakeven.maps(frames))
    assert maps[name].keys() == places.keys() - {(32, 384)}
    captions = {p.name: p.caption for p in content(frames).overview.plots}
    assert disturbed.LEFT_OUT in captions["break-even"]
    captions = {p.name: p.caption for p in content(frame.build(records)).overview.plots}
    assert disturbed.LEFT_OUT not in captions["break-even"]
    breakeven.draw(list(maps.items()))  # a hole in the grid is no error


def test_figures_leave_disturbed_timings_out_and_say_so(records: list[Record]) -> None:
    def drawn(cells: list[Record]) -> dict[str, tuple[str, int]]:
        """Each figure's caption, and how many points of tome it shows at batch 32."""
        frames = frame.build(cells)
        (group,) = frames.groups()
        result = {}
        for plot in content(frames).groups[0].plots:
            with plots._drawn(plot) as figure:
                lines = figure.axes[-1].lines
                color = style.KNOWN["tome"].color
                points = [
                    len(line.get_xdata())
                    for line in lines
                    if line.get_color() == color and line.get_marker() == "s"
                    if len(line.get_xdata()) > 1
                ]
                result[plot.name.removeprefix(f"{group}--")] = plot.caption, sum(points)
        return result

    before, after = drawn(records), drawn(changed(records, "tome r=13", 32, shaken))
    for name in ("accuracy-speedup", "speedup-bound"):
        assert (before[name][1], after[name][1]) == (3, 2)
        assert "left out" not in before[name][0]
    for name in ("accuracy-speedup", "speedup-bound", "time"):
        assert after[name][0].endswith(disturbed.LEFT_OUT)
    assert after["accuracy-gmacs"] == before["accuracy-gmacs"]  # no timing in it


def test_each_report_counts_its_disturbed_timings_once(
    records: list[Record], tmp_path: Path
) -> None:
    cells = [with_answer(r, 1.5, r.cell.label == "tome r=8") for r in records]
    cells = changed(changed(cells, "tome r=13", 8, shaken), "evit keep_rate=0.5", 1, shaken)
    root = write(cells, tmp_path / "r")
    build([root], tmp_path / "o", formats=["markdown", "html", "paper"])
    note = f"3 of {22 * 3 + 22} timings were disturbed by other load: see ◊"
    for name in ("report.md", "index.html"):
        text = (tmp_path / "o" / name).read_text()
        assert text.count(note) == 1 and "stands behind a timing" in text, name
    paper = (tmp_path / "o/paper/main.tex").read_text()
    assert paper.count(note.replace("◊", r"$\diamond$")) == 1
    build([write(records, tmp_path / "q")], tmp_path / "p", formats=["markdown", "html", "paper"])
    for name in ("report.md", "index.html", "paper/main.tex"):
        text = (tmp_path / "p" / name).read_text()
        data = text.partition('id="data">')  # the page's script knows the mark
        assert not re.search(r"◊|diamond", data[0]) and "disturbed by" not in data[0]


def test_csv_and_page_say_which_timing_was_disturbed(records: list[Record], tmp_path: Path) -> None:
    root = write(changed(records, "tome r=13", 32, shaken), tmp_path / "r")
    build([root], tmp_path / "o", formats=["csv", "html"])
    tables = {path.stem.rpartition("--")[2]: path for path in (tmp_path / "o/tables").glob("*--*")}
    main = pd.read_csv(tables["main"]).set_index("label")
    assert main["disturbed_batch32"].sum() == 1 and not main["disturbed_batch8"].any()
    assert main.loc["tome r=13", "disturbed_batch32"]
    assert main.loc["tome r=13", "disturbance_batch32"] == "3.9 of 2 processors busy"
    timing = pd.read_csv(tables["timing-b32"])
    assert timing[timing["disturbed"]]["setting"].tolist() == ["r=13"]
    page = (tmp_path / "o/index.html").read_text()
    found = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert found
    speeds = {
        (cell["method"], cell["setting"], batch): values
        for cell in json.loads(found[1])["cells"]
        for batch, values in cell["speeds"].items()
    }
    assert [key for key, values in speeds.items() if values[5]] == [("tome", "r=13", "32")]
    assert {key[0] for key, values in speeds.items() if values[4]} == {"none"}  # within noise
    assert all(len(values) == 6 for values in speeds.values())


def test_compare_judges_no_disturbed_timing(records: list[Record], tmp_path: Path) -> None:
    def faster(entry: Latency) -> Latency:
        ratio = replace(entry.speedup, median=2 * entry.speedup.median)
        return replace(entry, samples_ms=[ms / 2 for ms in entry.samples_ms], speedup=ratio)

    write(records, tmp_path / "a")
    for name, change in (("b", faster), ("c", lambda entry: shaken(faster(entry)))):
        write(changed(records, "tome r=13", 32, change), tmp_path / name)
    quiet = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "## Better: 1" in quiet and "Not judged" not in quiet
    for pair in ("ac", "cb"):
        text = compare(*(str(tmp_path / name) for name in pair))
        assert "## Better: nothing" in text
    text = compare(str(tmp_path / "a"), str(tmp_path / "c"))
    (row,) = [r for t in tables_in(text.partition("## Not judged: 1")[2]) for r in t]
    assert (row["Quantity"], row["Why"]) == ("speed-up, b32", "disturbed by other load")


# --- two equal things ---------------------------------------------------------------------------


def pairs(records: list[Record], ratios: Iterable[tuple[float, float, float]]) -> list[Record]:
    """The unreduced model of several models, timed against its twin at batch 8."""
    base = records[0]
    return [
        changed(
            [replace(base, key=f"{i:064d}", cell=replace(base.cell, model=f"model-{i}"))],
            "none",
            8,
            timed(*ratio),
        )[0]
        for i, ratio in enumerate(ratios)
    ]


KEY = ("box", "quick", "batch 8")


def test_the_spread_of_equal_things_is_that_of_the_unreduced_models(records: list[Record]) -> None:
    few = [(0.97, 0.95, 0.99), (1.01, 0.98, 1.02), (1.02, 1.01, 1.03)]
    spread = equal.spreads(pairs(records, few))[KEY]
    assert len(spread.ratios) == 3 and spread.median == 1.01
    assert spread.half == pytest.approx(0.03)  # the farthest, which is below 1
    assert spread.holding == 1
    # Of 40 ratios 95 % are 38: the two farthest are outside.
    many = [(1 + i / 1000, 0.9, 1.1) for i in range(1, 41)]
    spread = equal.spreads(pairs(records, many))[KEY]
    assert spread.half == pytest.approx(0.038) and spread.holding == 40
    assert spread.median == pytest.approx(1.0205)
    # A single one: the far end of its interval.
    assert equal.spreads(pairs(records, few[:1]))[KEY].half == pytest.approx(0.05)


def test_the_spread_knows_its_suite_and_machine_and_no_disturbed_timing(
    records: list[Record],
) -> None:
    cells = pairs(records, [(0.97, 0.9, 1.1), (1.01, 0.9, 1.1), (1.02, 0.9, 1.1)])
    cells[0] = changed([cells[0]], "none", 8, shaken)[0]
    cells.append(replace(cells[1], key="9" * 64, cell=replace(cells[1].cell, suite="other")))
    cells.append(replace(cells[2], env={"machine": "far"}))
    spreads = equal.spreads(cells)
    assert [ratio.median for ratio in spreads[KEY].ratios] == [1.01, 1.02]
    assert spreads[KEY].half == pytest.approx(0.02)
    assert [ratio.median for ratio in spreads["box", "other", "batch 8"].ratios] == [1.01]
    assert [ratio.median for ratio in spreads["far", "quick", "batch 8"].ratios] == [1.02]
    assert [key for key in spreads if key[:2] == KEY[:2]] == [
        ("box", "quick", f"batch {batch}") for batch in (1, 8, 32)
    ]


def test_what_a_timing_carries_serves_where_the_unreduced_model_is_not_there(
    records: list[Record],
) -> None:
    carried = Speedup(1.04, (0.99, 1.07), blocks=(1.03, 1.05))
    cells = changed(records[1:3], "random r=8", 8, lambda e: replace(e, equal=carried))
    cells = changed(cells, "random r=13", 8, lambda e: replace(e, equal=carried))
    assert equal.spreads(cells).keys() == {KEY}
    assert len(equal.spreads(cells)[KEY].ratios) == 1  # two cells carry the same
    assert equal.spreads(cells)[KEY].half == pytest.approx(0.07)
    # The same measurement counts once, and not at all where it was disturbed.
    base = changed(records[:1], "none", 8, lambda e: replace(e, speedup=carried))
    assert len(equal.spreads([*base, *cells])[KEY].ratios) == 1
    assert KEY not in equal.spreads([*changed(base, "none", 8, shaken), *cells])


def test_a_speedup_within_the_spread_of_equal_things_is_noise(records: list[Record]) -> None:
    cells = changed(records, "none", 32, timed(1.06, 0.95, 1.2))  # its spread is its interval's
    cells = changed(cells, "tome r=13", 32, timed(1.15, 1.14, 1.16))
    cells = changed(cells, "tome r=16", 32, timed(1.25, 1.24, 1.26))
    cells = changed(cells, "evit keep_rate=0.5", 32, timed(0.85, 0.84, 0.86))
    parts = parts_of(cells)
    for table, head in ((parts["main"], "speed-up, b32"), (parts["timing-b32"], "speed-up")):
        assert row_of(table, "tome r=13")[head] == "1.15× [1.14, 1.16] ≈"
        assert row_of(table, "tome r=16")[head] == "1.25× [1.24, 1.26]"
        assert row_of(table, "evit keep_rate=0.5")[head] == "0.85× [0.84, 0.86] ≈"
    alone = [record for record in cells if record.cell.label == "tome r=13"]
    table = parts_of(alone)["main"]
    assert row_of(table, "tome r=13")["speed-up, b32"] == "1.15× [1.14, 1.16]"
    alone = changed(alone, "tome r=13", 32, lambda e: replace(e, equal=Speedup(1.0, (0.8, 1.1))))
    table = parts_of(alone)["main"]
    assert row_of(table, "tome r=13")["speed-up, b32"] == "1.15× [1.14, 1.16] ≈"


def test_a_headline_within_noise_says_so(records: list[Record]) -> None:
    frames = frame.build(records)
    text = headline(frames, frames.groups()[0])
    assert "within noise)" not in text
    cells = changed(records, "none", 32, timed(1.06, 0.95, 1.2))
    for row in frames.cells:
        if row["among_best"]:
            cells = changed(cells, row["label"], 32, timed(1.15, 1.14, 1.16))
    frames = frame.build(cells)
    assert "1.15× at batch 32 (MAC bound" in (text := headline(frames, frames.groups()[0]))
    assert text.endswith(", within noise).")


def test_an_answer_is_judged_by_the_stages_of_two_equal_things(records: list[Record]) -> None:
    speeds = {"none": 1.03, "tome r=8": 1.035, "tome r=13": 1.05}  # 1.03 reaches 1.04
    cells = [with_answer(r, speeds.get(r.cell.label, 2.0), False) for r in records]
    table = parts_of(cells)["answers"]
    shown = lines_of(table)
    assert sum("≈" in text for text in shown["tome r=8"]) == 5
    assert not any("≈" in text for text in shown["tome r=13"])


@pytest.mark.parametrize(
    ("ends", "within", "expected"),
    [
        ((1.1, 0.9, 1.2), None, True),
        ((1.1, 1.05, 1.2), None, False),
        ((1.1, 1.05, 1.2), 0.05, False),
        ((1.1, 1.05, 1.2), 0.11, True),
        ((0.9, 0.85, 0.95), 0.11, True),
        ((1.1, 1.0, 1.2), None, True),
        ((0.9, 0.8, 1.0), None, True),
    ],
)
def test_noise(ends: tuple[float, ...], within: float | None, expected: bool) -> None:
    assert is_noise(ends, within, 1) == expected


def test_every_report_prints_the_spread(records: list[Record], tmp_path: Path) -> None:
    few = [(0.97, 0.95, 0.99), (1.01, 0.98, 1.02), (1.02, 1.01, 1.03)]
    root = write(pairs(records, few), tmp_path / "r")
    build([root], tmp_path / "o", formats=["csv", "latex", "markdown", "html", "paper"])
    text = (tmp_path / "o/report.md").read_text().partition("## How to read")[2]
    assert "(A/A): 9 undisturbed timings, median 1.00×; 7 of their 95 % intervals hold 1" in text
    (rows,) = [table for table in tables_in(text) if "A/A timings" in table[0]]
    (row,) = [row for row in rows if row["Timing"] == "batch 8"]
    assert row == {
        "Machine": "box",
        "Suite": "quick",
        "Timing": "batch 8",
        "A/A timings": "3",
        "median": "1.010×",
        "spread": "±3.0 %",
        "interval holds 1": "1 of 3",
    }
    page = (tmp_path / "o/index.html").read_text()
    assert re.search(r"<td[^>]*>±3.0 %</td><td[^>]*>1 of 3</td>", page)
    assert "(A/A): 9 undisturbed" in page
    assert r"\input{tables/equal-things.tex}" in (tmp_path / "o/paper/main.tex").read_text()
    for file in ("tables/equal-things.tex", "paper/tables/equal-things.tex"):
        assert "1 & of 3" in (tmp_path / "o" / file).read_text()
    table = pd.read_csv(tmp_path / "o/tables/equal-things.csv").set_index("timing")
    assert table.loc["batch 8", ["n", "median_x", "holding"]].tolist() == [3, 1.01, 1]
    none = build([write(records[1:3], tmp_path / "q")], tmp_path / "p").read_text()
    assert "(A/A)" not in none and "equal-things" not in none


# --- mixed and older ----------------------------------------------------------------------------


def with_env(record: Record, **facts: Any) -> Record:
    return replace(record, env=record.env | facts)


def test_a_table_that_mixes_versions_says_which_and_how_many(records: list[Record]) -> None:
    assert mixture.remark(records) == ""
    mixed = [with_env(r, torch="2.10", timm="1.0") for r in records[:2]]
    mixed += [with_env(r, timm="1.0") for r in records[2:]]
    remark = "Versions are mixed: torch 2.9 (20 cells), 2.10 (2 cells)."
    assert mixture.remark(mixed) == remark
    mixed[5] = with_env(mixed[5], transformers="5")
    mixed[0] = replace(mixed[0], provenance={"measurement_sha256": "f" * 64})
    mixed[1] = replace(mixed[1], provenance={})
    text = mixture.remark(mixed)
    assert "transformers unknown (21 cells), 5 (1 cell)" in text and "timm" not in text
    now = measurement_hash()[:12]
    assert f"measuring code {now} (20 cells), ffffffffffff (1 cell), unknown (1 cell)." in text


def test_a_table_says_where_the_code_of_one_family_differs(records: list[Record]) -> None:
    other = {"family": "blip", "family_sha256": "e" * 64}
    mixed = [replace(records[0], provenance=records[0].provenance | other), *records[1:]]
    assert mixture.remark(mixed) == "" and mixture.is_older(mixed[0])
    other = {"family_sha256": "e" * 64}
    mixed[1] = replace(records[1], provenance=records[1].provenance | other)
    now = family_hash("timm")[:12]
    assert f"code of the family timm {now} (20 cells), eeeeeeeeeeee" in mixture.remark(mixed)
    assert mixture.older(mixed).startswith("2 of 22 records")


def test_a_table_that_mixes_hosts_of_one_name_says_so(records: list[Record]) -> None:
    mixed = [with_env(r, fingerprint="a" * 12) for r in records[:5]]
    assert mixture.remark(mixed) == ""
    mixed += records[5:]
    remark = f"2 hosts share the name box: unknown (17 cells), {'a' * 12} (5 cells)."
    assert mixture.remark(mixed) == remark
    # Two machines have two names: that is no mixture of hosts.
    apart = [with_env(records[0], fingerprint="a" * 12, machine="other"), records[1]]
    assert mixture.remark(apart) == ""


def test_every_table_of_measurements_carries_the_remark(
    records: list[Record], tmp_path: Path
) -> None:
    cells = [with_answer(r, 1.5, False) for r in records]
    cells[3] = with_env(cells[3], torch="2.10", fingerprint="a" * 12)
    parts = content(frame.build(cells))
    remark = "Versions are mixed: torch 2.9 (21 cells), 2.10 (1 cell). 2 hosts share the name box"
    tables = [table for section in (parts.groups[0], *parts.across) for table in section.tables]
    assert len(tables) == 12
    for table in tables:
        assert remark in table.caption, table.name
        assert "Versions are mixed: torch 2.9 (21 cells)" in latex(table)
    plain = content(frame.build([with_answer(r, 1.5, False) for r in records]))
    assert not any("mixed" in t.caption or "share" in t.caption for t in plain.tables)
    build([write(cells, tmp_path / "r")], tmp_path / "o", formats=["html"])
    found = re.search(r'id="data">(.*?)</script>', (tmp_path / "o/index.html").read_text(), re.S)
    assert found and remark in json.loads(found[1])["panels"][0]["mixed"]


def test_compare_says_what_its_sides_do_not_have_in_common(
    records: list[Record], tmp_path: Path
) -> None:
    write(records, tmp_path / "a")
    write([with_env(r, torch="3", fingerprint="a" * 12) for r in records], tmp_path / "b")
    text = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert "Versions are mixed: torch 2.9 (22 cells), 3 (22 cells)." in text
    assert f"2 hosts share the name box: {'a' * 12} (22 cells), unknown (22 cells)." in text
    assert "mixed" not in compare(str(tmp_path / "a"), str(tmp_path / "a"))


def test_the_tables_of_a_study_carry_the_remark() -> None:
    cells = test_report_tuned.everything()
    cells[-1] = with_env(cells[-1], torch="3")
    study = section_of(cells)
    remark = f"torch unknown ({len(cells) - 1} cells), 3 (1 cell)"
    assert len(study) > 4 and "claims" in study
    for table in study.values():
        assert remark in table.caption, table.name


def test_a_report_of_older_records_says_so_at_its_top_in_every_format(
    records: list[Record], tmp_path: Path
) -> None:
    formats = ["csv", "latex", "markdown", "html", "paper"]
    cells = [*records]
    cells[0] = replace(cells[0], provenance={"measurement_sha256": "f" * 64})
    cells[1] = replace(cells[1], provenance={})
    build([write(cells, tmp_path / "r")], out := tmp_path / "o", formats=formats)
    line = f"2 of 22 {OLDER} to renew them."
    assert (out / "report.md").read_text().splitlines()[4] == line
    page = (out / "index.html").read_text()
    assert line in page.partition("</header>")[0]
    paper = (out / "paper/main.tex").read_text()
    assert line in paper.partition(r"\begin{abstract}")[2].partition(r"\end{abstract}")[0]
    tables = [*(out / "tables").glob("*.tex")]
    assert len(tables) > 4
    assert all(path.read_text().startswith(f"% {line}\n") for path in tables)
    for name in ("main", "accuracy", "timing-b1"):
        (path,) = (out / "tables").glob(f"*--{name}.csv")
        table = pd.read_csv(path)
        labels = (table["method"] + " " + table["setting"].fillna("")).str.strip()
        assert labels[table["older"]].tolist() == ["none", "random r=8"]


def test_a_report_of_records_of_the_code_at_hand_says_nothing(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(records, tmp_path / "r")
    formats = ["latex", "markdown", "html", "paper"]
    build([root], out := tmp_path / "o", formats=formats)
    texts = [path.read_text() for path in out.rglob("*.*") if path.suffix != ".png"]
    assert len(texts) > 10 and not any(OLDER in text for text in texts)
    monkeypatch.setattr(sources, "measurement_hash", lambda: "another")
    assert f"22 of 22 {OLDER}" in build([root], out, formats=formats).read_text()


def test_machines_list_their_hosts_memory_and_caches(records: list[Record], tmp_path: Path) -> None:
    facts = {"memory_gib": 15.6, "caches": {"L1d": "48K", "L2": "2M"}}
    cells = [with_env(r, fingerprint="a" * 12, **facts) for r in records[:3]]
    cells += [with_env(r, fingerprint="b" * 12, **facts) for r in records[3:8]]
    cells += records[8:9]
    ((name, listed),) = machines(frame.build(cells))
    assert name == "box"
    told = dict(listed)
    assert told["host"] == f"{'b' * 12} (5 cells), {'a' * 12} (3 cells), unknown (1 cell)"
    assert (told["memory GiB"], told["caches"]) == ("15.6", "L1d 48K, L2 2M")
    assert not {"fingerprint", "memory_gib"} & told.keys()
    build([write(cells, tmp_path / "r")], tmp_path / "o", formats=["html"])
    page = (tmp_path / "o/index.html").read_text()
    assert f"host {'a' * 12} · memory GiB 15.6 · caches L1d 48K, L2 2M" in page
    assert "host" not in dict(machines(frame.build(records))[0][1])


def test_a_headline_says_where_methods_act_in_a_language_model(records: list[Record]) -> None:
    places = {
        "tome r=8": {"vision": [(10, 8), (8, 6)], "projector": [(6, 6)], "language": [(9, 9)]},
        "tome r=13": {"vision": [(10, 10)], "projector": [(10, 5)], "language": [(8, 8)]},
        "evit keep_rate=0.5": {
            "vision": [(10, 10)],
            "projector": [(10, 10)],
            "language": [(13, 6)],
        },
    }
    cells = [
        replace(r, cost=replace(r.cost, tokens=places[r.cell.label]))
        for r in records
        if r.cell.label in places
    ]
    frames = frame.build([*(r for r in records if r.cell.baseline), *cells])
    (group,) = frames.groups()
    text = where(frames, group)
    assert text.startswith("The most accurate by place: in the image encoder **tome r=8** (")
    assert ", ahead of the language model **tome r=13** (" in text
    assert " and inside the language model **evit keep\\_rate=0.5** (" in text.replace("_", "\\_")
    assert where(frame.build(records), frame.build(records).groups()[0]) == ""
