"""The table of what no other setting beats: values decide who is a rival, noise whether it wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report_rows import MACS, SECOND, base, record

from bench.records.record import Record, Speedup
from bench.report.data import frame
from bench.report.tables.pareto import is_faster, pareto_table


def cell(method: str, hits: int, speed: float, half: float = 0.04, macs: float = 6.0) -> Record:
    """A cell of a number of right answers, a speed-up with its interval, and GMACs of 15."""
    timing = replace(SECOND, speedup=Speedup(speed, (speed - half, speed + half)))
    total = int(macs * 10**9)
    cost = {"latency": [timing], "macs": replace(MACS, total=total)}
    return record(method, hits, **cost)


def unbeaten(*cells: Record) -> dict[str, str]:
    frames = frame.build([base(), *cells])
    table = pareto_table(frames, frames.groups()[0])
    assert table is not None
    return {row["method"]: row["unbeaten"] for row in table.rows}


def test_noise_beats_nobody_and_more_than_noise_does() -> None:
    best = cell("pitome", 308, 1.5)
    assert unbeaten(best)["pitome"] == "MACs, speed"
    as_good = unbeaten(best, cell("tome", 306, 1.48))
    assert as_good["tome"] == "MACs, speed"  # a little slower and less accurate, within noise
    less_accurate = unbeaten(best, cell("tome", 270, 1.48))
    assert "tome" not in less_accurate and less_accurate["pitome"] == "MACs, speed"
    slower = unbeaten(best, cell("tome", 306, 1.2))
    assert slower["tome"] == "MACs"
    faster = unbeaten(best, cell("tome", 270, 2.0))
    assert faster == {"none": "MACs, speed", "pitome": "MACs, speed", "tome": "speed"}


def test_fewer_macs_beat_where_accuracy_is_no_worse() -> None:
    dear, cheap = cell("pitome", 308, 1.5), cell("tome", 308, 1.0, macs=3.0)
    assert unbeaten(dear, cheap) == {"none": "MACs, speed", "pitome": "speed", "tome": "MACs"}
    worse = replace(cheap, accuracy=record("tome", 307).accuracy)
    assert unbeaten(dear, worse)["pitome"] == "MACs, speed"


def test_a_disturbed_timing_is_on_no_front_of_speed() -> None:
    loaded = cell("pitome", 319, 3.0)
    latency = [replace(loaded.cost.latency[0], disturbed=True)]
    loaded = replace(loaded, cost=replace(loaded.cost, latency=latency))
    expected = {"none": "MACs, speed", "pitome": "MACs", "tome": "speed"}
    assert unbeaten(loaded, cell("tome", 300, 1.5)) == expected


@pytest.mark.parametrize(
    ("speed", "twins", "faster"), [(1.2, 0.0, True), (1.2, 0.3, False), (1.06, 0.0, False)]
)
def test_a_speed_up_is_larger_beyond_both_intervals_and_the_twins(
    speed: float, twins: float, faster: bool
) -> None:
    def timing(value: float) -> dict[str, float]:
        ends = {"speedup_low_x": value - 0.04, "speedup_high_x": value + 0.04}
        return {"speedup_x": value, "aa_half_x": twins} | ends

    assert is_faster(timing(speed), timing(1.0)) is faster
    assert not is_faster(timing(1.0), timing(speed))


def test_one_score_is_no_contest() -> None:
    frames = frame.build([base()])
    assert pareto_table(frames, frames.groups()[0]) is None
