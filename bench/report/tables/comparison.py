"""The main table of one model on one task: what each method keeps, costs and gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from bench.report.data import disturbed
from bench.report.data.differences import DELTA, LEGEND, OVER_RANDOM, detectable, flags
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.names import metric_name
from bench.report.data.rows import Row, known
from bench.report.data.scored import RANDOM
from bench.report.data.ties import BEST
from bench.report.data.timings import batches, ends_of, under_main, with_timings
from bench.report.tables.table import (
    Column,
    Table,
    accuracy,
    escape,
    interval,
    name_columns,
)

KINDS = (DELTA, OVER_RANDOM)
GMACS = Column("GMACs", "gmacs")
SHARE = Column("% of unreduced", "gmacs_pct_of_unreduced", digits=1)


@makes("table", 10)
def main_table(frames: Frames, group: str) -> Table:
    """Return the main comparison of a group: what is kept, for which MACs, how much faster."""
    rows, sizes, condition = _rows(frames, group)
    scored = _accuracy_columns(rows, frames.baseline)
    costs = [SHARE] if scored else [GMACS, SHARE]
    columns = [*name_columns(rows), *scored, *costs, *_speedups(sizes[-1:] if scored else sizes)]
    columns += [] if scored else [_bound(size) for size in sizes[-1:]]
    caption = _caption(rows, condition, disturbed_legend(rows, sizes) if sizes else "")
    return Table(f"{group}--main", caption, columns, rows, escape(frames.title(group)))


@makes("table", 12, fold="Every cost")
def cost_table(frames: Frames, group: str) -> Table:
    """Return MACs, parameters, memory and times of a group."""
    rows, sizes, condition = _rows(frames, group)
    columns = name_columns(rows) + _cost_columns(rows) + _timing_columns(sizes)
    parts = (
        f"timing: {condition}" if condition else "no timings recorded",
        disturbed_legend(rows, sizes) if sizes else "",
    )
    return Table(f"{group}--costs", escape("; ".join(filter(None, parts))) + ".", columns, rows)


def _rows(frames: Frames, group: str) -> tuple[list[Row], list[int], str | None]:
    """Return a group's rows with their timings, the batch sizes at both ends, and the condition."""
    rows = frames.by_group[group]
    condition, latency = under_main(frames.timed(rows))
    return with_timings(rows, latency), ends_of(batches(latency)), condition


def _accuracy_columns(rows: Sequence[Row], baseline: str) -> list[Column]:
    """Return accuracy and differences; cells with another metric have columns of their own."""
    columns = []
    kinds = dict.fromkeys((row["metric"], row["accuracy_unit"]) for row in rows if row["metric"])
    several = len({metric for metric, _ in kinds}) > 1
    for metric, unit in kinds:
        cells = [row for row in rows if (row["metric"], row["accuracy_unit"]) == (metric, unit)]
        suffix = f"_{metric}_{unit}" if several else ""
        digits = 1 if unit == "%" else None
        head = f"{metric_name(metric)} {unit}"
        level = accuracy(head, "accuracy", digits, f"{BEST}{suffix}", suffix)
        differences = _differences(cells, baseline, level, suffix)
        for column in (level, *differences) if suffix else ():
            fields = [column.key, *column.ends, *(field for field, _ in column.marks)]
            fields += [column.p] if column.p else []
            fields += [BEST + suffix] if column is level else []
            for row in cells:
                row |= {name: row[name.removesuffix(suffix)] for name in fields}
        columns += [level, *differences]
    samples = {row["accuracy_n"] for row in rows if row["accuracy_n"]}
    return columns + [Column("n", "accuracy_n", digits=0)] * (len(samples) > 1)


def _differences(rows: Sequence[Row], baseline: str, level: Column, suffix: str) -> list[Column]:
    """Return the differences to the baseline and to random, each with its flags."""
    digits = level.decimals([row["accuracy_value"] for row in rows])
    columns = []
    for kind in KINDS:
        if kind == DELTA or any(known(row[kind]) for row in rows):
            rival = escape(baseline) if kind == DELTA else RANDOM
            column = interval(f"Δ to {rival}", f"{kind}{{}}{suffix}", digits=digits, sign=True)
            column = replace(column, p=f"{kind}_p_holm{suffix}")
            columns.append(column.flagged(flags(kind), behind=suffix))
    return columns


