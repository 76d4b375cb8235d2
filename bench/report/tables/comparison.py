"""The tables of one model on one task: the main comparison, all accuracies, all timings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bench.records.record import COST_ONLY
from bench.report.data import disturbed
from bench.report.data.differences import DELTA, FLAGS, LEGEND, OVER_RANDOM, RANDOM, flags
from bench.report.data.frame import Frames, Row
from bench.report.data.rows import DIFFERENCE_COLUMNS, known
from bench.report.tables.table import (
    Column,
    Table,
    all_flagged,
    digits_for,
    escape,
    group_rows,
    is_noise,
    name_columns,
    number,
    signed,
    with_half_width,
    with_interval,
)
from bench.report.tables.timings import (
    batches,
    conditions,
    disturbed_legend,
    latency_of,
    speedup_column,
    timing_column,
    under,
    with_timings,
)

_KINDS = (DELTA, OVER_RANDOM)
_COMPARED = [f"{kind}{end}" for kind in _KINDS for end in ("", "_low", "_high")]
_COMPARED += [flag.field for flag in FLAGS]
METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "i2t": "image→text",
    "t2i": "text→image",
    "mean_recall": "mean recall",
    "accuracy": "accuracy",
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "spice": "SPICE",
    "f1": "F1",
}


def metric_name(name: str) -> str:
    """Write a metric's name for people: ``i2t_r1`` is ``image→text R@1``."""
    stem = next((stem for stem in METRIC_NAMES if f"{name}_".startswith(f"{stem}_")), name)
    shown, rest = METRIC_NAMES.get(stem, stem), name[len(stem) + 1 :]
    if re.fullmatch(r"r\d+", rest):
        return f"{shown} R@{rest[1:]}"
    rest = rest.replace("plain", "plain tokens").replace("_", " ")  # not the official tokenizer's
    return f"{shown}, {rest}" if rest else shown


def task_name(task: str) -> str:
    """Write a task's name for people."""
    return "cost only" if task == COST_ONLY else task


def title(rows: Sequence[Row], frames: Frames) -> str:
    """Name a group by its model and task, and by whatever else tells it from the other groups."""
    row = rows[0]
    variety = frames.variety[row["model"], row["task"]]
    parts = [f"{row['model']} · {task_name(row['task'])}"]
    for name in ("machine", "profile", "dtype", "backend", "how", "macs_scope"):
        if variety[name] > 1 and row[name]:
            parts.append(str(row[name]))
    if variety["random_weights"] > 1 and row["random_weights"]:
        parts.append("random weights")
    if variety["limit"] > 1:
        limit = row["limit"]
        parts.append("all samples" if limit is None else f"limit of {int(limit)} samples")
    return " · ".join(parts)


def main_table(frames: Frames, group: str) -> Table:
    """Return the main comparison of a group: what each method keeps, costs and gains."""
    rows = group_rows(frames, group)
    latency = latency_of(frames, rows)
    condition = next(iter(conditions(latency)), None)
    latency = under(condition, latency)
    rows = with_timings(rows, latency)
    sizes = batches(latency)
    ends = list(dict.fromkeys([*sizes[:1], *sizes[-1:]]))
    columns = name_columns(rows) + _accuracy_columns(rows, frames.baseline) + _cost_columns(rows)
    columns += _timing_columns(rows, ends)
    head = escape(title(rows, frames))
    caption = _caption(rows, condition, disturbed_legend(rows, ends) if ends else "")
    return Table(f"{group}--main", caption, columns, rows, head)


def _accuracy_columns(rows: Sequence[Row], baseline: str) -> list[Column]:
    columns = []
    for metric, unit in dict.fromkeys((row["metric"], row["accuracy_unit"]) for row in rows):
        if metric is None:
            continue
        own = [row for row in rows if (row["metric"], row["accuracy_unit"]) == (metric, unit)]
        suffix = f"_{metric}_{unit}" if len({row["metric"] for row in rows} - {None}) > 1 else ""
        ends = ["accuracy_value", "accuracy_low", "accuracy_high"]
        for row in own if suffix else []:
            for name in (*ends, *_COMPARED):
                row[name + suffix] = row[name]
        ends = [name + suffix for name in ends]
        digits = 1 if unit == "%" else digits_for([row[ends[0]] for row in own])
        head = f"{metric_name(metric)} {unit}"
        columns.append(Column(head, ends[0], with_half_width(ends, digits), better=1))
        columns += difference_columns(own, baseline, digits, suffix)
    return columns


