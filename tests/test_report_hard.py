"""Samples that a smaller image gets wrong: who is judged by what, and what is right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint
from test_report import metric, synthetic
from test_report_rows import record, shown

from bench.records.record import Accuracy, Record, Stop
from bench.report.data import frame, hard, stats
from bench.report.data.hard import LEAST
from bench.report.data.scored import Scored
from bench.report.tables.hard import hard_table
from bench.report.tables.table import MISSING

N = 40


def scored(method: str, right_at: set[int], **changes: Any) -> Record:
    """A cell that gets these samples right, of N."""
    correct = [int(i in right_at) for i in range(N)]
    made = record(method)
    known = Accuracy("accuracy", {"accuracy": metric(np.array(correct))}, {"correct": correct})
    return replace(made, accuracy=replace(known, **changes))


def rows_of(records: list[Record], **how: Any) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in frame.build(records, **how).cells}


def table_of(*records: Record) -> Any:
    frames = frame.build(list(records))
    (group,) = frames.by_group
    return hard_table(frames, group)


FULL = scored("none", set(range(30)))  # 30 to 39 are wrong for everyone and count nowhere
SMALL = scored("downsample", {*range(15), *range(35, 40)})  # hard: 15 to 29; easy: 0 to 14


def test_a_methods_hard_and_easy_samples_by_hand() -> None:
    method = scored("tome", {*range(12), *range(15, 21), *range(30, 40)})
    row = rows_of([FULL, SMALL, method])["tome"]
    assert (row["hard_n"], row["easy_n"]) == (15, 15)
    assert row["hard_value"] == pytest.approx(100 * 6 / 15)
    assert row["easy_value"] == pytest.approx(100 * 12 / 15)
    low, high = proportion_confint(6, 15, method="wilson")
    assert (row["hard_low"], row["hard_high"]) == pytest.approx((100 * low, 100 * high))
    table = table_of(FULL, SMALL, method)
    assert [line["method"] for line in table.rows] == ["tome"]  # the others are 0 and 100
    assert shown(table)["right of hard %"] == f"40.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert shown(table)["judged by downsample"] == "r=8"


def test_few_samples_are_counted_and_not_rated() -> None:
    small = scored("downsample", set(range(30 - LEAST + 1)))
    row = shown(table_of(FULL, small, scored("tome", {29})))
    assert (row["hard, n"], row["right of hard %"]) == (str(LEAST - 1), MISSING)
    assert row["easy, n"] == "21" and row["right of easy %"] != MISSING


def test_without_a_smaller_image_there_is_no_table() -> None:
    assert table_of(FULL, scored("tome", {1})) is None
    assert table_of(SMALL, scored("tome", {1})) is None  # nor without the unreduced model
    macs = replace(SMALL.cost.macs, total=SMALL.cost.macs.total * 2)  # type: ignore[type-var, union-attr]
    dearer = replace(SMALL, cost=replace(SMALL.cost, macs=macs))
    assert table_of(FULL, dearer, scored("tome", {1})) is None  # another cost judges nobody


def test_the_smaller_image_judges_where_its_own_row_is_not_shown() -> None:
    method = scored("tome", set(range(20)))
    rows = rows_of([FULL, SMALL, method], methods=["tome"])
    assert "downsample" not in rows and rows["tome"]["hard_value"] == pytest.approx(100 * 5 / 15)


def test_seeds_count_by_their_share() -> None:
    again = [{"correct": [1] * N}, {"correct": [0] * N}]
    method = scored("random", set(range(20)), repeats=again)
    row = rows_of([FULL, SMALL, method])["random"]
    assert row["hard_value"] == pytest.approx(100 * (5 + 15 + 0) / 45)


def right(*known: Accuracy) -> Any:
    made = record("tome")
    return hard.right(*(Scored(replace(made, accuracy=one), {}) for one in known))


def test_what_is_right() -> None:
    none = metric(np.ones(3))
    soft = Accuracy("accuracy", {"accuracy": none}, {"correct": [0.3, 0.6, 1.0]})
    (half,) = right(soft) or [None]
    assert half is not None and half.tolist() == [0, 1, 1]
    ways = {"rank_i2t": [0, 4], "rank_t2i": [1, 0, 0]}
    names = dict.fromkeys(("i2t_r1", "i2t_r5", "t2i_r1"), none)
    (both,) = right(Accuracy("i2t_r1", names, ways)) or [None]
    assert both is not None and both.tolist() == [1, 0, 0, 1, 1]
    assert right(Accuracy("cider", {"cider": none}, {"cider": [9.0, 1.0]})) is None
    first = Accuracy("i2t_r1", {"i2t_r1": none}, {"rank_i2t": [1]}, stop=Stop(4, 2, [(1, 3.0)], []))
    shares = right(Accuracy("i2t_r1", names, ways), first)  # of the samples and ways of both
    assert shares is not None and [one.tolist() for one in shares] == [[1], [0]]
    assert right(replace(soft, outcomes={"correct": [1.0]}), soft) is None
    assert right(Accuracy(None)) is None
    assert right(Accuracy("top1", {"top1": none})) is None  # without outcomes


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 17), (500, 1000)])
def test_wilsons_interval_is_statsmodels(hits: int, n: int) -> None:
    assert stats.wilson(hits / n, n) == pytest.approx(proportion_confint(hits, n, method="wilson"))


def test_each_row_is_what_a_loop_over_the_records_counts() -> None:
    records, judged = synthetic(), 0
    for row in (rows := frame.build(records).cells):
        here = [one for one in rows if (one["group"], one["band"]) == (row["group"], row["band"])]
        judge = next((one for one in here if one["method"] == "downsample"), row)
        if judge is row or row["is_baseline"]:
            assert row["hard_judge"] is None
            continue
        own = {r.cell.label: r.accuracy.outcomes for r in records if r.cell.model == row["model"]}
        n = hits = 0
        for name in (name for name in own["none"] if name.startswith("rank")):
            ranks = (own[label][name] for label in (row["label"], judge["label"], "none"))
            for ours, theirs, full in zip(*ranks, strict=True):
                n += full == 0 and theirs > 0
                hits += full == 0 and theirs > 0 and ours == 0
        assert row["hard_n"] == n
        if n >= LEAST:
            assert row["hard_value"] == pytest.approx(100 * hits / n)
            judged += 1
    assert judged > 5