def _cost_columns(rows: Sequence[Row]) -> list[Column]:
    columns = [
        GMACS,
        SHARE,
        Column("% reducing", "reduction_pct_of_macs", digits=2, wide=True),
        Column("Params M", "params_m"),
    ]
    kinds = dict.fromkeys((row["peak_batch"], row["peak_how"]) for row in rows)
    for batch, how in kinds:
        if batch is None:
            continue
        key = f"peak_mib_batch{batch}" + (f"_{how}" if len(kinds) > 1 else "")
        for row in rows:
            if (row["peak_batch"], row["peak_how"]) == (batch, how):
                row[key] = row["peak_mib"]
        columns.append(Column(f"peak MiB, b{batch}", key, digits=0, better=-1))
    return columns


def _timing_columns(sizes: Sequence[int]) -> list[Column]:
    def column(size: int, head: str, field: str, better: int, wide: bool = True) -> Column:
        most = 1 if field == "throughput_per_s" else 6
        key = f"{field}_batch{size}"
        made = Column(f"{head}, b{size}", key, most=most, better=better, wide=wide)
        return made.timing(size)

    return [
        *(column(size, "p50 ms", "p50_ms", -1, size != sizes[-1]) for size in sizes),
        *(column(size, "per s", "throughput_per_s", 1) for size in sizes[-1:]),
        *_speedups(sizes),
        *map(_bound, sizes),
    ]


def _speedups(sizes: Sequence[int]) -> list[Column]:
    return [speedup_column(f"speed-up, b{size}", "speedup", size) for size in sizes]


def _bound(size: int) -> Column:
    """Return a column of the share of the saved MACs' promise that was kept."""
    head, key = f"of MAC bound %, b{size}", f"bound_share_pct_batch{size}"
    return Column(head, key, digits=0, better=1, wide=True).timing(size)


def speedup_column(header: str, name: str, batch: int | str | None = None) -> Column:
    """Return a column of speed-ups with their intervals: `name` is "speedup" or "fastest"."""
    end = "" if batch is None else f"_batch{batch}"
    how = {"digits": 2, "suffix": "×", "null": 1, "within": f"aa_half_x{end}", "better": 1}
    return interval(header, f"{name}{{}}_x{end}", **how).timing(batch)


def disturbed_legend(rows: Sequence[Row], batches: Sequence[int | str] = ()) -> str:
    """Return what a caption says of the mark of disturbed timings; empty where none stands."""
    fields = [f"disturbed_batch{batch}" for batch in batches] or ["disturbed"]
    return disturbed.LEGEND if any(row.get(field) for row in rows for field in fields) else ""


def _detectable(rows: Sequence[Row]) -> str:
    """Say how small a difference to the baseline these samples could have shown."""
    seen = [detectable(row) for row in rows if known(row["delta_low"])]
    unit = "points" if rows[0]["accuracy_unit"] == "%" else "units"
    if not seen:
        return ""
    least = f"{median(seen):.1f} {unit}"
    return f"differences to the baseline below {least} would mostly go unseen (power 0.8)"


def _stopped(rows: Sequence[Row]) -> str:
    """Say when cells with a precision have samples enough, and on which they are compared."""
    precision = rows[0].get("precision")
    if precision is None or not any(row["accuracy_n"] for row in rows):
        return ""
    unit = " points" if rows[0]["accuracy_unit"] == "%" else ""
    enough = f"n: until the difference to the unreduced model is known to ±{precision:g}{unit}"
    return f"{enough}; two cells are compared on the samples that both have"


def _caption(rows: Sequence[Row], condition: str | None, legend: str) -> str:
    def distinct(name: str) -> str:
        return ", ".join(dict.fromkeys(str(row[name]) for row in rows if row[name]))

    samples = sorted({row["accuracy_n"] for row in rows if row["accuracy_n"]})
    peak, weights = distinct("peak_how"), distinct("weights")
    recipe, seeds = rows[0].get("recipe"), [row["random_seeds"] for row in rows]
    lone = f"each row is one training ({recipe})" if recipe else ""
    lone = "random ran under one seed" if 1 in seeds else lone
    parts = (
        f"MACs: {distinct('macs_scope')}",
        f"accuracy on {' / '.join(map(str, samples))} samples" if samples else "",
        _stopped(rows),
        f"peak memory: {peak}" if peak else "",
        f"timing: {condition}" if condition else "no timings recorded",
        f"weights: {weights}" if weights else "",
        LEGEND if samples else "",
        _detectable(rows),
        f"{lone}: no interval holds what another would change" if lone else "",
        legend,
    )
    return escape("; ".join(filter(None, parts))) + "."
