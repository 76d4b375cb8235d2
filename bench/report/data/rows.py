"""Flatten records into rows: what a cell was and cost, its timings, its token counts.

A row is a dict with units in its names. Whatever a record lacks is None, never a zero.
"""

from __future__ import annotations

import math
from typing import Any

from bench.records.record import EAGER, Latency, Record
from bench.report.data import load, mixture
from bench.report.data.names import budget, series, setting

MIB = 2**20
Row = dict[str, Any]
# Of two comparisons: with the baseline, and with random reduction at the same MACs.
_COMPARED = ("", "_low", "_high", "_p", "_p_holm", "_reason")
DIFFERENCES = (
    *(f"delta{end}" for end in _COMPARED),
    "delta_is_noise",
    *(f"over_random{end}" for end in _COMPARED),
    *("random_setting", "random_seeds", "over_random_is_noise", "below_random"),
)
CONDITION = ("key", "condition", "device", "dtype", "backend", "engine", "threads", "batch")


def known(value: Any) -> bool:
    """Whether a value is there: neither None nor NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def label_of(row: Row) -> str:
    """Name a cell by its series and setting."""
    return f"{row['method']} {row['setting']}".strip()


def cell_row(
    record: Record, group: str, common: Row, baseline: str = "none", extra: str = ""
) -> Row:
    """Return what a cell was, its MACs, parameters and memory; accuracy comes with the metrics.

    Args:
        record: The cell's record.
        group: Name of the table that the cell stands in.
        common: What all cells of this table agree in.
        baseline: Method or label of the cell that others are compared with.
        extra: What else tells the cell from others of its setting, such as its seed.
    """
    cell, cost = record.cell, record.cost
    row: Row = {"key": load.uid(record), "group": group, **common, "suite": cell.suite}
    row |= {"method": series(cell.method, cell.params), "label": cell.label, "seed": cell.seed}
    row["setting"] = budget(cell.params, extra)
    row["budget"] = record.provenance.get("budget")
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
        for name in (*CONDITION[2:], "p50_ms", "p95_ms"):
            row[name] = getattr(entry, name)
        row |= {"p99_ms": entry.p99_ms, "throughput_per_s": entry.throughput_per_s}
        row |= {"speedup_x": entry.speedup.median}
        row["speedup_low_x"], row["speedup_high_x"] = entry.speedup.ci95
        fastest = entry.speedup_vs_fastest
        row |= {"fastest_x": fastest.median if fastest else None}
        row["fastest_low_x"], row["fastest_high_x"] = fastest.ci95 if fastest else (None, None)
        row["fastest_backend"] = _run_with(fastest.backend, fastest.engine) if fastest else None
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
    how = _run_with(entry.backend, entry.engine)
    return f"{entry.device} · {entry.dtype} · {how} · {threads}"


def _run_with(backend: str | None, engine: str | None) -> str | None:
    """Name an attention backend, and the engine where it is not eager."""
    return backend if engine in (None, EAGER) else f"{backend}, {engine}"


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
