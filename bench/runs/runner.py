"""Run a suite: skip what is done, measure the rest, write one record a cell, lose one at most.

A failed or out-of-memory cell is recorded with its reason and the run goes on; it is tried again by
the next run. Several runners may work on one results folder: each cell is claimed by one of them.
"""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.core.errors import BenchError, Unsupported
from bench.measure import machine as this
from bench.measure.latency import using_threads
from bench.records.record import Accuracy, Record, Status
from bench.records.store import BUDGETS, Store
from bench.runs import checking, planning
from bench.runs.cell import Measurement, count_into, measure_into
from bench.runs.planning import Agenda, PlannedCell
from bench.runs.progress import Display
from bench.runs.session import Session
from bench.runs.spec import Document, Options, Suite

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
class RunState:
    """The state of one run."""

    store: Store
    agenda: Agenda
    command: str
    display: Display
    summary: Summary
    measured: list[Record] = field(default_factory=list)
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
    checking.check(suite, origin)
    suite, stand_ins = planning.with_stand_ins(suite)
    with using_threads(None):  # what the run sets is put back
        with Console(stderr=True, quiet=quiet).status("planning: data, weights, budgets"):
            agenda = planning.plan(suite, machine, results / BUDGETS, origin)
            todo = [planned for planned in agenda.cells if not _done(store, planned)]
            planning.check(todo, suite, agenda.resources, origin)
        store.clean()
        for planned in todo:
            store.locks(planned.cell, planned.key, planned.machine)
        skipped = len(agenda.cells) - len(todo)
        summary = Summary(suite.name, cells=len(agenda.cells), skipped=skipped)
        folders = {str(store.path(p.cell, p.key, p.machine).parent) for p in agenda.cells}
        summary.records = ", ".join(sorted(folders))
        with Display(len(todo), skipped, quiet) as display:
            missing = [f"- {reason}" for reason in agenda.resources.missing.values() if reason]
            if missing:
                head = "missing, so the rows that need it get their costs alone, on random weights:"
                display.note("\n".join([head, *missing]))
            for line in stand_ins:
                display.note(line)
            state = RunState(store, agenda, command, display, summary)
            try:
                _work(state, todo)
            except KeyboardInterrupt:
                summary.interrupted = True
        display.scores(state.measured)
        display.note(_closing(summary))
    summary.seconds = time.monotonic() - start
    return summary


def _closing(summary: Summary) -> str:
    text = f"{summary.ran} cells run, {summary.skipped} skipped, {summary.failed} failed"
    if summary.unsupported:
        text += f", {summary.unsupported} unsupported"
    return text + ("; interrupted, run again to go on" if summary.interrupted else "")


def _done(store: Store, planned: PlannedCell) -> bool:
    record = store.get(planned.cell, planned.key, planned.machine)
    return record is not None and record.done


def _taken_care_of(state: RunState, planned: PlannedCell) -> bool:
    """Whether another runner has finished the cell meanwhile, be it with a failure."""
    record = state.store.get(planned.cell, planned.key, planned.machine)
    return record is not None and (record.done or record.created >= state.started)


def _work(state: RunState, todo: list[PlannedCell]) -> None:
    """Run each cell that nobody else holds; come back to those until they are done or free."""
    waiting = todo
    told = False
    while waiting:
        held = []
        for planned in waiting:
            with state.store.claim(planned.cell, planned.key, planned.machine) as mine:
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


def _run_one(state: RunState, planned: PlannedCell) -> None:
    """Measure a cell and write its record, whatever happens in between short of a kill."""
    start = time.monotonic()
    state.display.begin(planned.cell)
    measurement = Measurement()
    status, reason = _attempt(state, planned, measurement)
    threads = planned.profile.threads or torch.get_num_threads()
    record = Record(
        key=planned.key,
        status=status,
        reason=reason,
        cell=planned.cell,
        accuracy=measurement.accuracy,
        cost=measurement.cost,
        provenance=_provenance(state, planned),
        env=this.environment(planned.machine, planned.profile.device, threads),
        command=state.command,
        created=_now(),
        seconds=round(time.monotonic() - start, 3),
    )
    record, path = _written(record, state.store)
    state.measured.append(record)
    state.summary.ran += 1
    state.summary.failed += record.status in ("failed", "oom")
    state.summary.unsupported += record.status == "unsupported"
    if record.reason:
        state.summary.reasons[path.name] = record.reason
    scored = measurement.accuracy
    note = "costs alone" if planned.missing else scored.reason if scored.outcomes else None
    state.display.end(record.status, record.reason or note)


def _provenance(state: RunState, planned: PlannedCell) -> dict[str, Any]:
    """Return where a cell's numbers come from: its hashes, and what is known of its weights."""
    provenance = {"weights": None, "card": None, **planned.provenance, "how": "measured"}
    if planned.cell.random_weights:
        provenance["weights"] = "random"
    session = state.agenda.resources.session
    if session is not None and session.loaded.name == planned.cell.model:
        origin = session.loaded.provenance
        provenance |= {key: origin.get(key) for key in ("weights", "card")}
        if "training" in origin:
            provenance["training"] = origin["training"]
    return provenance


def _written(record: Record, store: Store) -> tuple[Record, Path]:
    """Write a record, as a failure where a measurement is not a number; return it and its path."""
    try:
        return record, store.write(record)
    except ValueError as error:  # JSON has no NaN, and a table should have none
        empty = Measurement()
        reason = f"a measurement is not a number ({error})"
        failed = replace(
            record, status="failed", reason=reason, accuracy=empty.accuracy, cost=empty.cost
        )
        return failed, store.write(failed)


def _attempt(
    state: RunState, planned: PlannedCell, measurement: Measurement
) -> tuple[Status, str | None]:
    """Measure into `measurement`; return how it ended and, where it did not end well, why."""
    try:
        if planned.broken:
            raise BenchError(planned.broken)
        if planned.refused:
            raise Unsupported(planned.refused)
        if planned.counted:
            state.display.stage("counting")
            count_into(measurement, planned.cell)
            measurement.add(notes=[planned.counted])
        else:
            session = _session(state, planned)
            task = state.agenda.resources.tasks.get(planned.cell.task)
            with using_threads(planned.profile.threads):
                measure_into(measurement, planned.cell, session, task, state.display.stage)
        if planned.missing:
            measurement.accuracy = Accuracy(None, reason=f"missing: {planned.missing}")
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


def _session(state: RunState, planned: PlannedCell) -> Session:
    """Return the loaded model of a cell, which knows what earlier runs say of its baseline."""
    state.display.stage("loading the model")
    session = state.agenda.resources.session_for(planned.cell, planned.profile)
    if not session.usual_ms:
        _recall_baseline(state, planned, session)
    return session


def _recall_baseline(state: RunState, planned: PlannedCell, session: Session) -> None:
    """Tell a session what an earlier run measured of the unreduced model, where it has a record."""
    for other in state.agenda.cells:
        if other.cell.baseline and Session.key(other.cell, other.profile) == session.opened_for:
            record = state.store.get(other.cell, other.key, other.machine)
            if record is not None and record.done:
                session.recall(record.cost)