def difference_columns(
    rows: Sequence[Row], baseline: str, digits: int, suffix: str = ""
) -> list[Column]:
    """Return the differences to the baseline and to random, each with its flags."""
    columns = []
    for kind in _KINDS:
        if kind == OVER_RANDOM and not any(known(row[kind]) for row in rows):
            continue
        keys = [f"{kind}{end}{suffix}" for end in ("", "_low", "_high")]
        write = with_interval(keys, digits, sign=True)
        write = all_flagged(write, flags(kind), behind=suffix)
        rival = escape(baseline) if kind == DELTA else RANDOM
        columns.append(Column(f"Δ to {rival}", keys[0], write))
    return columns


def _cost_columns(rows: Sequence[Row]) -> list[Column]:
    def values(key: str) -> list[Any]:
        return [row[key] for row in rows]

    reducing = number("reduction_pct_of_macs", 2)
    columns = [
        Column("GMACs", "gmacs", number("gmacs", digits_for(values("gmacs")))),
        Column("% of unreduced", "gmacs_pct_of_unreduced", number("gmacs_pct_of_unreduced", 1)),
        Column("% reducing", "reduction_pct_of_macs", reducing, wide=True),
        Column("Params M", "params_m", number("params_m", digits_for(values("params_m")))),
    ]
    kinds = dict.fromkeys((row["peak_batch"], row["peak_how"]) for row in rows)
    for batch, how in kinds:
        if batch is None:
            continue
        key = f"peak_mib_batch{int(batch)}" + (f"_{how}" if len(kinds) > 1 else "")
        for row in rows:
            if (row["peak_batch"], row["peak_how"]) == (batch, how):
                row[key] = row["peak_mib"]
        columns.append(Column(f"peak MiB, b{int(batch)}", key, number(key, 0), better=-1))
    return columns


def _timing_columns(rows: Sequence[Row], sizes: Sequence[int]) -> list[Column]:
    columns = []
    for size in sizes:
        key = f"p50_ms_batch{size}"
        digits = digits_for([row.get(key) for row in rows])
        wide = size != sizes[-1]
        column = Column(f"p50 ms, b{size}", key, number(key, digits), better=-1, wide=wide)
        columns.append(timing_column(column, size))
    for size in sizes[-1:]:
        key = f"throughput_per_s_batch{size}"
        digits = min(1, digits_for([row.get(key) for row in rows]))
        column = Column(f"per s, b{size}", key, number(key, digits), better=1, wide=True)
        columns.append(timing_column(column, size))
    columns += [speedup_column(f"speed-up, b{size}", "speedup", size) for size in sizes]
    for size in sizes:
        key = f"bound_share_pct_batch{size}"
        head = f"of MAC bound %, b{size}"
        column = Column(head, key, number(key, 0), better=1, wide=True)
        columns.append(timing_column(column, size))
    return columns


def _caption(rows: Sequence[Row], condition: str | None, legend: str) -> str:
    parts = [f"MACs: {', '.join(dict.fromkeys(r['macs_scope'] for r in rows if r['macs_scope']))}"]
    samples = sorted({int(row["accuracy_n"]) for row in rows if row["accuracy_n"]})
    if samples:
        parts.append(f"accuracy on {' / '.join(map(str, samples))} samples")
    how = dict.fromkeys(row["peak_how"] for row in rows if row["peak_how"])
    parts += [f"peak memory: {', '.join(how)}"] if how else []
    parts += [f"timing: {condition}"] if condition else ["no timings recorded"]
    weights = dict.fromkeys(str(row["weights"]) for row in rows if row["weights"])
    parts += [f"weights: {', '.join(weights)}"] if weights else []
    parts += [LEGEND] if samples else []
    if any(row["random_seeds"] == 1 for row in rows):
        parts.append("random ran under one seed: no interval holds what another would change")
    parts += [legend] if legend else []
    return escape("; ".join(parts)) + "."


