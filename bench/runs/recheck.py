"""Re-run a random sample of somebody's records here, and write down whether they hold.

Which records, nobody knows beforehand: a forged one is as likely to be drawn as any other. What
cannot run here is counted as not rechecked, never as agreement.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.core.errors import BenchError
from bench.measure import machine, profiles
from bench.records import audit
from bench.records.files import check_writable, write_atomic, writing
from bench.records.record import BASELINE, Record, dump
from bench.records.store import Store
from bench.runs import runner, spec
from bench.runs.agreement import compare, same_kind
from bench.runs.measuring import now
from bench.runs.spec import Options, Suite

SUITE = "recheck"
State = Literal["agrees", "disagrees", "not rechecked"]
QUICK_SECONDS = 0.2  # of timings that nothing is compared with
NAME = "recheck"  # of the report's files


@dataclass
class Check:
    """What became of one record; `sha256` is its file's, so that the report is about that one."""

    file: str
    sha256: str
    cell: str
    state: State
    why: list[str]
    notes: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)


@dataclass
class Report:
    """A sample of records that were measured again, and who did that."""

    records: int
    seed: int
    sample: int
    machine: dict[str, Any]
    date: str
    checks: list[Check] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether not all of the sample was looked at."""
        return len(self.checks) < self.sample

    @property
    def verdict(self) -> State:
        """Of all records together: one that disagrees is enough."""
        states = {check.state for check in self.checks}
        order: tuple[State, ...] = ("disagrees", "agrees")
        return next((state for state in order if state in states), "not rechecked")


def sampled(records: Mapping[Path, Record], sample: int, seed: int) -> list[Path]:
    """Return so many files at random, of records that are results; in the order of their names."""
    paths = sorted(path for path, record in records.items() if record.status == "ok")
    return sorted(random.Random(seed).sample(paths, min(sample, len(paths))))


def recheck(
    records: Mapping[Path, Record], sample: int, seed: int, out: Path, say: Callable[[str], None]
) -> Report:
    """Measure a sample of records again; write `recheck.md` and `recheck.json` into `out`.

    Ctrl-C ends it, and leaves a report of what was done.

    Args:
        records: those that passed their audit, by path.
        sample: how many to measure.
        seed: draws them.
        out: the report's folder.
        say: told what is being done.

    Raises:
        BenchError: there is none to re-run, or `out` is not writable.
    """
    chosen = sampled(records, sample, seed)
    if not chosen:
        raise BenchError("no record is of a cell that worked: nothing to re-run")
    with writing(f"a report to {out}", "choose a writable --out"):
        check_writable(out)
    device = "cuda" if machine.gpu_name() else "cpu"
    env = machine.environment("", device, 0)
    facts = {name: value for name, value in env.items() if name not in ("machine", "threads")}
    report = Report(len(records), seed, len(chosen), facts, now())
    with contextlib.suppress(KeyboardInterrupt):
        for number, path in enumerate(chosen, 1):
            say(f"{number} of {len(chosen)}: {_title(records[path])}")
            check = _check(path, records[path])
            report.checks.append(check)
            say(f"  {check.state}" + (f": {'; '.join(check.why)}" if check.why else ""))
    verdict = {"verdict": report.verdict, "interrupted": report.interrupted}
    write_atomic(out / f"{NAME}.json", dump(asdict(report) | verdict) + "\n")
    write_atomic(out / f"{NAME}.md", markdown(report))
    return report


def _title(record: Record) -> str:
    cell = record.cell
    return f"{cell.label} · {cell.model} · {cell.task}"


def _check(path: Path, record: Record) -> Check:
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    check = Check(str(path), sha, _title(record), "not rechecked", [])
    try:
        new = again(record)
    except BenchError as error:
        check.why.append(str(error))
        return check
    agreement = compare(record, new)
    check.state = "disagrees" if agreement.against else "agrees"
    check.why, check.notes, check.versions = agreement.against, agreement.notes, agreement.versions
    check.notes += [f"no audit tells: {part}" for part in audit.unchecked(record)]
    return check


def again(record: Record) -> Record:
    """Measure a record's cell here, by the way of any run, in a folder that is gone afterwards.

    Raises:
        BenchError: it cannot be measured here, or not with the same weights and data.
        KeyboardInterrupt: Ctrl-C ended the run.
    """
    suite = suite_of(record)
    with tempfile.TemporaryDirectory(prefix="recheck-") as folder:
        summary = runner.run(suite, Options(), Path(folder), command=record.command, quiet=True)
        if summary.interrupted:
            raise KeyboardInterrupt
        measured = Store(folder).read_all()
    if len(measured) != 1 or measured[0].status != "ok":
        reasons = [one.reason or one.status for one in measured]
        raise BenchError("; ".join(reasons) or "no record came of it")
    new = measured[0]
    for name, what in (("weights_sha256", "weights"), ("task_version", "data of the task")):
        if new.provenance.get(name) != record.provenance.get(name):
            raise BenchError(f"the {what} are others here")
    return new


def suite_of(record: Record) -> Suite:
    """Return the suite of a record's cell alone.

    Timings that nothing here compares with are kept short.

    Raises:
        BenchError: it was measured on a device that is not here.
    """
    cell = record.cell
    profile = _profile(record)
    entry = {"name": cell.method, **{name: [value] for name, value in cell.params.items()}}
    model = {
        "name": cell.model,
        "tasks": [cell.task],
        "random_weights": cell.random_weights,
        "baseline": cell.baseline,
    }
    gpu = machine.gpu_name() if profile.device == "cuda" else None
    timed = same_kind(record.env, {"cpu": machine.cpu_name(), "gpu": gpu})
    data: dict[str, Any] = {
        "name": SUITE,
        "models": [model],
        "methods": [entry if not cell.baseline else {"name": BASELINE}],
        "profiles": [profile.name],
        "dtypes": cell.dtype and [cell.dtype],
        "backends": cell.backend and [cell.backend],
        "engines": [cell.engine],
        "limit": cell.limit,
        "precision": cell.precision,
        "seed": cell.seed,
        "answer_batches": list(cell.answer_batches) if timed else [1],
        "batch_sizes": list(cell.batch_sizes or ()) or None if timed else [1],
        "latency_seconds": cell.latency_seconds if timed else QUICK_SECONDS,
    }
    return spec.parse({key: value for key, value in data.items() if value is not None}, Options())


def _profile(record: Record) -> profiles.Profile:
    """Return the profile of a record, or this machine's where that is of the same device."""
    try:
        return profiles.load(record.cell.profile)
    except BenchError:
        here = profiles.load(profiles.AUTO)
        device = "cuda" if record.env.get("gpu") else "cpu"
        if here.device != device:
            raise BenchError(f"measured on {device}, and here is {here.device}") from None
        return here


def markdown(report: Report) -> str:
    """Return a report to read and to sign off."""
    facts = report.machine
    states = [check.state for check in report.checks]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("agrees", "disagrees", "not rechecked"))
    lines = [
        f"# Recheck: {report.verdict}",
        "",
        f"{report.sample} of {report.records} records, drawn with seed {report.seed}: {counts}"
        f"{'; interrupted' if report.interrupted else ''}. All records passed their audit.",
        "",
        f"Signed off {report.date}, commit {facts.get('git') or 'unknown'}, on "
        f"{facts.get('gpu') or facts.get('cpu')} (host {facts['fingerprint']}), torch "
        f"{facts.get('torch')}, transformers {facts.get('transformers')}, timm "
        f"{facts.get('timm')}.",
        "",
        "| cell | verdict | against it, or why not | compared | versions, here | file, sha256 |",
        "|---|---|---|---|---|---|",
    ]
    for check in report.checks:
        file = f"{'/'.join(Path(check.file).parts[-3:])}, {check.sha256[:12]}"
        remarks = map("; ".join, (check.why, check.notes, check.versions))
        cells = (check.cell, check.state, *remarks, file)
        lines.append(f"| {' | '.join(map(_plain, cells))} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
