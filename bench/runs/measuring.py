"""Do a job in this process: measure a cell into a record, or take a shard of its accuracy."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import BenchError, Unsupported
from bench.measure import machine as this
from bench.measure.latency import using_threads
from bench.measure.memory import is_out_of_memory
from bench.records.record import BASELINE, COST_ONLY, Accuracy, Record, Status, label
from bench.runs import stopping
from bench.runs.cell import Measurement, count_into, measure_into
from bench.runs.jobs import Done, Failure, Job
from bench.runs.numbering import Undivided
from bench.runs.planning import PlannedCell
from bench.runs.resources import Resources
from bench.runs.session import Session
from bench.runs.shards import Answered, Share, take
from bench.tasks import Task

Stage = Callable[[str], None]  # told what is being measured


class Measurer:
    """Does jobs one after the other; keeps tasks and the loaded model between them.

    Attributes:
        resources: what jobs need.
        alone: the unreduced model's own cell may be measured elsewhere, so that where nothing is
            known of it here, it is measured here first.
    """

    def __init__(self, resources: Resources, alone: bool = False) -> None:
        """Nothing is measured yet."""
        self.resources, self.alone = resources, alone

    def do(self, job: Job, stage: Stage, where: str = "") -> Done:
        """Do a job; however it ends short of a kill, there is a record or a shard's answers."""
        start = time.monotonic()
        if job.shard is not None:
            return self._shard(job, stage, where, start)
        measurement = Measurement()
        status, reason = _ended(lambda: self._measure(job, measurement, stage))
        return Done(job, self._record(job, measurement, status, reason, start), where=where)

    def _shard(self, job: Job, stage: Stage, where: str, start: float) -> Done:
        taken: list[Share] = []
        try:
            status, reason = _ended(lambda: taken.append(self._take(job, stage)))
        except Undivided:
            return Done(job, undivided=True, where=where)
        if taken:
            return Done(job, answers=taken[0].to_bytes(), where=where)
        record = self._record(job, Measurement(), status, reason, start)
        return Done(job, record, where=where)

    def _take(self, job: Job, stage: Stage) -> Share:
        planned, shard = job.planned, job.shard
        assert shard is not None
        session, task = self.session(job, stage), self._task(planned)
        assert task is not None
        with using_threads(planned.profile.threads):
            return take(planned.cell, session, task, shard, stage)

    def _measure(self, job: Job, measurement: Measurement, stage: Stage) -> None:
        """Measure a cell into `measurement`."""
        planned = job.planned
        if planned.broken:
            raise BenchError(planned.broken)
        if planned.refused:
            raise Unsupported(planned.refused)
        if planned.counted:
            stage("counting")
            count_into(measurement, planned.cell)
            measurement.add(notes=[planned.counted])
        else:
            session, task = self.session(job, stage), self._task(planned)
            if job.answers and task is not None:
                task = Answered(task, [Share.from_bytes(answers) for answers in job.answers])
            with using_threads(planned.profile.threads):
                if self.alone:
                    self._measure_baseline(job, session, stage)
                measure_into(measurement, planned.cell, session, task, stage)
        if planned.missing:
            measurement.accuracy = Accuracy(None, reason=f"missing: {planned.missing}")

    def _measure_baseline(self, job: Job, session: Session, stage: Stage) -> None:
        """Time the unreduced model against itself, where nothing is known of that here."""
        cell = job.planned.cell
        if cell.baseline or job.baselines is None or session.equal:
            return
        plain = replace(cell, method=BASELINE, params={}, label=label(BASELINE, {}), baseline=True)
        with contextlib.suppress(BenchError):  # its own cell says so
            measure_into(
                Measurement(), plain, session, None, lambda what: stage(f"baseline, {what}")
            )

    def _task(self, planned: PlannedCell) -> Task | None:
        cell = planned.cell
        if cell.task == COST_ONLY or cell.random_weights:
            return self.resources.tasks.get(cell.task)
        return self.resources.task(cell.task)

    def session(self, job: Job, stage: Stage) -> Session:
        """Return the loaded model of a job, which knows what earlier runs say of its baseline."""
        stage("loading the model")
        planned = job.planned
        session = self.resources.session_for(planned.cell, planned.profile)
        if not session.usual_ms:
            for baseline in job.baselines or ():
                if not self.alone or baseline.fingerprint == this.fingerprint():
                    session.recall(baseline.cost)
        for baseline in job.baselines or ():
            if baseline.scored is not None:
                cell, scored = baseline.scored
                session.unreduced.setdefault(stopping.place(cell), scored)
        return session

    def _record(
        self, job: Job, measured: Measurement, status: Status, reason: str | None, start: float
    ) -> Record:
        planned = job.planned
        threads = planned.profile.threads or torch.get_num_threads()
        provenance = _provenance(planned, self.resources.session)
        if job.answers:
            provenance["shards"] = len(job.answers)
        return Record(
            key=planned.key,
            status=status,
            reason=reason,
            cell=planned.cell,
            accuracy=measured.accuracy,
            cost=measured.cost,
            provenance=provenance,
            env=this.environment(planned.machine, planned.profile.device, threads),
            command=job.command,
            created=now(),
            seconds=round(time.monotonic() - start, 3),
        )


def failed(job: Job, failure: Failure, env: dict[str, Any] | None, seconds: float) -> Record:
    """Return the record of a job whose process came to no end of its own.

    Args:
        job: which one.
        failure: what happened.
        env: of the machine it ran on; None where that is not known.
        seconds: that it took.
    """
    empty = Measurement()
    return Record(
        key=job.planned.key,
        status=failure.status,
        reason=failure.reason,
        cell=job.planned.cell,
        accuracy=empty.accuracy,
        cost=empty.cost,
        provenance=_provenance(job.planned, None),
        env={**(env or {}), "machine": job.planned.machine},
        command=job.command,
        created=now(),
        seconds=round(seconds, 3),
    )


def _provenance(planned: PlannedCell, session: Session | None) -> dict[str, Any]:
    """Return where a cell's numbers come from: its hashes, and what is known of its weights."""
    provenance = {"weights": None, "card": None, **planned.provenance, "how": "measured"}
    provenance["profile"] = json.loads(json.dumps(asdict(planned.profile)))  # the key hashes it
    if planned.cell.random_weights:
        provenance["weights"] = "random"
    if session is not None and session.loaded.name == planned.cell.model:
        origin = session.loaded.provenance
        provenance |= {key: origin.get(key) for key in ("weights", "card")}
        if "training" in origin:
            provenance["training"] = origin["training"]
    return provenance


def _ended(measure: Callable[[], object]) -> tuple[Status, str | None]:
    """Measure; return how that ended and, where it did not end well, why."""
    try:
        measure()
        return "ok", None
    except Unsupported as error:
        return "unsupported", str(error)
    except Undivided:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # some are a BenchError as well
            return _out_of_memory(error)
        return "failed", str(error) if isinstance(error, BenchError) else _one_line(error)


def now() -> str:
    """Return the time as records have it."""
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
