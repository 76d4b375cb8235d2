"""Shards without a driver over them: each run takes one, into files, and `merge` makes the records.

    run_bench.py run --suite standard --shard 1/4      # and 2/4, 3/4, 4/4: anywhere, in any order
    run_bench.py merge                                 # times what they took, writes the records

`results/MACHINE/SUITE/.shards/KEY12.1-4` is a line of JSON, which says what was planned, and behind
it the answers; none of a cell that cannot be divided, which `merge` runs whole.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.core.errors import BenchError
from bench.measure import profiles
from bench.measure.latency import using_threads
from bench.records import files
from bench.records.sources import is_current
from bench.records.store import KEY_CHARACTERS, SHARDS, Store
from bench.runs import keys
from bench.runs.driving import Driver, Open, Summary, divisible
from bench.runs.executors import LOCAL, How
from bench.runs.executors.local import in_process
from bench.runs.jobs import Done, Job
from bench.runs.planning import Agenda, PlannedCell
from bench.runs.progress import Display
from bench.runs.resources import Resources
from bench.runs.shards import Shard

MERGED = "merged"  # the name that a summary of `merge` has in a suite's place


def file_of(store: Store, planned: PlannedCell, shard: Shard) -> Path:
    """Return where the answers of a shard are kept."""
    name = f"{planned.key[:KEY_CHARACTERS]}.{shard.number}-{shard.of}"
    return store.path(planned.cell, planned.key, planned.machine).parent / SHARDS / name


class Taker(Driver):
    """A driver that hands out one shard of each cell, and keeps its answers in a file."""

    def _taken_care_of(self, planned: PlannedCell) -> bool:
        return file_of(self.store, planned, self.shard).exists()

    def _jobs_of(self, planned: PlannedCell, claim: ExitStack) -> Iterator[Job]:
        self.open[planned.key] = Open(planned, claim)
        job = Job(planned, self.shard, command=self.command)
        if divisible(planned):
            yield job
        else:
            self.begin(job, "")
            self.finish(Done(job, undivided=True))

    @property
    def shard(self) -> Shard:
        """The one that is taken."""
        assert self.how.shard is not None
        return self.how.shard

    def finish(self, done: Done) -> None:
        """Keep a shard's answers; of one that failed the summary has the reason."""
        planned = done.job.planned
        status, reason = "ok", "not divided: merge runs it" if done.undivided else None
        if done.record is not None:
            status, reason = done.record.status, done.record.reason
            self.summary.failed += status in ("failed", "oom")
        if status in ("ok", "unsupported"):  # merge finds out again what is not supported
            self._keep(planned, done.answers or b"")
        if reason:
            self.summary.reasons[file_of(self.store, planned, self.shard).name] = reason
        self.summary.ran += 1
        self.display.end(status, reason, done.job.name)
        self.open.pop(planned.key).claim.close()

    def _keep(self, planned: PlannedCell, answers: bytes) -> None:
        head = {"planned": dataclasses.asdict(planned), "shard": dataclasses.asdict(self.shard)}
        line = json.dumps(head, default=str).encode() + b"\n"
        files.write_bytes_atomic(file_of(self.store, planned, self.shard), line + answers)


@dataclass(frozen=True)
class Kept:
    """A shard's file: what was planned, which shard it is, and where its answers begin."""

    path: Path
    planned: PlannedCell
    shard: Shard

    @staticmethod
    def read(path: Path) -> Kept:
        """Return what a file's first line says; raises BenchError where that is nothing."""
        try:
            with path.open("rb") as file:
                head = json.loads(file.readline())
            return Kept(path, _planned().validate_python(head["planned"]), Shard(**head["shard"]))
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise BenchError(f"{path}: not a shard's file; remove it") from error

    @property
    def answers(self) -> bytes:
        """What the model said; nothing of a cell that is not divided."""
        return self.path.read_bytes().partition(b"\n")[2]


@functools.cache
def _planned() -> Any:
    return TypeAdapter(PlannedCell)


