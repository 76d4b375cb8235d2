"""Run a suite: skip what is done, have the rest measured, lose one cell at most.

A failed or out-of-memory cell is recorded with its reason and the run goes on; it is tried again by
the next run. Several runners may work on one results folder: each cell is claimed by one of them.
Who measures is up to `bench.runs.executors`; only this process writes records.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from rich.console import Console

from bench.measure.latency import using_threads
from bench.records.store import BUDGETS, Store
from bench.runs import executors
from bench.runs.driving import Driver, Summary
from bench.runs.executors import LOCAL, Backend, How
from bench.runs.planning import Agenda, PlannedCell
from bench.runs.progress import Display
from bench.runs.sharing import Taker
from bench.runs.spec import Document, Options, Suite


def run(
    suite: Suite,
    origin: Document | Options,
    results: Path,
    *,
    machine: str | None = None,
    command: str = "",
    quiet: bool = False,
    how: How = LOCAL,
) -> Summary:
    """Run what is missing of `suite` into `results`; Ctrl-C ends it with what was done.

    Raises:
        BenchError: a mistake in the suite, a results folder that cannot be written, weights or data
            that are missing or broken and leave nothing to run. All are found before any cell is
            measured.
    """
    start = time.monotonic()
    store = Store(results)
    store.check_writable()
    how.check()
    with using_threads(None), executors.opened(how) as backend:  # what the run sets is put back
        with Console(stderr=True, quiet=quiet).status("planning: data, weights, budgets"):
            agenda = backend.plan(suite, machine, results / BUDGETS, origin)
            todo = [planned for planned in agenda.cells if not _done(store, planned)]
            backend.check(todo)
        store.clean()
        for planned in todo:
            store.locks(planned.cell, planned.key, planned.machine)
        skipped = len(agenda.cells) - len(todo)
        summary = Summary(suite.name, cells=len(agenda.cells), skipped=skipped)
        folders = {str(store.path(p.cell, p.key, p.machine).parent) for p in agenda.cells}
        summary.records = ", ".join(sorted(folders))
        with Display(len(todo), skipped, quiet, how.events) as display:
            for line in _notes(agenda, how):
                display.note(line)
            kind = Driver if how.shard is None else Taker
            driver = kind(store, agenda, command, display, summary, how)
            try:
                _work(driver, todo, backend)
            except KeyboardInterrupt:
                summary.interrupted = True
            display.scores(driver.measured)
            display.note(_closing(summary))
    summary.seconds = time.monotonic() - start
    return summary


def _work(driver: Driver, todo: list[PlannedCell], backend: Backend) -> None:
    """Have each cell done that nobody else holds; what still runs at an error is ended."""
    with driver, closing(driver.jobs(todo)) as jobs, closing(backend.execute(jobs, driver)) as done:
        for one in done:
            driver.finish(one)


def _notes(agenda: Agenda, how: How) -> list[str]:
    """What a run says ahead of its cells: what is missing, what stands in, what is not divided."""
    missing = [f"- {reason}" for reason in agenda.resources.missing.values() if reason]
    head = "missing, so the rows that need it get their costs alone, on random weights:"
    notes = ["\n".join([head, *missing])] * bool(missing) + agenda.notes
    divided = how.shards > 1 or how.shard is not None
    if divided and any(planned.cell.precision is not None for planned in agenda.cells):
        notes.append("cells with a precision are not divided into shards: each is one job")
    return notes


def _closing(summary: Summary) -> str:
    text = f"{summary.ran} cells run, {summary.skipped} skipped, {summary.failed} failed"
    if summary.unsupported:
        text += f", {summary.unsupported} unsupported"
    return text + ("; interrupted, run again to go on" if summary.interrupted else "")


def _done(store: Store, planned: PlannedCell) -> bool:
    record = store.get(planned.cell, planned.key, planned.machine)
    return record is not None and record.done
