"""Compare two sets of records: what got better, what got worse, what is within noise.

Accuracy is compared sample by sample, speed by the paired ratios to the unreduced model of the same
run, so that a slower day does not read as a slower method. A quantity is compared where all that it
depends on is the same: MACs need the same model, method and samples, an accuracy the same dtype and
attention too, a timing the same threads and batch size besides. P values are corrected by Holm's
method among all comparisons of one kind; what is exactly as before is no comparison.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from scipy.stats import mannwhitneyu

from bench.core.errors import BenchError
from bench.records.record import Cost, Latency, Record
from bench.report.data import disturbed, load, mixture, stats
from bench.report.data.differences import Scored, correct, difference
from bench.report.data.names import metric_name, setting, task_name
from bench.report.data.rows import MIB, Row, condition
from bench.report.tables.table import MISSING, Column, Table, escape, signed, words

FOLDER = "results"  # what is looked for in a git revision
MEMORY_PCT = 2.0  # a smaller change of a single reading of peak memory says nothing
KIND = "change"
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
VERDICTS = ("Better", "Worse", "Within noise", "Not judged")


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
    rows = [row for pair in both for row in _changes(*pair)]
    changes = [row for row in rows if not _is_same(row)]
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
        f"Exactly as before: {len(rows) - len(changes)} of {len(rows)} numbers.",
        *_sections(changes),
        *_missing(f"Only in {escape(a)}", [r for r in old if load.uid(r) not in paired]),
        *_missing(f"Only in {escape(b)}", [r for r in new if load.uid(r) not in paired]),
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


def _changes(old: Record, new: Record) -> Iterator[Row]:
    """Yield a row for each quantity that both records have, or for a change of their status."""
    if "ok" not in (old.status, new.status):
        return
    if old.status != new.status:
        values = {"old": old.status, "new": new.status, KIND: None, f"{KIND}_p": None}
        yield _row(old, "status", "status") | values | {"sign": 1 if new.status == "ok" else -1}
        return
    yield from _accuracy(old, new)
    yield from _speed(old, new)
    yield from _cost(old, new)


def _row(record: Record, kind: str, quantity: str) -> Row:
    row = {"cell": _named(record), "kind": kind, "quantity": quantity}
    return row | {"reason": None, f"{KIND}_p_holm": None}


def _named(record: Record) -> str:
    cell = record.cell
    params = setting(cell.params)
    return f"{cell.model} · {task_name(cell.task)} · {cell.method} {params}".strip()


def _accuracy(old: Record, new: Record) -> Iterator[Row]:
    name = new.accuracy.primary
    if name is None or name not in old.accuracy.metrics or not _same_numerics(old, new):
        return
    values = [one.accuracy.metrics[name] for one in (old, new)]
    row = _row(new, "accuracy", f"{metric_name(name)} {values[1].unit}")
    row |= difference(Scored(new, {}), Scored(old, {}), name, KIND, "the other run")
    row |= {"old": f"{values[0].value:.1f}", "new": f"{values[1].value:.1f}", "sign": 1}
    yield row | {"unit": "", "reason": row[f"{KIND}_reason"]}


def _speed(old: Record, new: Record) -> Iterator[Row]:
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
        yield row | {f"{KIND}_p": float(mannwhitneyu(_ratios(other), _ratios(entry)).pvalue)}


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


def _verdict(row: Row) -> str:
    if row["kind"] == "status":
        return "Better" if row["sign"] > 0 else "Worse"
    if row["reason"] or row[f"{KIND}_p_holm"] is None:
        return "Not judged"
    if row[f"{KIND}_p_holm"] >= stats.LEVEL:
        return "Within noise"
    return "Better" if row["sign"] * row[KIND] > 0 else "Worse"


def _is_same(row: Row) -> bool:
    return bool(row[KIND] == 0 and row["old"] == row["new"])


def _sections(rows: Sequence[Row]) -> Iterator[str]:
    for verdict in VERDICTS:
        judged = [row for row in rows if _verdict(row) == verdict]
        if not judged:
            if verdict in VERDICTS[:2]:
                yield f"## {verdict}: nothing"
            continue
        judged.sort(key=lambda row: (row["kind"], -abs(row[KIND] or 0.0), row["cell"]))
        columns = [
            *(words(head, head.lower()) for head in ("Cell", "Quantity")),
            Column("A", "old", itemgetter("old")),
            Column("B", "new", itemgetter("new")),
            Column("Change", KIND, _change),
            words("Why", "reason")
            if verdict == "Not judged"
            else Column("p by Holm", f"{KIND}_p_holm", _p),
        ]
        yield f"## {verdict}: {len(judged)}"
        yield Table(verdict, "", columns, judged).shown


def _change(row: Row) -> str:
    if row[KIND] is None:
        return MISSING
    return f"{signed(row[KIND], 1)} {row['unit']}".strip()


def _p(row: Row) -> str:
    return MISSING if row[f"{KIND}_p"] is None else f"{row[f'{KIND}_p_holm']:.3f}"


def _missing(head: str, records: Sequence[Record]) -> Iterator[str]:
    if records:
        yield f"## {head}: {len(records)}"
        yield "\n".join(f"- {escape(_named(record))}" for record in records)
