"""Run a suite as an array of runners: `run --on slurm`.

Each runner plans the suite where it is, so that this machine needs none of the hardware.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from functools import partial
from pathlib import Path

from bench.core.errors import BenchError
from bench.records.store import Store
from bench.runs import runner
from bench.runs.driving import Summary
from bench.runs.executors import How
from bench.runs.executors.slurm import DEFAULT_WORKERS, Array
from bench.runs.progress import Display
from bench.runs.spec import Document, Options, Suite


def run(
    suite: Suite,
    origin: Document | Options,
    results: Path,
    *,
    machine: str | None = None,
    command: str = "",
    quiet: bool = False,
    how: How,
) -> Summary:
    """Submit an array of runners on `results`, and wait for it; Ctrl-C ends the array.

    Raises:
        BenchError: an array cannot be submitted; or no runner came to its end, with what the first
            one said.
    """
    start, results = time.monotonic(), results.resolve()
    store = Store(results)
    store.check_writable()
    array = Array(results, dict(how.slurm))
    ours = How(time_limit=how.time_limit)
    function = partial(_runner, suite, origin, results, machine, command, ours)
    interrupted = False
    with Display(0, 0, quiet, how.events) as display:
        array.submit(function, how.workers or DEFAULT_WORKERS)
        display.note(f"{len(array.jobs)} runners submitted; their output is in {array.folder}")
        try:
            _follow(array, store, suite, display)
        except KeyboardInterrupt:
            interrupted = True
            array.cancel()
        failures = [] if interrupted else array.failures()
        for line in failures:
            display.note(line)
    said = [] if interrupted else array.results()
    done = [one for one in said if isinstance(one, Summary)]
    mistakes = list(dict.fromkeys(one for one in said if isinstance(one, str)))
    if not failures:
        array.clean()
    if not done and not interrupted:
        raise BenchError([*mistakes, *failures, "no runner came to its end"][0])
    summary = _sum(suite.name, done)
    summary.reasons |= {line.partition(":")[0]: line for line in failures}
    summary.failed += len(failures)
    summary.interrupted, summary.seconds = interrupted, time.monotonic() - start
    return summary


def _runner(
    suite: Suite,
    origin: Document | Options,
    results: Path,
    machine: str | None,
    command: str,
    how: How,
    number: int,
) -> Summary | str:
    """What each job of the array does: an ordinary run. Returns what it did, or a mistake."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is to be queued again
    try:
        return runner.run(
            suite, origin, results, machine=machine, command=command, quiet=True, how=how
        )
    except BenchError as error:
        return str(error)


def _follow(array: Array, store: Store, suite: Suite, display: Display) -> None:
    """Say how many records there are, as they come."""
    before = store.count(suite.name)
    told = 0
    for running in array.waited():
        written = store.count(suite.name) - before
        if written != told:
            told = written
            display.note(
                f"{written} records written, {running} of {len(array.jobs)} runners at work"
            )


def _sum(name: str, summaries: list[Summary]) -> Summary:
    """Return what an array of runners did together."""
    total = Summary(name)
    for one in summaries:
        total = dataclasses.replace(
            total,
            cells=max(total.cells, one.cells),
            ran=total.ran + one.ran,
            failed=total.failed + one.failed,
            unsupported=total.unsupported + one.unsupported,
            records=one.records or total.records,
            reasons={**total.reasons, **one.reasons},
        )
    total.skipped = max(0, total.cells - total.ran)
    return total
