"""The cells of a model and task that no other beats in accuracy and MACs, or accuracy and speed.

A cell beats another where it is no worse in both, by their values, and better in one beyond noise:
in MACs by a lower band, in the same band and in accuracy by the paired test that decides who shares
a lead, in speed by the ratio of the two speed-ups, whose interval is that of both together and no
narrower than what two equal things show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

from bench.report.data.differences import correct, difference, is_noise
from bench.report.data.frame import Frames
from bench.report.data.leads import at_largest_batch
from bench.report.data.makers import makes
from bench.report.data.names import metric_name
from bench.report.data.rows import Row, known
from bench.report.data.scored import Scored
from bench.report.data.ties import BEST, LEAD
from bench.report.data.timings import is_noise as is_equal
from bench.report.data.timings import with_timings
from bench.report.tables.comparison import SHARE, speedup_column
from bench.report.tables.table import Table, accuracy, escape, name_columns, words

CAPTION = (
    "The cells that no other beats in accuracy and MACs, or in accuracy and speed-up: another one "
    "would be no worse in both, and better in one beyond noise (MACs by a lower band; "
    "accuracy by a paired test, corrected by Holm's method; a speed-up by both intervals and what "
    "two equal things show)."
)


@makes("table", 14, fold="What no other setting beats")
def pareto_table(frames: Frames, group: str) -> Table | None:
    """Return the cells on either front, best first; None where fewer than two have scores."""
    rows = [row for row in frames.by_group[group] if known(row["accuracy_value"])]
    rows = [row for row in rows if row["metric"] == rows[0]["metric"] and known(row["level"])]
    if len(rows) < 2:
        return None
    timings = {timing["key"]: timing for timing in at_largest_batch(frames, rows)}
    fronts = {"MACs": by_macs(rows), "speed": by_speed(frames, rows, timings)}
    shown = with_timings(rows, list(timings.values()))
    for row in shown:
        row["unbeaten"] = ", ".join(name for name, keys in fronts.items() if row["key"] in keys)
    shown = [row for row in shown if row["unbeaten"]]
    first, digits = shown[0], 1 if shown[0]["accuracy_unit"] == "%" else None
    head = f"{metric_name(first['metric'])} {first['accuracy_unit']}"
    columns = [*name_columns(shown), accuracy(head, "accuracy", digits, BEST), SHARE]
    for batch in {timing["batch"] for timing in timings.values()}:  # one, or none
        columns.append(speedup_column(f"speed-up, b{batch}", "speedup", batch))
    columns.append(words("unbeaten in accuracy and", "unbeaten"))
    return Table(f"{group}--pareto", escape(CAPTION), columns, shown)


def by_macs(rows: Sequence[Row]) -> set[str]:
    """Return the keys of the cells that none beats in accuracy and MACs."""

    def beaten(row: Row) -> bool:
        cheaper = (other for other in rows if other["level"] < row["level"])
        return any(other["accuracy_value"] >= row["accuracy_value"] for other in cheaper)

    return {row["key"] for row in rows if row[BEST] is not False and not beaten(row)}


def by_speed(frames: Frames, rows: Sequence[Row], timings: Mapping[str, Row]) -> set[str]:
    """Return the keys of the timed cells that none beats in accuracy and speed-up."""
    timed = [row for row in rows if row["key"] in timings]
    beaten, close = set(), []
    for row, other in permutations(timed, 2):
        mine, theirs = timings[row["key"]], timings[other["key"]]
        worse = other["accuracy_value"] < row["accuracy_value"]
        if worse or theirs["speedup_x"] < mine["speedup_x"]:
            continue
        if is_faster(theirs, mine):
            beaten.add(row["key"])
        else:
            close.append((row, other))
    leads = [_lead(frames, other, row) for row, other in close if row["key"] not in beaten]
    correct(leads, LEAD)
    beaten |= {lead["behind"] for lead in leads if _leads(lead)}
    return {row["key"] for row in timed} - beaten


def is_faster(one: Row, other: Row) -> bool:
    """Whether a timing's speed-up is larger than another's beyond noise."""
    ratio = one["speedup_x"] / other["speedup_x"]
    low = one["speedup_low_x"] / other["speedup_high_x"]
    high = one["speedup_high_x"] / other["speedup_low_x"]
    return ratio > 1 and not is_equal((ratio, low, high), one["aa_half_x"], 1)


def _lead(frames: Frames, other: Row, row: Row) -> Row:
    ours, theirs = (Scored(frames.by_uid[one["key"]], one) for one in (other, row))
    return {"behind": row["key"]} | difference(ours, theirs, row["metric"], LEAD, "the other")


def _leads(lead: Row) -> bool:
    """Whether a lead is beyond noise; where nothing pairs the cells, whether there is one."""
    noise = is_noise(lead, LEAD)
    return bool(lead[LEAD]) if noise is None else not noise
