"""Turn records into a report's data: one row a finished cell, and what belongs to it.

Cells that did not finish are kept apart with their reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

from bench.core.errors import BenchError, near_miss
from bench.records.record import ENGINES, Record
from bench.report.data import (
    bands,
    differences,
    disturbed,
    equal,
    grouping,
    hard,
    load,
    mixture,
    ties,
)
from bench.report.data.bands import by_band
from bench.report.data.names import task_name
from bench.report.data.rows import Row, cell_row, failure_row, latency_rows, token_rows
from bench.report.data.scored import Scored


@dataclass(frozen=True)
class Frames:
    """A report's data.

    Attributes:
        cells: One row a finished cell: what it was, primary accuracy, MACs, parameters, memory.
            ``group`` names the table it belongs to, ``key`` what else is known of it.
        scores: By cell: one row a metric, with the paired differences.
        timings: By cell: one row a batch size and condition (device, dtype, backend, threads).
        counts: By cell: one row a tower and layer; layer 0 is the input of the first block.
        failed: One row a cell that did not finish, with its reason.
        records: The records that all of this was made from.
        notes: What a reader should know about the records themselves.
        baseline: The method (or label) that differences refer to.
        spreads: What each suite's measurement says of two equal things.
    """

    cells: list[Row]
    scores: dict[str, list[Row]]
    timings: dict[str, list[Row]]
    counts: dict[str, list[Row]]
    failed: list[Row]
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    baseline: str
    spreads: equal.Spreads

    @property
    def older(self) -> str:
        """How many records an earlier version of the measuring code took; empty where none."""
        return mixture.older(self.records)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The names of all methods, sorted."""
        return tuple(sorted({record.cell.method for record in self.records}))

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The models, sorted; one that was fine-tuned under several seeds is a single one."""
        finished = {row["model"].removesuffix(grouping.TUNED) for row in self.cells}
        return tuple(sorted(finished | {row["model"] for row in self.failed}))

    @cached_property
    def series(self) -> tuple[str, ...]:
        """What curves are about: methods with parameters that are no budget, sorted."""
        return tuple(sorted({row["method"] for row in self.cells}))

    @cached_property
    def leaders(self) -> tuple[str, ...] | None:
        """The series in the order of how often each is among the best of a band.

        Of equals the one first that is more accurate in the mean; None where nothing was scored.
        """
        rivals = [row for row in self.cells if not row["is_baseline"]]
        if all(row["accuracy_value"] is None for row in rivals):
            return None

        def order(name: str) -> tuple[Any, ...]:
            rows = [row for row in rivals if row["method"] == name]
            accuracies = [row["accuracy_value"] or 0.0 for row in rows]
            wins = sum(bool(row[ties.BEST]) for row in rows)
            return -wins, -sum(accuracies) / len(accuracies), name

        return tuple(sorted({row["method"] for row in rivals}, key=order))

    @cached_property
    def by_uid(self) -> dict[str, Record]:
        """The records by the name that rows call `key`."""
        return {load.uid(record): record for record in self.records}

    @cached_property
    def by_group(self) -> dict[str, list[Row]]:
        """Each table's rows: the baseline first, by band of MACs, the most accurate first."""
        groups: dict[str, list[Row]] = {}
        for row in self.cells:
            shown = self.baseline if row["is_baseline"] else row["band"]
            groups.setdefault(row["group"], []).append(row | {"band": shown})
        return {name: sorted(rows, key=by_band) for name, rows in groups.items()}

    def groups(self) -> list[str]:
        """Return the tables that headlines, figures and overviews are about.

        Not those of fine-tuned models: their seeds are no settings, the best seed is no finding.
        """
        return [name for name, rows in self.by_group.items() if "recipe" not in rows[0]]

    @cached_property
    def by_engine(self) -> list[dict[str, str]]:
        """Of `groups`, by engine, those that differ in nothing else; eager first."""
        alike: dict[tuple[Any, ...], dict[str, str]] = {}
        names = [name for name in grouping.GROUP if name != "engine"]
        for group in self.groups():
            row = self.by_group[group][0]
            alike.setdefault(tuple(row.get(n) for n in names), {})[row["engine"]] = group
        return [
            {e: groups[e] for e in sorted(groups, key=ENGINES.index)} for groups in alike.values()
        ]

    def accuracies(self) -> list[str]:
        """Return those of `groups` that accuracies are told of: of engines the one with most cells.

        Accuracies are the eager pass's under every engine.
        """

        def cells(group: str) -> int:
            return len(self.by_group[group])

        return [max(groups.values(), key=cells) for groups in self.by_engine]

    def remark(self, *groups: str) -> str:
        """Say what the cells of some tables do not have in common; empty where nothing."""
        rows = [row for group in groups for row in self.by_group[group]]
        return mixture.remark([self.by_uid[row["key"]] for row in rows])

    @cached_property
    def names(self) -> dict[str, str]:
        """The short names that suites give models and tasks, by their own."""
        return {own: short for r in self.records for own, short in r.cell.names.items()}

    def named(self, name: str) -> str:
        """Name a model or task by its short name, if it has one."""
        return self.names.get(name, name)

    def subject(self, row: Row) -> str:
        """Name the model and task of a row."""
        return f"{self.named(row['model'])} · {task_name(self.named(row['task']))}"

    def title(self, group: str) -> str:
        """Name a table by its model and task, and by whatever else tells it from the others."""
        row = self.by_group[group][0]
        variety = self._variety[row["model"], row["task"]]
        parts = [self.subject(row)]
        telling = (
            "machine",
            "profile",
            "dtype",
            "backend",
            "engine",
            "how",
            "macs_scope",
            "recipe",
        )
        for name in telling:
            if len(variety[name]) > 1 and row.get(name):
                parts.append(str(row[name]))
        if len(variety["random_weights"]) > 1 and row["random_weights"]:
            parts.append("random weights")
        if len(variety["limit"]) > 1:
            limit = row["limit"]
            parts.append("all samples" if limit is None else f"limit of {limit} samples")
        if len(variety["precision"]) > 1 and row["precision"] is not None:
            parts.append(f"until ±{row['precision']:g}")
        return " · ".join(parts)

    @cached_property
    def _variety(self) -> dict[tuple[str, str], dict[str, set[Any]]]:
        """The values that each column takes among the cells of a model and task."""
        values: dict[tuple[str, str], dict[str, set[Any]]] = {}
        for row in self.cells:
            place = values.setdefault((row["model"], row["task"]), {})
            for name in grouping.GROUP:
                place.setdefault(name, set()).add(row.get(name))
        return values

    def timed(self, rows: Iterable[Row]) -> list[Row]:
        """Return the timings of some rows."""
        return [entry for row in rows for entry in self.timings.get(row["key"], ())]


