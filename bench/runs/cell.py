"""Measure one cell: accuracy and cost, from the same reduced forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

import bench
from bench.core import Learner, observing, redrawing
from bench.core.errors import shown
from bench.engine.forward import runs
from bench.measure import generation
from bench.measure.kept import Kept, note_if_unlike
from bench.measure.task_images import with_pixels
from bench.models.loaded import Loaded, Multimodal
from bench.records.record import (
    BASELINE,
    COST_ONLY,
    Accuracy,
    Cell,
    Cost,
    Generation,
    Macs,
    Memory,
    Params,
    Tokens,
)
from bench.runs import seed_average, shape_only, stopping
from bench.runs.answers import NEW_TOKENS
from bench.runs.counting import counted, mean_count
from bench.runs.session import Session, apply, inputs_of
from bench.runs.timings import CellTiming
from bench.tasks import Task

EVALUATION_BATCH = 64
# On a CPU a batch whose activations leave the caches is slower: a ViT-S at 224 pixels took 6.0
# images/s in batches of 64, 7.8 in batches of 16.
EVALUATION_PIXELS = 16 * 224**2
UNSCORED = "the right answers are not public: `run_bench.py submit` writes those of the model"

Note = Callable[[str], None]  # told what is being measured


@dataclass
class Measurement:
    """What is known of a cell so far; a cell that fails keeps what it had."""

    accuracy: Accuracy = field(default_factory=lambda: Accuracy(None, reason="not measured"))
    cost: Cost = field(default_factory=Cost)

    def add(self, **parts: Any) -> None:
        """Fill in parts of the cost, by the names of its fields."""
        self.cost = replace(self.cost, **parts)


def measure(cell: Cell, session: Session, task: Task | None, stage: Note) -> Measurement:
    """Return everything about `cell`; see `measure_into`."""
    measurement = Measurement()
    measure_into(measurement, cell, session, task, stage)
    return measurement


def measure_into(
    measurement: Measurement, cell: Cell, session: Session, task: Task | None, stage: Note
) -> None:
    """Fill in the accuracy and cost of `cell`, the cheap and telling parts first.

    Timings come in rounds with the other work between them, so that they see the machine at
    several moments. A method that goes by no image costs the same on every task, so its cost is
    measured once and stands in the records of the other tasks, with a note.

    Raises:
        Unsupported: the method cannot run on this model, or the model not do this task.
        BenchError: a measurement contradicts itself; whatever the model raises comes through.
    """
    _know_unreduced(cell, session, task, stage)
    with apply(session.loaded, cell):
        examples = Examples.of(cell, session, task)
        known = None if examples.adaptive else session.cost_of(cell)
        if known is None:
            _measure_both(measurement, cell, session, task, examples, stage)
            session.note_cost(cell, measurement.cost)
        else:
            measurement.cost = known
            stage("accuracy")
            measurement.accuracy = accuracy(cell, session, task, stage)
    first = measurement.accuracy

    def of_seed(seed: int) -> Accuracy:
        samples = first.stop.samples if first.stop else None
        return accuracy(
            cell, session, task, lambda what: stage(f"seed {seed}, {what}"), samples=samples
        )

    measurement.accuracy = seed_average.over_seeds(first, cell, session, of_seed)


def _know_unreduced(cell: Cell, session: Session, task: Task | None, stage: Note) -> None:
    """Score the unreduced model for a cell with a precision, where nobody has done so yet."""
    known = cell.baseline or cell.precision is None or stopping.place(cell) in session.unreduced
    if not known and task is not None and cell.task != COST_ONLY and not session.loaded.random:
        plain = replace(cell, method=BASELINE, params={}, baseline=True)
        accuracy(plain, session, task, lambda what: stage(f"unreduced, {what}"))


def _measure_both(
    measurement: Measurement,
    cell: Cell,
    session: Session,
    task: Task | None,
    examples: Examples,
    stage: Note,
) -> None:
    """Fill in the cost and the accuracy of a method that is at work."""
    model = session.loaded.model
    stage("counting")
    measurement.add(params=parameters(model))
    with observing(Kept()) as kept_of_examples:
        macs, tokens = count(examples, session)
    measurement.add(macs=macs, tokens=tokens)
    timing = CellTiming(cell, session, examples.batch, stage)
    timing.round()
    stage("accuracy")
    with observing(Kept()) if examples.adaptive else nullcontext(Kept()) as kept_of_task:
        measurement.accuracy = accuracy(cell, session, task, stage)
    measurement.add(notes=note_if_unlike(kept_of_task, kept_of_examples, examples.what))
    timing.round()
    stage("memory")
    memory = peak_memory(cell, session, max(timing.batches), examples)
    measurement.add(memory=memory)
    for _ in range(timing.rounds - 2):
        timing.round()
    path = attention_path(model)
    latencies = timing.latencies(macs.total)
    measurement.add(latency=[replace(one, attention_path=path) for one in latencies])
    answers, notes = timing.generation()
    measurement.add(generation=answers, notes=[*measurement.cost.notes, *notes])


@dataclass(frozen=True)
class Examples:
    """What a cell is counted and timed on.

    Attributes:
        loaded: the model and how to feed it.
        adaptive: what the method keeps depends on the image.
        pixels: (I,C,H,W) images of the task, where the method is adaptive and the task's images
            can be had; otherwise one example of noise is counted, and batches of it are timed.
    """

    loaded: Loaded
    adaptive: bool
    pixels: Tensor | None = None

    @staticmethod
    def of(cell: Cell, session: Session, task: Task | None) -> Examples:
        """Return the examples of a cell whose method is at work in the session's model."""
        adaptive = any(run.adaptive for run in runs(session.loaded.model))
        scored = task is not None and cell.task != COST_ONLY and not session.loaded.random
        pixels = session.pixels(task, cell.limit) if adaptive and scored and task else None
        if pixels is not None and with_pixels(session.loaded, pixels[:1]) is None:
            pixels = None
        return Examples(session.loaded, adaptive, pixels)

    @property
    def what(self) -> str:
        """What is counted, in words."""
        return "the noise image" if self.pixels is None else f"the {len(self.pixels)} images"

    def rows(self, size: int) -> Tensor | None:
        """Return (B,C,H,W) the first images, from the start again where they are too few."""
        return None if self.pixels is None else self.pixels[torch.arange(size) % len(self.pixels)]

    def batch(self, size: int) -> Mapping[str, Any]:
        """Return the arguments of the model for a batch."""
        return inputs_of(self.loaded, size, self.rows(size))

    def singles(self) -> Iterator[Mapping[str, Any]]:
        """Yield the arguments of the model for each example on its own."""
        for pixels in [None] if self.pixels is None else self.pixels.split(1):
            yield inputs_of(self.loaded, 1, pixels)


