"""Cells of unequally many samples in one report: each pair is compared on what both have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_report import metric
from test_report_rows import bold, record, shown

from bench.records.record import Accuracy, Record, Stop
from bench.report.data import frame
from bench.report.data.differences import difference
from bench.report.data.scored import Between, Scored
from bench.report.data.stats import paired_difference
from bench.report.tables.comparison import main_table
from bench.report.tables.pairs import pairs_table

N = 60
UNREDUCED = (np.arange(N) < 30).astype(int)  # the first samples are the easy ones


def scored(method: str, correct: Any, precision: float | None = 4.0) -> Record:
    made, hits = record(method), np.asarray(correct)
    stop = Stop(4.0, N, [(len(hits), 3.0)], UNREDUCED[: len(hits)].tolist())
    whole = method == "none" or precision is None
    known = Accuracy(
        "accuracy",
        {"accuracy": metric(hits)},
        {"correct": hits.tolist()},
        stop=None if whole else stop,
    )
    return replace(made, accuracy=known, cell=replace(made.cell, precision=precision))


def flipped(at: list[int], size: int) -> Any:
    """What the unreduced model scores on the first samples, but for some."""
    hits = UNREDUCED[:size].copy()
    hits[at] = 1 - hits[at]
    return hits


BASE = scored("none", UNREDUCED)
EARLY = scored("tome", flipped(list(range(9)), 32))  # 21 of 32; the unreduced model 30
LATE = scored("evit", flipped([40], 48))  # 31 of 48, a smaller share; the unreduced model 30


def test_a_difference_is_of_the_samples_that_both_have() -> None:
    rows = {row["method"]: row for row in frame.build([BASE, EARLY, LATE]).cells}
    for method, cell, delta in (("tome", EARLY, -900 / 32), ("evit", LATE, 100 / 48)):
        ours = np.array(cell.accuracy.outcomes["correct"], dtype=float)
        by_hand = paired_difference(ours, UNREDUCED[: len(ours)].astype(float))
        row = rows[method]
        assert row["delta"] == pytest.approx(delta) == pytest.approx(100 * by_hand.value)
        assert (row["delta_low"], row["delta_high"]) == pytest.approx(
            (100 * by_hand.low, 100 * by_hand.high)
        )
        assert row["accuracy_value"] == pytest.approx(100 * ours.mean())  # of its own samples
    assert rows["tome"]["accuracy_value"] > rows["evit"]["accuracy_value"]


def test_who_leads_is_not_who_had_the_easy_samples() -> None:
    frames = frame.build([BASE, EARLY, LATE])
    rows = {row["method"]: row for row in frames.cells}
    assert rows["evit"]["among_best"] and not rows["tome"]["among_best"]
    (group,) = frames.by_group
    pair = pairs_table(frames, group)
    assert pair is not None
    (row,) = pair.rows
    assert (row["ours"], row["theirs"]) == ("evit r=8", "tome r=8")
    assert row["lead"] == pytest.approx(900 / 32)


def test_a_table_tells_how_many_samples_where_cells_differ() -> None:
    frames = frame.build([BASE, EARLY, LATE])
    (group,) = frames.by_group
    table = main_table(frames, group)
    assert [shown(table, m)["n"] for m in ("none", "tome", "evit")] == ["60", "32", "48"]
    assert "accuracy on 32 / 48 / 60 samples; n: until the difference" in table.caption
    assert "known to ±4 points" in table.caption and bold(table, "n") == []
    alike = frame.build([BASE, scored("tome", flipped([2], N))])
    assert "n" not in shown(main_table(alike, group))


def test_without_a_precision_unequal_samples_do_not_pair() -> None:
    short = scored("tome", UNREDUCED[:32], precision=None)
    base = scored("none", UNREDUCED, precision=None)
    rows = {row["method"]: row for row in frame.build([base, short]).cells}
    assert rows["tome"]["delta_reason"] == "no paired outcomes"


def test_random_between_two_settings_is_of_what_both_have() -> None:
    fewer = Scored(scored("random", flipped([1, 3], 32)), {"setting": "", "method": "random"})
    more = Scored(BASE, {"setting": "", "method": "none"})
    between = Between(fewer, more, 0.5)
    (scores,) = between.scores["accuracy"]  # type: ignore[misc]
    assert scores.tolist() == ((UNREDUCED[:32] + flipped([1, 3], 32)) / 2).tolist()
    row = difference(Scored(LATE, {}), between, "accuracy", "over", "random")
    assert row["over"] == pytest.approx(100 / 32) and row["over_reason"] is None


def test_cells_of_another_precision_have_a_table_of_their_own() -> None:
    other = [scored(m, UNREDUCED, precision=2.0) for m in ("none", "tome")]
    other = [replace(one, key=one.key.replace("0", "1")) for one in other]
    frames = frame.build([BASE, EARLY, *other])
    assert {frames.title(group).split(" · ")[-1] for group in frames.by_group} == {
        "until ±4",
        "until ±2",
    }