class Merger(Driver):
    """A driver that hands out cells with the answers that shards have kept."""

    def __init__(self, kept: dict[str, list[Kept]], *arguments: Any) -> None:
        """Know the files of each cell, by its key."""
        super().__init__(*arguments)
        self.kept = kept

    def _jobs_of(self, planned: PlannedCell, claim: ExitStack) -> Iterator[Job]:
        cell = self.open[planned.key] = Open(planned, claim)
        answers = {kept.shard.number: kept.answers for kept in self.kept[planned.key]}
        cell.answers = answers if all(answers.values()) else {}
        yield self._cell(cell)

    def finish(self, done: Done) -> None:
        """Write the record, then remove the files that it was made of."""
        super().finish(done)
        for kept in self.kept[done.job.planned.key]:
            if done.record is not None and done.record.done:
                files.remove(kept.path)


def merge(results: Path, command: str = "", quiet: bool = False, how: How = LOCAL) -> Summary:
    """Measure the cells whose shards are all in `results`, and write their records.

    Raises:
        BenchError: there are no shards, or they were not taken with this code, these libraries and
            this kind of machine.
    """
    start, store = time.monotonic(), Store(results)
    store.check_writable()
    whole, partial = _sorted(sorted(results.glob(f"*/*/{SHARDS}/*")))
    if not whole and not partial:
        raise BenchError(f"no shards in {results}: take them with run --shard 1/4, 2/4, …")
    cells = [kept[0].planned for kept in whole.values()]
    cells.sort(key=lambda planned: not planned.cell.baseline)
    summary = Summary(MERGED, cells=len(cells), failed=len(partial), reasons=partial)
    with using_threads(None), Display(len(cells), 0, quiet, how.events) as display:
        for name, reason in partial.items():
            display.note(f"{name}: {reason}")
        resources = Resources()
        agenda = Agenda(cells, resources)
        driver = Merger(whole, store, agenda, command, display, summary, how)
        try:
            with driver:
                for done in in_process(driver.jobs(cells), driver, resources):
                    driver.finish(done)
        except KeyboardInterrupt:
            summary.interrupted = True
        display.scores(driver.measured)
    summary.records = ", ".join(sorted({str(_folder(store, p)) for p in cells}))
    summary.seconds = time.monotonic() - start
    return summary


def _folder(store: Store, planned: PlannedCell) -> Path:
    return store.path(planned.cell, planned.key, planned.machine).parent


def _sorted(paths: list[Path]) -> tuple[dict[str, list[Kept]], dict[str, str]]:
    """Return the shards of cells that are complete, by key; and what others lack, by file name."""
    divisions: dict[tuple[str, int], list[Kept]] = {}
    for path in paths:
        if path.name.startswith("."):
            continue
        kept = Kept.read(path)
        divisions.setdefault((kept.planned.key, kept.shard.of), []).append(kept)
    whole: dict[str, list[Kept]] = {}
    partial: dict[str, str] = {}
    for (key, of), kept_ones in divisions.items():
        _check(kept_ones[0])
        there = {kept.shard.number for kept in kept_ones}
        lacking = [str(number) for number in range(1, of + 1) if number not in there]
        if not lacking:
            whole[key] = kept_ones
        else:
            cell = kept_ones[0].planned.cell
            shown = ", ".join(lacking[:10]) + (", …" if len(lacking) > 10 else "")
            partial[f"{cell.label} on {cell.model}, {cell.task}"] = f"of {of} shards lacks {shown}"
    return whole, partial


def _check(kept: Kept) -> None:
    """Raise BenchError where a shard was taken under other conditions than there are here."""
    planned = kept.planned
    here = keys.key_of(planned.cell, planned.profile, planned.machine, planned.provenance)
    if (
        not is_current(planned.provenance)
        or here != planned.key
        or profiles.load(planned.profile.name) != planned.profile
    ):
        raise BenchError(
            f"{kept.path}: taken with other code, libraries, threads or hardware than here: merge "
            "where it was taken, or take it again"
        )
