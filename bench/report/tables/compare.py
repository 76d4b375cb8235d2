"""Compare two sets of records: what got better, what got worse, what is within noise.

Accuracy is compared sample by sample, speed by the paired ratios to the unreduced model of the same
run, so that a slower day does not read as a slower method. A speed-up has changed where it did by
more than two equal things differ in the two runs (A/A), and by a test. A quantity is compared where
all that it depends on is the same: MACs need the same model, method and samples, an accuracy the
same dtype and attention too, a timing the same threads and batch size besides. P values are
corrected by Holm's method among all comparisons of one kind; what is exactly as before is no
comparison.
"""

from __future__ import annotations

import io
import math
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import mannwhitneyu

from bench.core.errors import BenchError
from bench.records.record import Cost, Latency, Record
from bench.report.data import disturbed, equal, load, mixture
from bench.report.data.differences import correct, difference
from bench.report.data.names import metric_name
from bench.report.data.rows import MIB, Row, condition
from bench.report.data.scored import Scored
from bench.report.tables.table import escape
from bench.report.tables.verdicts import (
    KIND,
    by_method,
    is_same,
    missing,
    named,
    sections,
    verdict_line,
)

FOLDER = "results"  # what is looked for in a git revision
MEMORY_PCT = 2.0  # a smaller change of a single reading of peak memory says nothing
# Quantity, how to read it, decimals, and the largest change in percent that says nothing.
_COSTS: tuple[tuple[str, Callable[[Cost], float | None], int, float], ...] = (
    ("GMACs", lambda cost: cost.macs.total / 1e9 if cost.macs else None, 4, 0.0),
    ("Params M", lambda cost: cost.params.total / 1e6 if cost.params else None, 3, 0.0),
)
_MEMORY = ("peak MiB", lambda c: c.memory.peak_bytes / MIB if c.memory else None, 0, MEMORY_PCT)
# What a cell is measured under; looser and looser, where no cell of the other side is as alike.
_CONDITIONS = (
    ("profile", "dtype", "backend", "engine", "batch_sizes"),
    ("dtype", "backend", "engine"),
    (),
)
_HASHES = ("measurement", "weights", "method_source", "task_source", "files")
_UNLIKE = (
    "{} of them were measured under other conditions (profile, dtype, attention, engine, batch "
    "sizes): what depends on these is left out."
)


def compare(a: str, b: str) -> str:
    """Return as Markdown what changed from the records at `a` to those at `b`.

    Args:
        a: A results folder, a record file, or a git revision whose `results/` is meant.
        b: The same, the newer one.

    Raises:
        BenchError: If one of them is neither, or they have no cell in common.
    """
    old, new = (load.newest(_read(source))[0] for source in (a, b))
    machines = [{load.machine(record) for record in side} for side in (old, new)]
    both = _pairs(old, new, one_machine=bool(machines[0] & machines[1]))
    if not both:
        raise BenchError(
            f"no cell is in both {a} and {b}: compare runs of the same models, tasks and methods"
        )
    paired = {load.uid(record) for pair in both for record in pair}
    floors = equal.spreads(old), equal.spreads(new)
    rows = [row for pair in both for row in _changes(*pair, floors)]
    changes = [row for row in rows if not is_same(row)]
    for quantity in ("accuracy", "speed-up"):
        correct([row for row in changes if row["kind"] == quantity], KIND)
    changed = sum(_made(one) != _made(other) for one, other in both)
    unlike = sum(_condition(one) != _condition(other) for one, other in both)
    lines = [
        f"# {escape(a)} → {escape(b)}",
        f"{len(both)} cells in both; in {changed} of them code, weights or data changed. "
        f"Machines: {escape(', '.join(sorted(machines[0])))} → "
        f"{escape(', '.join(sorted(machines[1])))}.",
        *([_UNLIKE.format(unlike)] if unlike else []),
        *filter(None, [escape(mixture.remark([record for pair in both for record in pair]))]),
        *_same_records(both),
        verdict_line(changes),
        f"Exactly as before: {len(rows) - len(changes)} of {len(rows)} numbers.",
        *by_method(changes),
        *sections(changes),
        *missing(f"Only in {escape(a)}", [r for r in old if load.uid(r) not in paired]),
        *missing(f"Only in {escape(b)}", [r for r in new if load.uid(r) not in paired]),
    ]
    return "\n\n".join(lines)


