"""What a run says while it works: a line for each cell, and a live one on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

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


class Display:
    """Progress on stderr; stdout is for results."""

    def __init__(self, total: int, skipped: int, quiet: bool = False) -> None:
        """Expect `total` cells to run; `skipped` are done already."""
        self.total, self.skipped, self.quiet = total, skipped, quiet
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.done, self.started, self.cell_started = 0, time.monotonic(), time.monotonic()
        self.title = ""
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

    def begin(self, cell: Cell) -> None:
        """Show that a cell is under way."""
        self.title, self.cell_started = (
            f"{cell.label} on {cell.model}, {cell.task}",
            time.monotonic(),
        )
        self.bar.update(self.row, description=self.title)

    def stage(self, what: str) -> None:
        """Show what of the cell is being measured."""
        self.bar.update(self.row, description=f"{self.title}: {what}")

    def end(self, status: str, reason: str | None) -> None:
        """Count a finished cell and say how it went."""
        self.done += 1
        self.bar.update(self.row, completed=self.done, left=self.left())
        if not self.quiet:
            took = time.monotonic() - self.cell_started
            note = f" ({reason})" if reason else ""
            line = f"[{self.done}/{self.total}] {self.title}: {status}{note}, {took:.1f} s"
            self.console.print(f"{line}, {self.left()}", markup=False)

    def note(self, message: str) -> None:
        """Say something that is not about one cell's result."""
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