def build(
    records: Sequence[Record],
    *,
    baseline: str = "none",
    notes: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> Frames:
    """Build a report's data, in an order that depends on the records' content only.

    Args:
        records: Records from old to new.
        baseline: Method name (or a cell's label) that accuracies are compared with.
        notes: Notes to pass on.
        methods: Methods to keep beside the baseline, after all have been compared; none: all.

    Raises:
        BenchError: If a baseline other than the default, or a method, occurs in no record.
    """
    kept, outdated = load.newest(records)
    names = {record.cell.method for record in kept}
    for method in methods:
        _check("method", method, names)
    if baseline != "none":
        _check("baseline", baseline, names | {record.cell.label for record in kept})
    done = [record for record in kept if record.status == "ok"]
    cells = _cells(done, baseline)
    _check_single(cells, baseline)
    by_uid = {load.uid(record): record for record in done}
    scored = [Scored(by_uid[row["key"]], row) for row in cells]
    scores = differences.metrics(scored)
    ties.judge(scored, scores)
    hard.split(scored)
    if methods:
        kept = [r for r in kept if {r.cell.method, r.cell.label} & {*methods, baseline}]
        shown = {load.uid(record) for record in kept}
        cells = [row for row in cells if row["key"] in shown]
    failed = [failure_row(record) for record in kept if record.status != "ok"]
    older = f"older results of the same cells, set aside: {outdated}" if outdated else None
    spreads, keys = equal.spreads(records), [row["key"] for row in cells]
    beside_load = disturbed.note([by_uid[key] for key in keys])
    return Frames(
        cells,
        {key: scores[key] for key in keys},
        {key: timings_of(by_uid[key], spreads) for key in keys},
        {key: token_rows(by_uid[key]) for key in keys},
        sorted(failed, key=lambda row: [str(value) for value in row.values()]),
        tuple(kept),
        tuple(filter(None, (*notes, *_named(kept), older, beside_load))),
        baseline,
        spreads,
    )


def _named(records: Sequence[Record]) -> list[str]:
    """Say what short names stand for."""
    lines = (f"{short}: {own}" for r in records for own, short in r.cell.names.items())
    return list(dict.fromkeys(lines))


def _cells(records: Sequence[Record], baseline: str) -> list[Row]:
    """Return one row a finished cell, in reading order."""
    places, rows = grouping.places(records), []
    for record in records:
        place = places[load.uid(record)]
        row = cell_row(record, place.group, place.common, baseline, place.extra)
        rows.append(row | {"seed": place.seed})
    for _, table in groupby(rows := sorted(rows, key=_reading_order), itemgetter("group")):
        bands.place(list(table))
    return rows


def timings_of(record: Record, spreads: equal.Spreads) -> list[Row]:
    """Return a cell's timings, each with how far from 1 its suite finds two equal things."""
    return [
        row | {"aa_half_x": equal.half(spreads, record, equal.at_batch(row["batch"]))}
        for row in latency_rows(record)
    ]


def _check(what: str, name: str, names: set[str]) -> None:
    if name not in names:
        raise BenchError(f"no record of the {what} '{name}'{near_miss(name, sorted(names))}")


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
    cost = -(-1.0 if row["gmacs"] is None else row["gmacs"])
    names = row["setting"], row["key"]
    return (row["group"], not row["is_baseline"], row["method"], cost, *names)
