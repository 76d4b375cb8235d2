"""What a run says while it works: a line for each cell, and a live one on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from bench.records.record import Cell, Record

MOST_SHOWN = 3  # jobs that a terminal's line names, of those that run


@dataclass
class Running:
    """A job under way: what it is, where, since when, and what of it is being done."""

    title: str
    where: str
    since: float
    counts: bool  # its end is a cell's end
    stage: str = ""

    @property
    def line(self) -> str:
        """What a terminal shows of it."""
        place = f" on {self.where}" if self.where else ""
        return f"{self.title}{place}" + (f": {self.stage}" if self.stage else "")


class Display:
    """Progress on stderr, over all that runs at once; stdout is for results.

    With `events` each thing that happens is also a line of JSON on stdout.
    """

    def __init__(self, total: int, skipped: int, quiet: bool = False, events: bool = False) -> None:
        """Expect `total` cells to run; `skipped` are done already."""
        self.total, self.skipped, self.quiet, self.events = total, skipped, quiet, events
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.done, self.started = 0, time.monotonic()
        self.running: dict[str, Running] = {}  # by name of the job
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self.row = self.bar.add_task("", total=total, left="")

    def __enter__(self) -> Display:
        """Say how much there is to do."""
        if not self.quiet:
            self.console.print(f"{self.total} cells to run, {self.skipped} done already")
        self._tell("planned", to_run=self.total, done_already=self.skipped)
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        self.bar.__exit__(kind, error, trace)

    def begin(
        self, cell: Cell, name: str = "", part: str = "", where: str = "", counts: bool = True
    ) -> None:
        """Show that a job is under way.

        Args:
            cell: that it is about.
            name: the job's own.
            part: of the cell, in words.
            where: it runs.
            counts: it ends the cell; a shard of its accuracy does not.
        """
        title = f"{cell.label} on {cell.model}, {cell.task}{part}"
        self.running[name] = Running(title, where, time.monotonic(), counts)
        self._tell("begin", job=name, cell=title, where=where)
        self._show()

    def stage(self, what: str, name: str = "") -> None:
        """Show what of the job is being done."""
        if name in self.running:
            self.running[name].stage = what
            self._show()

    def end(self, status: str, reason: str | None, name: str = "") -> None:
        """Count a finished job and say how it went."""
        ended = self.running.pop(name, None)
        if ended is None:
            ended = Running(name, "", time.monotonic(), counts=True)
        seconds = time.monotonic() - ended.since
        self.done += ended.counts
        told = {"status": status, "reason": reason, "seconds": round(seconds, 3)}
        self._tell("end", job=name, cell=ended.title, where=ended.where, **told)
        self.bar.update(self.row, completed=self.done, left=self.left())
        self._show()
        if ended.counts and not self.quiet:
            note = f" ({reason})" if reason else ""
            place = f" on {ended.where}" if ended.where else ""
            line = f"[{self.done}/{self.total}] {ended.title}{place}: {status}{note}"
            self.console.print(f"{line}, {seconds:.1f} s, {self.left()}", markup=False)

    def _show(self) -> None:
        """Show what runs."""
        running = list(self.running.values())
        line = "; ".join(one.line for one in running[:MOST_SHOWN])
        if len(running) > MOST_SHOWN:
            line = f"{len(running)} running: {line}; …"
        self.bar.update(self.row, description=line)

    def _tell(self, event: str, **what: Any) -> None:
        if self.events:
            counts = {"done": self.done, "cells": self.total, "running": len(self.running)}
            print(json.dumps({"event": event, **what, **counts}), flush=True)

    def note(self, message: str) -> None:
        """Say something that is not about one cell's result."""
        self._tell("note", message=message)
        if not self.quiet:
            self.console.print(message, markup=False)

    def scores(self, records: Sequence[Record]) -> None:
        """Show what was measured, a line a cell."""
        measured = [record for record in records if record.status == "ok"]
        if self.quiet or not measured:
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("model", "task", "cell", "score", "GMACs", "speed-up"):
            table.add_column(name, justify="left" if name in ("model", "task", "cell") else "right")
        for record in measured:
            cell = record.cell
            names = (escape(name) for name in (cell.model, cell.task, cell.label))
            table.add_row(*names, _score(record), _gmacs(record), _speedup(record))
        self.console.print(table, soft_wrap=False)

    def left(self) -> str:
        """Return the time left, from the mean of the cells so far."""
        seconds = (time.monotonic() - self.started) / max(self.done, 1) * (self.total - self.done)
        if seconds < 90:
            return f"about {seconds:.0f} s left"
        return f"about {seconds / 60:.0f} min left"


def _score(record: Record) -> str:
    metric = record.accuracy.metrics.get(record.accuracy.primary or "")
    return "–" if metric is None else f"{record.accuracy.primary} {metric.value:.1f} {metric.unit}"


def _gmacs(record: Record) -> str:
    macs = record.cost.macs
    if macs is None:
        return "–"
    return f"{macs.total / 1e9:.3g} ({macs.total / macs.baseline_total:.0%})"


def _speedup(record: Record) -> str:
    """The median speed-up at each batch size."""
    latency = record.cost.latency
    times = [f"{timing.speedup.median:.2f}× at {timing.batch}" for timing in latency]
    return "–" if record.cell.baseline or not times else ", ".join(times)