def count_into(measurement: Measurement, cell: Cell) -> None:
    """Fill in what shapes alone tell: MACs, parameters, tokens, bytes of the cache."""
    loaded = shape_only.on_meta(cell.model, cell.dtype or "float32")
    with loaded.valueless_inputs() as inputs:
        generates = isinstance(loaded, Multimodal)
        baseline = bench.count_macs(loaded.model, **inputs)
        plain = generation.stage_macs(loaded.model, inputs) if generates else None
        with apply(loaded, cell):
            macs, tokens = counted(loaded, inputs, baseline.total)
            measurement.add(params=parameters(loaded.model), macs=macs, tokens=tokens)
            if plain is not None:
                reduced = generation.stage_macs(loaded.model, inputs)
                answer = Generation(
                    NEW_TOKENS, reduced.macs, plain.macs, reduced.kv_bytes, plain.kv_bytes
                )
                measurement.add(generation=answer)


def count(examples: Examples, session: Session) -> tuple[Macs, Tokens]:
    """Return the MACs of one example by both counters, and the tokens in and out of each block.

    Of several examples, their means.
    """
    singles = [
        counted(session.loaded, inputs, session.baseline_macs.total)
        for inputs in examples.singles()
    ]
    return singles[0] if len(singles) == 1 else mean_count(singles)


