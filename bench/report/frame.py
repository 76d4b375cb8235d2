"""Turn records into tidy data frames: one row a finished cell, units in the column names.

Cells that did not finish are kept apart with their reasons. Whatever a record lacks is a missing
value here, never a zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.errors import BenchError
from bench.record import Record
from bench.report import grouping, load, stats, tuned
from bench.report.rows import (
    FAILURE_COLUMNS,
    LATENCY_COLUMNS,
    METRIC_COLUMNS,
    TOKEN_COLUMNS,
    Row,
    cell_row,
    failure_row,
    latency_rows,
    setting,
    token_rows,
)

__all__ = ["Frames", "Row", "build", "setting"]


@dataclass(frozen=True)
class Frames:
    """A report's data.

    Attributes:
        cells: One row a finished cell: what it was, primary accuracy, MACs, parameters, memory.
            ``group`` names the table it belongs to.
        metrics: One row a cell and metric, with the paired difference to the baseline.
        latency: One row a cell, batch size and condition (device, dtype, backend, threads).
        tokens: One row a cell, tower and layer; layer 0 is the input of the first block.
        failed: One row a cell that did not finish, with its reason.
        records: The records that all of this was made from.
        notes: What a reader should know about the records themselves.
        baseline: The method (or label) that differences refer to.
        apart: Tables that are not shown: fine-tuned models have a section of their own.
    """

    cells: pd.DataFrame
    metrics: pd.DataFrame
    latency: pd.DataFrame
    tokens: pd.DataFrame
    failed: pd.DataFrame
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    baseline: str
    apart: frozenset[str] = frozenset()

    def groups(self) -> list[str]:
        """Return the names of the tables, in reading order."""
        names = dict.fromkeys(self.cells["group"]) if len(self.cells) else {}
        return [name for name in names if name not in self.apart]


def build(
    records: Sequence[Record], *, baseline: str = "none", notes: Sequence[str] = ()
) -> Frames:
    """Build a report's frames.

    Args:
        records: Records from old to new.
        baseline: Method name (or a cell's label) that accuracies are compared with.
        notes: Notes to pass on.

    Returns:
        The frames, in an order that depends on the records' content only.

    Raises:
        BenchError: If a baseline other than the default occurs in no record.
    """
    kept, outdated = load.newest(records)
    _check_baseline(kept, baseline)
    done = [record for record in kept if record.status == "ok"]
    groups, seeds = grouping.tables(done), grouping.show_seed(done)
    uids = [load.uid(record) for record in done]
    cells = [
        cell_row(record, groups[uid], seeds[uid], baseline)
        for record, uid in zip(done, uids, strict=True)
    ]
    _check_single(cells, baseline)
    lone = tuned.apart(done)
    order = sorted(range(len(cells)), key=lambda index: _reading_order(cells[index]))
    done, cells = [done[index] for index in order], [cells[index] for index in order]
    metrics = _metrics(done, cells)
    _merge_primary(cells, metrics)
    failed = [failure_row(record) for record in kept if record.status != "ok"]
    failed.sort(key=lambda row: [str(value) for value in row.values()])
    older = [f"older results of the same cells, set aside: {outdated}"] if outdated else []
    return Frames(
        pd.DataFrame(cells),
        _frame(metrics, METRIC_COLUMNS),
        _frame([row for record in done for row in latency_rows(record)], LATENCY_COLUMNS),
        _frame([row for record in done for row in token_rows(record)], TOKEN_COLUMNS),
        _frame(failed, FAILURE_COLUMNS),
        tuple(kept),
        (*notes, *older),
        baseline,
        frozenset(row["group"] for row in cells if row["model"] in lone),
    )


def _frame(rows: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Make a frame that has its columns even where it has no rows."""
    return pd.DataFrame(list(rows), columns=list(columns))


def _check_baseline(records: Sequence[Record], baseline: str) -> None:
    names = {record.cell.method for record in records} | {record.cell.label for record in records}
    if baseline != "none" and baseline not in names:
        from bench.registry import near_miss

        raise BenchError(
            f"no record of the baseline '{baseline}'{near_miss(baseline, sorted(names))}"
        )


def _check_single(rows: Sequence[Row], baseline: str) -> None:
    """Refuse a baseline that names several settings: a difference must say to which."""
    settings: dict[str, set[str]] = {}
    for row in rows:
        if row["is_baseline"]:
            settings.setdefault(row["group"], set()).add(row["label"])
    for labels in settings.values():
        if len(labels) > 1:
            raise BenchError(
                f"the baseline '{baseline}' has several settings; name one by its label: "
                + ", ".join(sorted(labels))
            )


def _reading_order(row: Row) -> tuple[Any, ...]:
    gmacs = row["gmacs"]
    return (
        row["group"],
        not row["is_baseline"],
        row["method"],
        -(gmacs if gmacs is not None else -1.0),
        row["setting"],
        row["key"],
    )


def _metrics(records: Sequence[Record], rows: Sequence[Row]) -> list[Row]:
    bases: dict[str, list[Record]] = {}
    for record, row in zip(records, rows, strict=True):
        if row["is_baseline"]:
            bases.setdefault(row["group"], []).append(record)
    result = []
    for record, row in zip(records, rows, strict=True):
        base = _partner(record, bases.get(row["group"], []))
        for name, metric in record.accuracy.metrics.items():
            low, high = metric.ci95 or (None, None)
            entry: Row = {"key": load.uid(record), "metric": name, "value": metric.value}
            entry |= {"primary": name == record.accuracy.primary, "unit": metric.unit}
            entry |= {"low": low, "high": high, "n": metric.n}
            result.append(entry | _difference(record, base, name))
    return result


def _partner(record: Record, bases: Sequence[Record]) -> Record | None:
    """Pick the baseline of the same seed, or else the first: seeds do not choose samples."""
    same = [base for base in bases if base.cell.seed == record.cell.seed]
    return min(same or bases, key=lambda base: (base.cell.seed, base.key), default=None)


def _difference(record: Record, base: Record | None, name: str) -> Row:
    row: Row = dict.fromkeys(("delta", "delta_low", "delta_high", "delta_p"))
    if base is None:
        return row | {"delta_reason": "no baseline"}
    if base.key == record.key:
        return row | {"delta_reason": "is the baseline"}
    ours, theirs = record.accuracy.metrics[name], base.accuracy.metrics.get(name)
    if theirs is None or theirs.unit != ours.unit:
        return row | {"delta_reason": "the baseline has no such metric"}
    row["delta"] = ours.value - theirs.value
    scores = stats.sample_scores(name, record.accuracy.outcomes)
    base_scores = stats.sample_scores(name, base.accuracy.outcomes)
    if scores is None or base_scores is None or scores.shape != base_scores.shape:
        return row | {"delta_reason": "no paired outcomes"}
    scale = 100.0 if ours.unit == "%" else 1.0
    result = stats.paired_difference(scores, base_scores)
    # Outcomes that do not add up to the printed metric cannot give its interval.
    if abs(scale * result.value - row["delta"]) > 0.01 * scale / 100 + 1e-6:
        return row | {"delta_reason": "outcomes do not reproduce the metric"}
    row |= {"delta_low": scale * result.low, "delta_high": scale * result.high}
    return row | {"delta_p": result.p, "delta_reason": None}


def _merge_primary(rows: Sequence[Row], metrics: Sequence[Row]) -> None:
    primary = {entry["key"]: entry for entry in metrics if entry["primary"]}
    for row in rows:
        entry = primary.get(row["key"], {})
        row["metric"] = entry.get("metric")
        for name in ("value", "unit", "low", "high", "n"):
            row[f"accuracy_{name}"] = entry.get(name)
        for name in ("delta", "delta_low", "delta_high", "delta_p", "delta_reason"):
            row[name] = entry.get(name)
