"""When a cell with a precision has samples enough: at the first look at which it is known so well.

Samples come in an order that is the same for everyone, so that those of a cell that stopped are the
first of those of the unreduced model, with which it is paired. The unreduced model takes all that
the suite asks for. Of a method that draws at random the first seed decides, and the others take the
same samples: what seeds add to the interval, no further sample takes away.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count, takewhile
from typing import Any

import torch

from bench.core import redrawing
from bench.records.outcomes import Scores, sample_scores
from bench.records.precision import half_width, scale_of
from bench.records.record import Accuracy, Cell, Stop
from bench.runs.growing import Asked, Growing
from bench.runs.numbering import Undivided
from bench.runs.session import Session
from bench.tasks.base import Evaluation, Feed, Progress, Task, refuse_random, require, shuffled

FIRST = 128  # samples before the first look: of fewer, the interval is not yet one of 95 %


def looks(asked: int) -> list[int]:
    """Return after how many samples to look: 128, 192, 256, 384 and so on; last, after all."""
    sizes = (step << power for power in count() for step in (FIRST, FIRST * 3 // 2))
    return [*takewhile(lambda size: size < asked, sizes), asked]


def place(cell: Cell) -> tuple[Any, ...]:
    """Return what decides on a cell's samples and their order, in `Session.unreduced`."""
    return cell.task, cell.limit, cell.precision is None


def score(
    cell: Cell, session: Session, task: Task, size: int, progress: Progress, samples: int | None
) -> tuple[Evaluation, Stop | None, str]:
    """Score the model as it is now; returns when it stopped, and why metrics are not there.

    A task whose primary metric depends on which samples there are, or that asks for all samples at
    once, is scored on all; it says so, and there is no stop.

    Args:
        cell: with a precision.
        session: knows what the unreduced model scored.
        task: the cell's.
        size: samples a forward pass.
        progress: called after each batch.
        samples: so many without a look; None: as many as it takes.

    Raises:
        Unsupported, BenchError: as `Task.evaluate`.
    """
    assert cell.precision is not None
    loaded, why = session.loaded, ""
    require(loaded, task.kinds, task.name)
    refuse_random(loaded)
    feed = Feed(loaded, shuffled(len(task))[: samples or cell.limit], size, None, progress)
    looked = not (cell.baseline or samples)
    unreduced = session.unreduced.get(place(cell)) if looked else None
    if unreduced is not None and unreduced.primary is not None:
        try:
            with redrawing(), torch.inference_mode():
                scored, stop = _until_known(task, feed, cell.precision, unreduced)
            scored, why = _comparable(task, scored, stop)
            return scored, stop, why
        except Undivided as error:
            why = f"all samples were taken: {error}"
    with redrawing(), torch.inference_mode():
        return task.score(feed), None, why


def _until_known(
    task: Task, feed: Feed, precision: float, unreduced: Accuracy
) -> tuple[Evaluation, Stop]:
    """Score more and more samples, until the interval is narrow enough or all are taken."""
    name = str(unreduced.primary)
    if not task.by_sample(name):
        raise Undivided(f"{name} depends on which samples there are")
    asked, scale = len(feed.index), scale_of(unreduced.metrics[name])
    base = _scores(name, unreduced, asked)
    memory: list[Asked] = []
    failed: list[str] = []
    taken: list[tuple[int, float]] = []
    for size in looks(asked):
        growing = Growing(
            feed.loaded, feed.index[:size], feed.size, None, feed.progress, memory=memory
        )
        scored = task.score(growing)
        failed = list(dict.fromkeys([*failed, *scored.failed]))
        half = scale * half_width(_scores(name, scored, size), base[:size])
        taken.append((size, half))
        if half <= precision:
            break
    stop = Stop(precision, asked, taken, base[:size].tolist())
    return replace(scored, failed=failed), stop


def _scores(name: str, scored: Evaluation | Accuracy, samples: int) -> Scores:
    scores = sample_scores(name, scored.outcomes)
    if scores is None or len(scores) != samples:
        raise Undivided(f"{name} has no score of each sample")
    return scores


def _comparable(task: Task, scored: Evaluation, stop: Stop) -> tuple[Evaluation, str]:
    """Leave out metrics that do not compare with those of another number of samples; say which."""
    kept = {name: one for name, one in scored.metrics.items() if task.by_sample(name)}
    if not stop.early or len(kept) == len(scored.metrics):
        return scored, ""
    names = ", ".join(name for name in scored.metrics if name not in kept)
    why = f"it stopped early; what depends on which samples there are is left out: {names}"
    return replace(scored, metrics=kept), why