def _read(source: str) -> list[Record]:
    if Path(source).exists():
        return load.read([Path(source)])[0]
    try:
        commit = _git("rev-parse", "--verify", "--end-of-options", source).decode().strip()
        archive = _git("archive", "--format=tar", commit, "--", FOLDER)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(
            f"'{source}' is neither a results folder nor a git revision that holds {FOLDER}/: "
            "name a folder that exists, or a commit (git log --oneline -- results)"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(folder, filter="data")  # refuses what would leave the folder
        except tarfile.TarError as error:
            raise BenchError(f"{FOLDER}/ of '{source}' cannot be read: {error}") from error
        return load.read([Path(folder)])[0]


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout


def _pairs(
    old: Sequence[Record], new: Sequence[Record], one_machine: bool
) -> list[tuple[Record, Record]]:
    """Return the records of the same cells, each with the one measured most alike.

    Args:
        old: the newest records of one side.
        new: those of the other.
        one_machine: pair those of one machine; otherwise it is machines that are compared.
    """

    def name(record: Record, fields: Sequence[str]) -> tuple[Any, ...]:
        conditions = [getattr(record.cell, field) for field in fields]
        return (load.machine(record) if one_machine else "", _cell(record), *conditions)

    pairs: dict[str, tuple[Record, Record]] = {}
    rest = list(new)
    for fields in _CONDITIONS:
        there = {name(record, fields): record for record in rest}
        for record in old:
            if load.uid(record) not in pairs and (other := there.pop(name(record, fields), None)):
                pairs[load.uid(record)] = record, other
                rest.remove(other)
    return [pairs[load.uid(record)] for record in old if load.uid(record) in pairs]


def _cell(record: Record) -> str:
    """Name what a cell is, under whatever conditions it was measured."""
    cell = replace(record.cell, profile="", dtype=None, backend=None, engine="", batch_sizes=None)
    return load.cell_identity(replace(record, cell=cell))


def _condition(record: Record) -> tuple[Any, ...]:
    return tuple(getattr(record.cell, field) for field in _CONDITIONS[0])


def _made(record: Record) -> list[Any]:
    """Return the code, weights and data that a record comes from: hashes, None where unknown."""
    known = record.provenance
    return [known.get("task_version"), *(known.get(f"{name}_sha256") for name in _HASHES)]


def _same_records(both: Sequence[tuple[Record, Record]]) -> Iterator[str]:
    """Warn of records that stand on both sides, which a comparison says nothing of."""
    same = sum(one == other for one, other in both)
    if same:
        yield (
            f"**{same} of these cells are the same records on both sides**, measured once: nothing "
            "of them can differ."
        )


def _changes(
    old: Record, new: Record, floors: tuple[equal.Spreads, equal.Spreads]
) -> Iterator[Row]:
    """Yield a row for each quantity that both records have, or for a change of their status."""
    if "ok" not in (old.status, new.status):
        return
    if old.status != new.status:
        values = {"old": old.status, "new": new.status, KIND: None, f"{KIND}_p": None}
        yield _row(old, "status", "status") | values | {"sign": 1 if new.status == "ok" else -1}
        return
    yield from _accuracy(old, new)
    yield from _speed(old, new, floors)
    yield from _cost(old, new)


def _row(record: Record, kind: str, quantity: str) -> Row:
    row: Row = {"cell": named(record), "method": record.cell.method, "kind": kind}
    row |= {"quantity": quantity, "is_baseline": False, "band": ""}
    return row | {"reason": None, f"{KIND}_p_holm": None}


def _accuracy(old: Record, new: Record) -> Iterator[Row]:
    name = new.accuracy.primary
    if name is None or name not in old.accuracy.metrics or not _same_numerics(old, new):
        return
    values = [one.accuracy.metrics[name] for one in (old, new)]
    row = _row(new, "accuracy", f"{metric_name(name)} {values[1].unit}")
    row |= difference(Scored(new, {}), Scored(old, {}), name, KIND, "the other run")
    row |= {"old": f"{values[0].value:.1f}", "new": f"{values[1].value:.1f}", "sign": 1}
    yield row | {"unit": "", "reason": row[f"{KIND}_reason"]}


def _speed(old: Record, new: Record, floors: tuple[equal.Spreads, equal.Spreads]) -> Iterator[Row]:
    before = {(condition(entry), entry.batch): entry for entry in old.cost.latency}
    for entry in new.cost.latency:
        other = before.get((condition(entry), entry.batch))
        if other is None or new.cell.baseline:
            continue
        values = other.speedup.median, entry.speedup.median
        row = _row(new, "speed-up", f"speed-up, b{entry.batch}") | {"sign": 1, "unit": "%"}
        row |= {"old": f"{values[0]:.2f}×", "new": f"{values[1]:.2f}×"}
        row[KIND] = 100 * (values[1] / values[0] - 1)
        if other.disturbed or entry.disturbed:
            yield row | {f"{KIND}_p": None, "reason": disturbed.LOAD}
            continue
        timing = equal.at_batch(entry.batch)
        halves = [equal.half(*side, timing) or 0.0 for side in zip(floors, (old, new), strict=True)]
        within = abs(math.log(values[1] / values[0])) <= math.hypot(*map(math.log1p, halves))
        p = 1.0 if within else float(mannwhitneyu(_ratios(other), _ratios(entry)).pvalue)
        yield row | {f"{KIND}_p": p}


def _ratios(entry: Latency) -> list[float]:
    pairs = zip(entry.baseline_samples_ms, entry.samples_ms, strict=True)
    return [base / ours for base, ours in pairs]


def _cost(old: Record, new: Record) -> Iterator[Row]:
    """Yield what has no noise to speak of: MACs and parameters; and memory, read once."""
    one, other = old.cost.memory, new.cost.memory
    alike = one and other and (one.batch, one.how) == (other.batch, other.how)
    memory = [_MEMORY] if alike and _same_numerics(old, new) else []
    for name, read, digits, least in (*_COSTS, *memory):
        before, after = read(old.cost), read(new.cost)
        if before and after:
            row = _row(new, name, name) | {"sign": -1, "unit": "%"}
            row |= {"old": f"{before:.{digits}f}", "new": f"{after:.{digits}f}"}
            row[KIND] = 100 * (after / before - 1)
            yield row | {f"{KIND}_p": None, f"{KIND}_p_holm": float(abs(row[KIND]) <= least)}


def _same_numerics(old: Record, new: Record) -> bool:
    return (old.cell.dtype, old.cell.backend) == (new.cell.dtype, new.cell.backend)
