"""Flatten records into rows: what a cell was and cost, its timings, its token counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bench.records.record import Latency, Record
from bench.report.data import load, mixture

if TYPE_CHECKING:
    import pandas as pd

MIB = 2**20
Row = dict[str, Any]

# fmt: off
# Of two comparisons: with the baseline, and with random reduction at the same MACs.
_COMPARED = ("", "_low", "_high", "_p", "_p_holm", "_reason")
DIFFERENCE_COLUMNS = (
    *(f"delta{end}" for end in _COMPARED), "delta_is_noise",
    *(f"over_random{end}" for end in _COMPARED), "random_setting", "random_seeds",
    "over_random_is_noise", "below_random",
)
METRIC_COLUMNS = (
    "key", "metric", "primary", "value", "unit", "low", "high", "n", *DIFFERENCE_COLUMNS,
)
# What a timing says beside its condition and batch size.
TIMING_COLUMNS = (
    "p50_ms", "p95_ms", "p99_ms", "throughput_per_s", "speedup_x", "speedup_low_x",
    "speedup_high_x", "fastest_x", "fastest_low_x", "fastest_high_x", "fastest_backend",
    "bound_share_pct", "reduction_share_pct", "utilisation_pct", "attention_path",
    "disturbed", "disturbance", "aa_half_x",  # the last: how far from 1 two equal things lie
)
# fmt: on
_CONDITION = ("key", "condition", "device", "dtype", "backend", "threads", "batch")
LATENCY_COLUMNS = _CONDITION + TIMING_COLUMNS
TOKEN_COLUMNS = ("key", "tower", "layer", "tokens")
FAILURE_COLUMNS = ("machine", "profile", "model", "task", "method", "setting", "status", "reason")


def known(value: Any) -> bool:
    """Whether a value is there: neither None nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Return a frame's rows as dicts, missing values as None."""
    names = list(map(str, frame.columns))
    columns = [
        [value if known(value) else None for value in frame[name].tolist()] for name in frame
    ]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def setting(params: dict[str, Any], extra: str = "") -> str:
    """Write a method's parameters for people: ``r=8``, ``keep_rate=0.7, layers=3/6/9``."""
    parts = [f"{name}={_plain(value)}" for name, value in params.items()]
    return ", ".join([*parts, extra] if extra else parts)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "+".join(f"{name}:{_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        if len(value) > 2 and len(set(map(str, value))) == 1:
            return f"{len(value)}×{_plain(value[0])}"
        return "/".join(_plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell_row(record: Record, group: tuple[str, Row], show_seed: bool, baseline: str) -> Row:
    """Return what a cell was, its MACs, parameters and memory; accuracy comes with the metrics."""
    cell, cost = record.cell, record.cost
    row: Row = {"key": load.uid(record), "group": group[0], **group[1], "suite": cell.suite}
    row |= {"method": cell.method, "label": cell.label, "seed": cell.seed}
    row["setting"] = setting(cell.params, f"seed {cell.seed}" if show_seed else "")
    row["is_baseline"] = baseline in (cell.method, cell.label)
    row |= {"weights": record.provenance.get("weights"), "accuracy_reason": record.accuracy.reason}
    row["not_measured"] = "; ".join(cost.notes) or None
    row |= _macs(record)
    params, memory = cost.params, cost.memory
    row["params_m"] = params.total / 1e6 if params else None
    row["params_added_m"] = params.added / 1e6 if params else None
    row["peak_mib"] = memory.peak_bytes / MIB if memory else None
    base_peak = memory.baseline_peak_bytes if memory else None
    row["peak_mib_unreduced"] = base_peak / MIB if base_peak is not None else None
    row["peak_batch"] = memory.batch if memory else None
    row["peak_how"] = memory.how if memory else None
    row |= {"seconds": record.seconds, "created": record.created}
    return row | {"older": mixture.is_older(record)}


def _macs(record: Record) -> Row:
    macs = record.cost.macs
    names = "gmacs gmacs_unreduced gmacs_pct_of_unreduced reduction_gmacs reduction_pct_of_macs"
    if macs is None:
        return dict.fromkeys([*names.split(), "closed_form_gmacs", "mac_bound_x"])
    total, base = macs.total, macs.baseline_total
    return {
        "gmacs": total / 1e9,
        "gmacs_unreduced": base / 1e9,
        "gmacs_pct_of_unreduced": 100 * total / base if base else None,
        "reduction_gmacs": macs.reduction / 1e9,
        "reduction_pct_of_macs": 100 * macs.reduction / total if total else None,
        "closed_form_gmacs": macs.closed_form / 1e9,
        "mac_bound_x": base / total if total else None,
    }


def failure_row(record: Record) -> Row:
    """Return where a cell failed and why."""
    cell = record.cell
    row: Row = {"machine": load.machine(record), "profile": cell.profile, "model": cell.model}
    row |= {"task": cell.task, "method": cell.method, "setting": setting(cell.params)}
    return row | {"status": record.status, "reason": record.reason or "no reason recorded"}


def latency_rows(record: Record) -> list[Row]:
    """Return one row for each batch size and condition a cell was timed in."""
    macs = record.cost.macs
    bound = macs.baseline_total / macs.total if macs and macs.total else None
    rows = []
    for entry in record.cost.latency:
        row: Row = {"key": load.uid(record), "condition": condition(entry)}
        for name in ("device", "dtype", "backend", "threads", "batch", "p50_ms", "p95_ms"):
            row[name] = getattr(entry, name)
        row |= {"p99_ms": entry.p99_ms, "throughput_per_s": entry.throughput_per_s}
        row |= {"speedup_x": entry.speedup.median}
        row["speedup_low_x"], row["speedup_high_x"] = entry.speedup.ci95
        fastest = entry.speedup_vs_fastest
        if fastest:
            row |= {"fastest_x": fastest.median, "fastest_backend": fastest.backend}
            row["fastest_low_x"], row["fastest_high_x"] = fastest.ci95
        row["bound_share_pct"] = 100 * entry.speedup.median / bound if bound else None
        row["reduction_share_pct"] = _pct(entry.reduction_share)
        row["utilisation_pct"] = _pct(entry.utilisation)
        row["attention_path"] = entry.attention_path
        row |= {"disturbed": entry.disturbed, "disturbance": entry.disturbance}
        rows.append(row)
    return rows


def condition(entry: Latency) -> str:
    """Name what a timing was taken under."""
    threads = f"{entry.threads} thread" + ("s" if entry.threads != 1 else "")
    return f"{entry.device} · {entry.dtype} · {entry.backend} · {threads}"


def _pct(share: float | None) -> float | None:
    return None if share is None else 100 * share


def token_rows(record: Record) -> list[Row]:
    """Return the tokens after each layer; layer 0 is the input of the first block."""
    rows = []
    for tower, layers in record.cost.tokens.items():
        counts = [pair[0] for pair in layers[:1]] + [pair[1] for pair in layers]
        rows += [
            {"key": load.uid(record), "tower": tower, "layer": layer, "tokens": count}
            for layer, count in enumerate(counts)
        ]
    return rows