def accuracy_table(frames: Frames, group: str) -> Table | None:
    """Return every metric of a group with its difference to the baseline, or None for cost only."""
    rows = group_rows(frames, group)
    metrics = [entry for row in rows for entry in frames.scores.get(row["key"], ())]
    kinds = list(dict.fromkeys((entry["metric"], entry["unit"]) for entry in metrics))
    if not kinds:
        return None
    entries = {(row["key"], row["metric"], row["unit"]): row for row in metrics}
    keep = ("group", "key", "method", "setting", "band", "is_baseline", "seed", "older")
    rows = [{name: row[name] for name in keep} for row in rows]
    columns = name_columns(rows)
    for metric, unit in kinds:
        stem = f"{metric}_pct" if unit == "%" else f"{metric}_{unit}"
        for row in rows:
            entry = entries.get((row["key"], metric, unit), {})
            names = ("value", "low", "high", "n", *DIFFERENCE_COLUMNS)
            row |= {f"{stem}_{name}": entry.get(name) for name in names}
        ends = [f"{stem}_{name}" for name in ("value", "low", "high")]
        deltas = [f"{stem}_{name}" for name in ("delta", "delta_low", "delta_high")]
        digits = 1 if unit == "%" else digits_for([row[ends[0]] for row in rows])
        write = with_interval(deltas, digits, sign=True)
        for kind in _KINDS:
            if any(row[f"{stem}_{kind}"] is not None for row in rows):
                write = all_flagged(write, flags(kind), before=f"{stem}_")
        head = f"{metric_name(metric)} {unit}"
        columns.append(Column(head, ends[0], with_half_width(ends, digits), better=1))
        columns.append(Column("Δ", deltas[0], write))
    caption = f"Δ: paired difference to {escape(frames.baseline)}, in the metric's unit. {LEGEND}."
    return Table(f"{group}--accuracy", caption, columns, rows)


def headline(frames: Frames, group: str) -> str | None:
    """Say in one sentence who is most accurate near half the MACs, and what it gains there."""
    rows = [row for row in group_rows(frames, group) if not row["is_baseline"]]
    rows = [row for row in rows if known(row["accuracy_value"]) and known(row["mac_bound_x"])]
    peers: dict[str, list[Row]] = {}
    for row in rows:
        peers.setdefault(row["band"], []).append(row)
    peers = {name: own for name, own in peers.items() if len({r["method"] for r in own}) > 1}
    if not peers:
        return None
    name = min(peers, key=lambda name: _from_half(peers[name]))
    best = peers[name][0]
    unit = best["accuracy_unit"]
    text = f"At {name} of the MACs the most accurate of {len(peers[name])} settings is "
    text += (
        f"**{escape(' '.join([best['method'], best['setting']]).strip())}**: "
        f"{metric_name(best['metric'])} "
    )
    text += f"{best['accuracy_value']:.1f} {unit}"
    if known(best["delta"]):
        text += f" ({signed(best['delta'], 1)} to {escape(frames.baseline)})"
    return text + _headline_speed(latency_of(frames, [best]), best["mac_bound_x"]) + "."


def _headline_speed(latency: Sequence[Row], bound: float) -> str:
    """Say a cell's speed-up at its largest batch; what other load disturbed makes no headline."""
    timed = under(next(iter(conditions(latency)), None), latency)
    quiet = disturbed.quiet(timed)
    if not quiet:
        return f" (speed-up not told: {disturbed.LOAD})" if timed else ""
    last = max(quiet, key=lambda row: int(row["batch"]))
    ends = [last[f"speedup{end}_x"] for end in ("", "_low", "_high")]
    noise = ", within noise" if is_noise(ends, last["aa_half_x"], 1) else ""
    text = f", measured speed-up {last['speedup_x']:.2f}× at batch {int(last['batch'])}"
    return f"{text} (MAC bound {bound:.2f}×{noise})"


def _from_half(rows: Sequence[Row]) -> float:
    """Return how far some cells are from half the MACs on average, in points."""
    shares = [row["gmacs_pct_of_unreduced"] for row in rows]
    return float(abs(sum(shares) / len(shares) - 50))
