"""Timings that other load disturbed: shown with a mark, and kept out of every judgement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.records.record import Record
from bench.report.data.rows import Row

MARK = "◊"
LOAD = "disturbed by other load"
LEGEND = f"{MARK}: {LOAD}, out of every contest"
LEFT_OUT = " Timings that other load disturbed are left out."  # a caption's last sentence


def quiet(rows: Iterable[Row]) -> list[Row]:
    """Return the timings that a judgement may rest on."""
    return [row for row in rows if not row["disturbed"]]


def left_out(rows: Sequence[Row]) -> str:
    """Return what a figure's caption says of the timings that it does not draw."""
    return LEFT_OUT if len(quiet(rows)) < len(rows) else ""


def note(records: Sequence[Record]) -> str | None:
    """Count the disturbed timings of a report; None where there are none.

    A timing is one cell at one batch size and condition, or the stages of one cell's answer
    to one prompt or to a batch of them.
    """
    timings = [entry.disturbed for record in records for entry in record.cost.latency]
    answers = [record.cost.generation for record in records]
    timings += [answer.disturbed for answer in answers if answer and answer.stages]
    timings += [served.disturbed for answer in answers if answer for served in answer.served]
    if not any(timings):
        return None
    return f"{sum(timings)} of {len(timings)} timings were {LOAD}: see {MARK}"