def accuracy(
    cell: Cell, session: Session, task: Task | None, stage: Note, samples: int | None = None
) -> Accuracy:
    """Return the score of the model as it is now, or why there is none.

    Of a cell with a precision, `samples` are so many without a further look.
    """
    if session.loaded.random:
        return Accuracy(None, reason="random weights: no accuracy can be taken from them")
    if cell.task == COST_ONLY or task is None:
        return Accuracy(None, reason="cost only: no task was asked for")
    size = evaluation_batch(session.loaded)

    def progress(done: int, total: int) -> None:
        stage(f"accuracy, {done} of {total}")

    stop, reasons = None, []
    if cell.precision is None:
        with redrawing():
            scored = task.evaluate(
                session.loaded, limit=cell.limit, batch_size=size, progress=progress
            )
    else:
        scored, stop, why = stopping.score(cell, session, task, size, progress, samples)
        reasons += [why] * bool(why)
    reasons += [UNSCORED] * (scored.primary is None)
    if scored.failed:
        names = ", ".join(shown(name) for name in scored.failed[:20])
        names += " …" if len(scored.failed) > 20 else ""
        reasons.append(
            f"images that did not decode and count as wrong ({len(scored.failed)}): {names}"
        )
    reason = "; ".join(reasons) or None
    result = Accuracy(scored.primary, scored.metrics, scored.outcomes, reason, stop=stop)
    if cell.baseline:
        session.unreduced[stopping.place(cell)] = result
    return result


def evaluation_batch(loaded: Loaded) -> int:
    """Return how many images of a task a forward pass takes."""
    if loaded.device.type != "cpu":
        return EVALUATION_BATCH
    height, width = loaded.image_size
    return min(max(1, EVALUATION_PIXELS // (height * width)), EVALUATION_BATCH)


def attention_path(model: nn.Module) -> str:
    """Return how the last pass carried token sizes into attention: "plain", "mask" or "channel"."""
    paths = {run.attention_path for run in runs(model)}
    return next((path for path in ("mask", "channel") if path in paths), "plain")


def parameters(model: nn.Module) -> Params:
    """Return the parameters of a model and of the methods at work in it.

    Untrained stand-ins ("random"), which are made up in each pass, are not among them.
    """
    reducers = [reduction.reducer for run in runs(model) for reduction in run.reductions]
    learners = {id(one): one for one in reducers if isinstance(one, Learner)}
    learned = chain.from_iterable(learner.tables.values() for learner in learners.values())
    worded: list[Any] = [run for run in runs(model) if getattr(run, "worded", False)]
    asked = chain.from_iterable(run.tower.guide.parameters() for run in worded)
    added = sum(tensor.numel() for tensor in chain(learned, asked))
    return Params(sum(tensor.numel() for tensor in model.parameters()) + added, added)


def peak_memory(cell: Cell, session: Session, batch: int, examples: Examples) -> Memory:
    """Return the peak memory at one batch size, beside the unreduced model's."""
    if session.profile.device == "cuda":
        torch.cuda.empty_cache()
    plain = session.baseline_memory(cell, batch)
    peak = plain if cell.baseline else session.memory(cell, batch, examples.rows(batch))
    return Memory(
        peak_bytes=peak.peak_bytes,
        weights_bytes=peak.weights_bytes,
        batch=batch,
        how=peak.how,
        baseline_peak_bytes=plain.peak_bytes,
        activation_bytes=peak.activation_bytes,
        baseline_activation_bytes=plain.activation_bytes,
    )
