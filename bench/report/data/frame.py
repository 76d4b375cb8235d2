"""Turn records into tidy data frames: one row a finished cell, units in the column names.

Cells that did not finish are kept apart with their reasons. Whatever a record lacks is a missing
value here, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from bench.core.errors import BenchError
from bench.records.record import Record
from bench.report.ablation import tuned
from bench.report.data import differences, disturbed, equal, grouping, load, mixture
from bench.report.data.rows import (
    FAILURE_COLUMNS,
    LATENCY_COLUMNS,
    METRIC_COLUMNS,
    TOKEN_COLUMNS,
    Row,
    cell_row,
    failure_row,
    latency_rows,
    rows_of,
    setting,
    token_rows,
)
from bench.report.figures import style

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
        spreads: What each suite's measurement says of two equal things.
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
    spreads: Mapping[equal.Key, equal.Spread] = field(default_factory=dict)

    @property
    def older(self) -> str:
        """How many records an earlier version of the measuring code took; empty where none."""
        return mixture.older(self.records)

    def remark(self, *groups: str) -> str:
        """Say what the cells of some tables do not have in common; empty where nothing."""
        rows = [row for group in groups for row in self.by_group[group]]
        return mixture.remark([self.by_uid[row["key"]] for row in rows])

    @cached_property
    def by_uid(self) -> dict[str, Record]:
        """The records by the name that rows call `key`."""
        return {load.uid(record): record for record in self.records}

    # Taken apart once: a report asks for them again and again.
    @cached_property
    def by_group(self) -> dict[str, list[Row]]:
        """The cells by table."""
        return _by("group", self.cells)

    @cached_property
    def scores(self) -> dict[str, list[Row]]:
        """The metrics by cell."""
        return _by("key", self.metrics)

    @cached_property
    def timings(self) -> dict[str, list[Row]]:
        """The timings by cell."""
        return _by("key", self.latency)

    @cached_property
    def counts(self) -> dict[str, list[Row]]:
        """The token counts by cell."""
        return _by("key", self.tokens)

    @cached_property
    def looks(self) -> dict[str, style.Look]:
        """Every method's colour and marker."""
        return style.looks({record.cell.method for record in self.records})

    @cached_property
    def variety(self) -> dict[Any, dict[str, int]]:
        """How many values each column takes among the cells of a model and task."""
        cells = self.cells.groupby(["model", "task"])[list(grouping.GROUP)]
        found: dict[Any, Any] = cells.nunique(dropna=False).to_dict("index")
        return found

    def groups(self) -> list[str]:
        """Return the names of the tables, in reading order."""
        return [name for name in self.by_group if name not in self.apart]


def build(
    records: Sequence[Record],
    *,
    baseline: str = "none",
    notes: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> Frames:
    """Build a report's frames.

    Args:
        records: Records from old to new.
        baseline: Method name (or a cell's label) that accuracies are compared with.
        notes: Notes to pass on.
        methods: Methods to keep beside the baseline, after all have been compared; none: all.

    Returns:
        The frames, in an order that depends on the records' content only.

    Raises:
        BenchError: If a baseline other than the default, or a method, occurs in no record.
    """
    kept, outdated = load.newest(records)
    _check_baseline(kept, baseline)
    _check_methods(kept, methods)
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
    metrics = differences.metrics(done, cells)
    if methods:
        kept = [r for r in kept if {r.cell.method, r.cell.label} & {*methods, baseline}]
        shown = {load.uid(record) for record in kept}
        done = [record for record in done if load.uid(record) in shown]
        cells, metrics = ([r for r in own if r["key"] in shown] for own in (cells, metrics))
    failed = [failure_row(record) for record in kept if record.status != "ok"]
    failed.sort(key=lambda row: [str(value) for value in row.values()])
    older = [f"older results of the same cells, set aside: {outdated}"] if outdated else []
    spreads, beside_load = equal.spreads(records), disturbed.note(done)
    return Frames(
        pd.DataFrame(cells),
        _frame(metrics, METRIC_COLUMNS),
        _frame([row for record in done for row in _timings(record, spreads)], LATENCY_COLUMNS),
        _frame([row for record in done for row in token_rows(record)], TOKEN_COLUMNS),
        _frame(failed, FAILURE_COLUMNS),
        tuple(kept),
        (*notes, *older, *([beside_load] if beside_load else [])),
        baseline,
        frozenset(row["group"] for row in cells if row["model"] in lone),
        spreads,
    )


def _timings(record: Record, spreads: Mapping[equal.Key, equal.Spread]) -> list[Row]:
    """Return a cell's timings, each with what its suite says of two equal things."""
    return [
        row | {"aa_half_x": equal.half(spreads, record, equal.at_batch(row["batch"]))}
        for row in latency_rows(record)
    ]


def _frame(rows: Sequence[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Make a frame that has its columns even where it has no rows."""
    return pd.DataFrame(list(rows), columns=list(columns))


def _by(name: str, frame: pd.DataFrame) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows_of(frame):
        found.setdefault(row[name], []).append(row)
    return found


def _check_baseline(records: Sequence[Record], baseline: str) -> None:
    names = {record.cell.method for record in records} | {record.cell.label for record in records}
    if baseline != "none" and baseline not in names:
        from bench.core.errors import near_miss

        raise BenchError(
            f"no record of the baseline '{baseline}'{near_miss(baseline, sorted(names))}"
        )


def _check_methods(records: Sequence[Record], methods: Sequence[str]) -> None:
    names = {record.cell.method for record in records}
    for method in methods:
        if method not in names:
            from bench.core.errors import near_miss

            raise BenchError(
                f"no record of the method '{method}'{near_miss(method, sorted(names))}"
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
