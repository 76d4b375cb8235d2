"""A recorded run's answers as the file that an evaluation server or official program takes.

run_bench.py submit results/.../RECORD.json answers.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from bench import tasks
from bench.core.errors import BenchError
from bench.records.files import write_atomic, writing
from bench.records.record import Record


@runtime_checkable
class Submitted(Protocol):
    """A task whose answers go into a file of a known format."""

    version: str

    def submission(self, outcomes: dict[str, list[object]]) -> str:
        """Return the file's text."""


def write(record_file: Path, out: Path) -> int:
    """Write the answers in a record; return how many bytes they take.

    Raises:
        BenchError: no record, no answers in it, those of a cell with a precision, or a task of
            another version or without a format.
    """
    record = Record.read(record_file)
    if not record.accuracy.outcomes:
        raise BenchError(f"{record_file} has no answers: {record.accuracy.reason}")
    task = tasks.load(record.cell.task)
    if not isinstance(task, Submitted):
        raise BenchError(f"task '{record.cell.task}' has no format that answers are sent in")
    if record.provenance.get("task_version") != task.version:
        raise BenchError(
            f"{record_file} was recorded on other data than '{record.cell.task}' has now: "
            "run it again"
        )
    if record.cell.precision is not None:
        raise BenchError(
            f"{record_file} has the answers to as many samples as a precision took: run it "
            "without one"
        )
    text = task.submission(record.accuracy.outcomes)
    if out.is_file() or not out.exists():
        write_atomic(out, text)
    else:  # a pipe, say
        with writing(out, "name another file"):
            out.write_text(text, encoding="utf-8")
    return len(text.encode())
