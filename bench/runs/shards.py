"""A cell's accuracy in shards: each takes whole batches, and together they are one process's.

A shard runs the task on its own batches alone and keeps what the model said of them. The cell
itself then runs the task with these answers in the model's place: outcomes and metrics come from
the task's own code, on the tensors that one process would have had, bit for bit.

    share = take(cell, session, task, Shard(1, 2), stage)       # wherever the shard runs
    measure_into(measurement, cell, session, Answered(task, [share, other]), stage)
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from bench.core import observe, observing
from bench.core.errors import BenchError
from bench.core.kinds import Stochastic
from bench.engine.forward import runs
from bench.measure.kept import Kept
from bench.models.loaded import Matcher
from bench.records.record import Cell
from bench.runs import seed_average
from bench.runs.asking import Part, Recording, Replaying
from bench.runs.cell import Note, accuracy
from bench.runs.numbering import Numbers, Undivided
from bench.runs.session import Session, apply
from bench.tasks.base import Evaluation, Progress, Task, refuse_random, require, subset

MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """The `number`-th (from 1) of `of` parts of a cell's accuracy."""

    number: int
    of: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Return the shard that "2/4" names; raises BenchError where it names none."""
        written = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
        number, of = map(int, written.groups()) if written else (0, 0)
        if not 1 <= number <= of <= MOST_SHARDS:
            raise BenchError(f"--shard: '{text}' is no shard: write 1/4 for the first of four")
        return Shard(number, of)

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.number}/{self.of}"

    def batches(self, count: int) -> range:
        """Return which of `count` batches are this shard's; none where there are too few."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)


@dataclass(frozen=True)
class Share:
    """What a shard's run of the accuracy gave.

    Attributes:
        shard: which one.
        parts: what the model said, one an evaluation: several of a method that draws at random.
        tokens, samples: what an adaptive method kept of the shard's images, see `Kept`.
    """

    shard: Shard
    parts: tuple[Part, ...]
    tokens: int = 0
    samples: int = 0

    def to_bytes(self) -> bytes:
        """Return it as bytes that `from_bytes` reads."""
        plain = {
            "shard": [self.shard.number, self.shard.of],
            "parts": [part.plain() for part in self.parts],
            "kept": [self.tokens, self.samples],
        }
        buffer = io.BytesIO()
        torch.save(plain, buffer)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Share:
        """Return the share in `data`; nothing in it is run. Raises BenchError where it is none."""
        try:
            plain = torch.load(io.BytesIO(data), weights_only=True)
            parts = tuple(Part.of(part) for part in plain["parts"])
            return Share(Shard(*plain["shard"]), parts, *plain["kept"])
        except Exception as error:  # torch raises whatever it stumbles over
            raise BenchError(f"not a shard's answers ({type(error).__name__})") from error


def take(cell: Cell, session: Session, task: Task, shard: Shard, stage: Note) -> Share:
    """Return what the model says of a shard of a cell's samples.

    Raises:
        Undivided: the task asks the model in a way that cannot be divided.
        Unsupported, BenchError: as `measure_into`.
    """
    taking = Taking(task, shard)
    with apply(session.loaded, cell):
        at_work = runs(session.loaded.model)
        adaptive = any(run.adaptive for run in at_work)
        reducers = [reduction.reducer for run in at_work for reduction in run.reductions]
        taking.draws = any(isinstance(reducer, Stochastic) for reducer in reducers)
        with observing(Kept()) if adaptive else nullcontext(Kept()) as kept:
            first = accuracy(cell, session, taking, stage)
    seed_average.over_seeds(
        first,
        cell,
        session,
        lambda seed: accuracy(cell, session, taking, lambda what: stage(f"seed {seed}, {what}")),
    )
    return Share(shard, tuple(taking.parts), kept.tokens, kept.samples)


class _Standing(Task):
    """A task that stands in for another, whose name, samples and version it has."""

    def __init__(self, task: Task) -> None:
        """Stand in for `task`."""
        super().__init__(task.name, task.version, task._samples)
        self.task = task

    def score(self, feed: Any) -> Evaluation:
        """Score as the task does."""
        return self.task.score(feed)


class Taking(_Standing):
    """A task of which one shard is run; what it returns is of no use, `parts` is."""

    def __init__(self, task: Task, shard: Shard) -> None:
        """Run `shard` of `task`; nothing is run yet."""
        super().__init__(task)
        self.shard = shard
        self.draws = True  # a method at work draws at random, by the number of the batch
        self.parts: list[Part] = []

    def evaluate(
        self,
        loaded: Any,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Run the shard's batches, and add what the model said to `parts`."""
        if Matcher in self.task.kinds:  # what it asks second depends on all answers to the first
            raise Undivided(f"task '{self.name}' is not divided: it asks again about what it found")
        require(loaded, self.task.kinds, self.name)
        refuse_random(loaded)
        index = subset(len(self), limit)
        numbers = Numbers(self.draws)
        feed = Recording(loaded, index, batch_size, device, progress, self.shard.batches, numbers)
        observe.DRAWS.append(numbers)
        try:
            with torch.inference_mode():
                scored = self.score(feed)
        finally:
            observe.DRAWS.pop()
        self.parts.append(feed.part(scored.failed))
        return scored


class Answered(_Standing):
    """A task whose answers are known: its accuracy is put together, the model is not asked.

    Only in an accuracy pass, whose batches are numbered. Otherwise it is the task: to look at its
    images, say.
    """

    def __init__(self, task: Task, shares: Sequence[Share]) -> None:
        """Know the answers of all shards.

        Raises:
            BenchError: some shards are not among them, or they are not of one division.
        """
        super().__init__(task)
        self.shares = sorted(shares, key=lambda share: share.shard.number)
        numbers = [(share.shard.number, share.shard.of) for share in self.shares]
        if numbers != [(i + 1, len(numbers)) for i in range(len(numbers))]:
            raise BenchError(f"these are not all shards of one accuracy: {numbers}")
        self.evaluations = 0

    def evaluate(
        self,
        loaded: Any,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Return the task's score of the known answers."""
        if not observe.DRAWS:
            return self.task.evaluate(
                loaded, limit=limit, batch_size=batch_size, device=device, progress=progress
            )
        parts = [share.parts[self.evaluations] for share in self.shares]
        self._tell_observers()
        self.evaluations += 1
        index = subset(len(self), limit)
        feed = Replaying(loaded, index, batch_size, device, progress, parts)
        with torch.inference_mode():
            scored = self.score(feed)
        failed = [*scored.failed, *(name for part in parts for name in part.failed)]
        return Evaluation(scored.metrics, scored.primary, scored.outcomes, failed)

    def _tell_observers(self) -> None:
        """Have who counts kept tokens know what the shards counted, in the first evaluation."""
        for observer in observe.OBSERVERS if self.evaluations == 0 else ():
            if isinstance(observer, Kept):
                observer.tokens += sum(share.tokens for share in self.shares)
                observer.samples += sum(share.samples for share in self.shares)
