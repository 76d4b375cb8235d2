"""Run a suite: skip what is done, measure the rest, write one record a cell, lose one at most.

A failed or out-of-memory cell is recorded with its reason and the run goes on; it is tried again by
the next run. Several runners may work on one results folder: each cell is claimed by one of them.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.records import machine as this
from bench.runs import planning
from bench.runs.cell import Measurement, count_into, measure_into
from bench.core.errors import BenchError, Unsupported
from bench.runs.planning import Plan, Planned
from bench.runs.progress import Display
from bench.records.record import Accuracy, Record, Status
from bench.runs.session import Session
from bench.runs.spec import Document, Options, Suite
from bench.records.store import BUDGETS, Store

POLL_SECONDS = 1.0  # between looks at a cell that another runner holds


@dataclass
class Summary:
    """What a run did; the command line prints it as its last line."""

    suite: str
    cells: int = 0
    ran: int = 0
    skipped: int = 0
    failed: int = 0  # out of memory included
    unsupported: int = 0
    interrupted: bool = False
    records: str = ""
    report: str | None = None
    seconds: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}


@dataclass
class Run:
    """The state of one run."""

    store: Store
    plan: Plan
    machines: dict[str, str]
    command: str
    display: Display
    summary: Summary
    started: str = field(default_factory=lambda: _now())


def run(
    suite: Suite,
    origin: Document | Options,
    results: Path,
    *,
    machine: str | None = None,
    command: str = "",
    quiet: bool = False,
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
    planning.check(suite, origin)
    with _threads():
        with Console(stderr=True, quiet=quiet).status("planning: data, weights, budgets"):
            plan, machines = planning.plan(suite, machine, results / BUDGETS)
        store.clean()
        todo = [p for p in plan.cells if not _done(store, p, machines)]
        skipped = len(plan.cells) - len(todo)
        summary = Summary(suite.name, cells=len(plan.cells), skipped=skipped)
        folders = {
            str(store.path(p.cell, p.key, machines[p.profile.name]).parent) for p in plan.cells
        }
        summary.records = ", ".join(sorted(folders))
        with Display(len(todo), skipped, quiet) as display:
            missing = [f"- {why}" for why in plan.missing.values() if why]
            if missing:
                said = "missing, so the rows that need it get their costs alone, on random weights:"
                display.note("\n".join([said, *missing]))
            state = Run(store, plan, machines, command, display, summary)
            try:
                _work(state, todo)
            except KeyboardInterrupt:
                summary.interrupted = True
        display.note(_closing(summary))
    summary.seconds = time.monotonic() - start
    return summary


def _closing(summary: Summary) -> str:
    text = f"{summary.ran} cells run, {summary.skipped} skipped, {summary.failed} failed"
    if summary.unsupported:
        text += f", {summary.unsupported} unsupported"
    return text + ("; interrupted, run again to go on" if summary.interrupted else "")


def _done(store: Store, planned: Planned, machines: dict[str, str]) -> bool:
    record = store.get(planned.cell, planned.key, machines[planned.profile.name])
    return record is not None and record.done


def _taken_care_of(state: Run, planned: Planned) -> bool:
    """Whether another runner has finished the cell meanwhile, be it with a failure."""
    machine = state.machines[planned.profile.name]
    record = state.store.get(planned.cell, planned.key, machine)
    return record is not None and (record.done or record.created >= state.started)


def _work(state: Run, todo: list[Planned]) -> None:
    """Run each cell that nobody else holds; come back to those until they are done or free."""
    waiting = todo
    told = False
    while waiting:
        held = []
        for planned in waiting:
            machine = state.machines[planned.profile.name]
            with state.store.claim(planned.cell, planned.key, machine) as mine:
                if not mine:
                    held.append(planned)
                elif _taken_care_of(state, planned):
                    state.summary.skipped += 1
                    state.display.begin(planned.cell)
                    state.display.end("done by another runner", None)
                else:
                    _run_one(state, planned)
        if held and not told:
            told = True
            state.display.note(
                "another runner works on these results: timings of both are disturbed by each other"
            )
        if held and len(held) == len(waiting):
            time.sleep(POLL_SECONDS)
        waiting = held


def _run_one(state: Run, planned: Planned) -> None:
    """Measure a cell and write its record, whatever happens in between short of a kill."""
    start = time.monotonic()
    state.display.begin(planned.cell)
    found = Measurement()
    status, reason = _attempt(state, planned, found)
    provenance = {"weights": None, "card": None, **planned.provenance, "how": "measured"}
    if planned.cell.random_weights:
        provenance["weights"] = "random"
    if state.plan.session is not None and state.plan.session.loaded.name == planned.cell.model:
        own = state.plan.session.loaded.provenance
        provenance |= {k: own.get(k) for k in ("weights", "card")}
        if "training" in own:
            provenance["training"] = own["training"]
    machine = state.machines[planned.profile.name]
    threads = planned.profile.threads or torch.get_num_threads()
    record = Record(
        key=planned.key,
        status=status,
        reason=reason,
        cell=planned.cell,
        accuracy=found.accuracy,
        cost=found.cost(),
        provenance=provenance,
        env=this.environment(machine, planned.profile.device, threads),
        command=state.command,
        created=_now(),
        seconds=round(time.monotonic() - start, 3),
    )
    try:
        path = state.store.write(record)
    except ValueError as error:  # JSON has no NaN, and a table should have none
        status, reason = "failed", f"a measurement is not a number ({error})"
        empty = Measurement()
        record = replace(
            record, status=status, reason=reason, accuracy=empty.accuracy, cost=empty.cost()
        )
        path = state.store.write(record)
    except OSError as error:
        raise BenchError(f"cannot write a record to {state.store.root}: {error}") from error
    state.summary.ran += 1
    state.summary.failed += status in ("failed", "oom")
    state.summary.unsupported += status == "unsupported"
    if reason:
        state.summary.reasons[path.name] = reason
    note = "costs alone" if planned.missing else found.accuracy.primary and found.accuracy.reason
    state.display.end(status, reason or note)


def _attempt(state: Run, planned: Planned, found: Measurement) -> tuple[Status, str | None]:
    """Measure into `found`; return how it ended and, where it did not end well, why."""
    try:
        if planned.broken:
            raise BenchError(planned.broken)
        if planned.refused:
            raise Unsupported(planned.refused)
        if planned.counted:
            state.display.stage("counting")
            count_into(found, planned.cell)
            found.notes.append(planned.counted)
        else:
            session = _session(state, planned)
            task = state.plan.tasks.get(planned.cell.task)
            with _threads(planned.profile.threads):
                measure_into(found, planned.cell, session, task, state.display.stage)
        if planned.missing:
            found.accuracy = Accuracy(None, reason=f"missing: {planned.missing}")
        return "ok", None
    except Unsupported as error:
        return "unsupported", str(error)
    except (MemoryError, torch.OutOfMemoryError) as error:  # some are a BenchError as well
        return _out_of_memory(error)
    except BenchError as error:
        return "failed", str(error)
    except Exception as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            return _out_of_memory(error)
        return "failed", _one_line(error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _out_of_memory(error: BaseException) -> tuple[Status, str]:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return "oom", _one_line(error)


def _one_line(error: BaseException) -> str:
    """Return an exception's type, first line and the place it came from."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        place = f" ({file.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}{place}"


def _session(state: Run, planned: Planned) -> Session:
    """Return the loaded model of a cell, which knows what earlier runs say of its baseline."""
    state.display.stage("loading the model")
    session = state.plan.session_for(planned.cell, planned.profile)
    if not session.usual_ms:
        _recall_baseline(state, planned, session)
    return session


def _recall_baseline(state: Run, planned: Planned, session: Session) -> None:
    """Tell a session what an earlier run measured of the unreduced model, where it has a record."""
    for other in state.plan.cells:
        if other.cell.baseline and Session.key(other.cell, other.profile) == session.opened_for:
            record = state.store.get(other.cell, other.key, state.machines[other.profile.name])
            if record is not None and record.done:
                session.recall(record.cost)


@contextlib.contextmanager
def _threads(wanted: int | None = None) -> Iterator[None]:
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
