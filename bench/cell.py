"""Measure one cell: accuracy and cost, from the same reduced forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

import bench
from bench import seeds
from bench.core import observing, redrawing
from bench.forward import Pass
from bench.measure import generation, latency, macs
from bench.measure.kept import Kept, unlike
from bench.models import Loaded
from bench.record import (
    COST_ONLY,
    Accuracy,
    Cell,
    Cost,
    Generation,
    Latency,
    Macs,
    Memory,
    Params,
    Speedup,
    Stage,
)
from bench.session import Session, apply
from bench.tasks import Task

EVALUATION_BATCH = 64
NEW_TOKENS = 16  # of the answers that are timed
DIGITS = 4  # of a millisecond: what a clock can tell, and a diff can show

Note = Callable[[str], None]  # told what is being measured


@dataclass
class Measurement:
    """What is known of a cell so far; a cell that fails keeps what it had."""

    accuracy: Accuracy = field(default_factory=lambda: Accuracy(None, reason="not measured"))
    macs: Macs | None = None
    params: Params | None = None
    tokens: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    latency: list[Latency] = field(default_factory=list)
    memory: Memory | None = None
    notes: list[str] = field(default_factory=list)
    generation: Generation | None = None

    def cost(self) -> Cost:
        """Return the cost part of the record."""
        return Cost(
            self.macs,
            self.params,
            self.tokens,
            self.latency,
            self.memory,
            self.notes,
            self.generation,
        )


def measure(cell: Cell, session: Session, task: Task | None, stage: Note) -> Measurement:
    """Return everything about `cell`; see `measure_into`."""
    found = Measurement()
    measure_into(found, cell, session, task, stage)
    return found


def measure_into(
    found: Measurement, cell: Cell, session: Session, task: Task | None, stage: Note
) -> None:
    """Fill `found` with the accuracy and cost of `cell`, the cheap and telling parts first.

    Raises:
        Unsupported: the method cannot run on this model, or the model not do this task.
        BenchError: a measurement contradicts itself; whatever the model raises comes through.
    """
    model = session.loaded.model
    sizes = cell.batch_sizes or session.profile.batch_sizes
    with apply(session.loaded, cell):
        stage("counting")
        found.params = parameters(model)
        found.macs, found.tokens = count(cell, session)
        stage("accuracy")
        adaptive = any(run.adaptive for run in runs(model))
        with observing(Kept()) if adaptive else nullcontext(Kept()) as kept:
            found.accuracy = accuracy(cell, session, task, stage)
        found.notes += unlike(session.loaded, kept)
        for batch in sizes:
            stage(f"time, batch {batch}")
            found.latency.append(time_at(batch, cell, session, found.macs.total))
        if session.loaded.kind == "multimodal":
            stage("time, answers")
            found.generation = answer(cell, session)
        stage("memory")
        if session.profile.device == "cuda":
            found.memory = peak_memory(cell, session, max(sizes))
    found.accuracy = seeds.over_seeds(
        found.accuracy,
        cell,
        session,
        lambda seed: accuracy(cell, session, task, lambda what: stage(f"seed {seed}, {what}")),
    )
    if session.profile.device != "cuda":
        found.memory = peak_memory(cell, session, max(sizes))


def count_into(found: Measurement, cell: Cell) -> None:
    """Fill `found` with what shapes alone tell: MACs, parameters, tokens, bytes of the cache."""
    from bench import cost

    loaded = cost.on_meta(cell.model, cell.dtype or "float32")
    with cost.prompted(loaded) as inputs:
        speaks = loaded.kind == "multimodal"
        plain = bench.count_macs(loaded.model, **inputs)
        unreduced = generation.stage_macs(loaded.model, inputs) if speaks else None
        with apply(loaded, cell):
            found.params = parameters(loaded.model)
            found.macs, found.tokens = counted(loaded, inputs, plain.total)
            if unreduced is not None:
                own = generation.stage_macs(loaded.model, inputs)
                found.generation = Generation(
                    NEW_TOKENS, own.macs, unreduced.macs, own.kv_bytes, unreduced.kv_bytes
                )


def count(cell: Cell, session: Session) -> tuple[Macs, dict[str, list[tuple[int, int]]]]:
    """Return the MACs of one example by both counters, and the tokens in and out of each block."""
    loaded = session.loaded
    return counted(loaded, loaded.example_inputs(1), session.baseline_macs.total)


def counted(
    loaded: Loaded, inputs: dict[str, Any], baseline: int
) -> tuple[Macs, dict[str, list[tuple[int, int]]]]:
    """Return the same of a model as it is now, beside what it counts unreduced."""
    operators = bench.count_macs(loaded.model, **inputs)
    trace = bench.trace(loaded.model, **inputs)
    found = Macs(
        total=operators.total,
        reduction=operators.reduction,
        closed_form=macs.check_counters(loaded.model, trace, operators),
        baseline_total=baseline,
        scope=loaded.scope,
        by_op=dict(operators.by_op),
    )
    return found, {tower: list(tokens) for tower, tokens in trace.tokens.items()}


def accuracy(cell: Cell, session: Session, task: Task | None, stage: Note) -> Accuracy:
    """Return the score of the model as it is now, or why there is none."""
    if session.loaded.random:
        return Accuracy(None, reason="random weights: no accuracy can be taken from them")
    if cell.task == COST_ONLY or task is None:
        return Accuracy(None, reason="cost only: no task was asked for")
    with redrawing():
        scored = task.evaluate(
            session.loaded,
            limit=cell.limit,
            batch_size=EVALUATION_BATCH,
            progress=lambda done, total: stage(f"accuracy, {done} of {total}"),
        )
    reason = None
    if scored.failed:
        shown = ", ".join(scored.failed[:20]) + (" …" if len(scored.failed) > 20 else "")
        reason = f"images that did not decode and count as wrong ({len(scored.failed)}): {shown}"
    return Accuracy(scored.primary, scored.metrics, scored.outcomes, reason)


def time_at(batch: int, cell: Cell, session: Session, total_macs: int) -> Latency:
    """Return the paired timings of the reduced and the unreduced model at one batch size.

    A batch-size's time budget (`cell.latency_seconds`) bounds the pairs, never below five.
    """
    model, profile = session.loaded.model, session.profile
    inputs = session.loaded.example_inputs(batch)
    settings: dict[str, Any] = {
        "repeats": profile.repeats,
        "warmup": profile.warmup,
        "device": profile.device,
        "min_seconds": cell.latency_seconds / 2,
        "max_seconds": cell.latency_seconds,
        "threads": profile.threads,
    }

    def against(plain: nn.Module) -> latency.Paired:
        return latency.paired(lambda: plain(**inputs), lambda: model(**inputs), **settings)

    pair = against(session.plain)
    fast_name, fast = session.fastest(batch)
    versus = pair if fast is session.plain else against(fast)
    share = 0.0
    if not cell.baseline:
        share = latency.reduction_share(
            lambda: model(**inputs), warmup=0, device=profile.device, threads=profile.threads
        )
    used = latency.utilisation(total_macs * batch, pair.b.p50_ms, profile, session.dtype)
    return Latency(
        batch=batch,
        dtype=session.dtype,
        backend=session.backend,
        device=profile.device,
        threads=pair.threads,
        samples_ms=[round(ms, DIGITS) for ms in pair.b.samples_ms],
        baseline_samples_ms=[round(ms, DIGITS) for ms in pair.a.samples_ms],
        p50_ms=pair.b.p50_ms,
        p95_ms=pair.b.p95_ms,
        p99_ms=pair.b.p99_ms,
        throughput_per_s=pair.b.throughput_per_s(batch),
        speedup=Speedup(pair.speedup.median, pair.speedup.ci95, session.backend),
        speedup_vs_fastest=Speedup(versus.speedup.median, versus.speedup.ci95, fast_name),
        reduction_share=share,
        attention_path=attention_path(model),
        utilisation=used,
    )


def answer(cell: Cell, session: Session) -> Generation:
    """Return what an answer of `NEW_TOKENS` tokens costs, stage by stage, to one prompt."""
    plain, model = session.plain, session.loaded.model
    inputs = session.loaded.example_inputs(1)
    own, unreduced = (generation.stage_macs(m, inputs) for m in (model, plain))
    timed = generation.paired_stages(
        plain,
        model,
        inputs,
        new_tokens=NEW_TOKENS,
        max_seconds=cell.latency_seconds,
        threads=session.profile.threads,
    )
    stages = [
        Stage(
            name,
            [round(ms, DIGITS) for ms in pair.b.samples_ms],
            [round(ms, DIGITS) for ms in pair.a.samples_ms],
            pair.b.p50_ms,
            Speedup(pair.speedup.median, pair.speedup.ci95, session.backend),
        )
        for name, pair in timed.items()
    ]
    return Generation(
        NEW_TOKENS, own.macs, unreduced.macs, own.kv_bytes, unreduced.kv_bytes, stages
    )


def attention_path(model: nn.Module) -> str:
    """Return how the last pass carried token sizes into attention: "plain", "mask" or "channel"."""
    paths = {run.attention_path for run in runs(model)}
    return next((path for path in ("mask", "channel") if path in paths), "plain")


def parameters(model: nn.Module) -> Params:
    """Return the parameters of a model and of the methods at work in it.

    Untrained stand-ins ("random"), which are made up in each pass, are not among them.
    """
    reducers = {id(part.reducer): part.reducer for run in runs(model) for part in run.parts}
    learned = chain.from_iterable(reducer.learned.values() for reducer in reducers.values())
    added = sum(tensor.numel() for tensor in learned)
    return Params(sum(tensor.numel() for tensor in model.parameters()) + added, added)


def runs(model: nn.Module) -> list[Pass]:
    """Return the passes at work in a model: `reduced()` leaves a bound method on each block."""
    overrides = (module.__dict__.get("forward") for module in model.modules())
    owners = (getattr(getattr(call, "func", None), "__self__", None) for call in overrides)
    return list({id(owner): owner for owner in owners if isinstance(owner, Pass)}.values())


def peak_memory(cell: Cell, session: Session, batch: int) -> Memory:
    """Return the peak memory at one batch size, beside the unreduced model's."""
    if session.profile.device == "cuda":
        torch.cuda.empty_cache()
    plain = session.baseline_memory(cell, batch)
    own = plain if cell.baseline else session.memory(cell, batch)
    return Memory(
        peak_bytes=own.peak_bytes,
        weights_bytes=own.weights_bytes,
        batch=batch,
        how=own.how,
        baseline_peak_bytes=plain.peak_bytes,
        activation_bytes=own.activation_bytes,
        baseline_activation_bytes=plain.activation_bytes,
    )
