"""Measure one cell: accuracy and cost, from the same reduced forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import bench
from bench.measure import latency, macs
from bench.record import (
    COST_ONLY,
    Accuracy,
    Cell,
    Cost,
    Latency,
    Macs,
    Memory,
    Params,
    Speedup,
)
from bench.session import Session, apply
from bench.tasks import Task

EVALUATION_BATCH = 64
DIGITS = 4  # of a millisecond: what a clock can tell, and a diff can show

Stage = Callable[[str], None]  # told what is being measured


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

    def cost(self) -> Cost:
        """Return the cost part of the record."""
        return Cost(self.macs, self.params, self.tokens, self.latency, self.memory, self.notes)


def measure(cell: Cell, session: Session, task: Task | None, stage: Stage) -> Measurement:
    """Return everything about `cell`; see `measure_into`."""
    found = Measurement()
    measure_into(found, cell, session, task, stage)
    return found


def measure_into(
    found: Measurement, cell: Cell, session: Session, task: Task | None, stage: Stage
) -> None:
    """Fill `found` with the accuracy and cost of `cell`, the cheap and telling parts first.

    Raises:
        Unsupported: the method cannot run on this model, or the model not do this task.
        BenchError: a measurement contradicts itself; whatever the model raises comes through.
    """
    model = session.loaded.model
    sizes = cell.batch_sizes or session.profile.batch_sizes
    plain_parameters = _parameters(model)
    with apply(session.loaded, cell):
        stage("counting")
        found.params = Params(_parameters(model), _parameters(model) - plain_parameters)
        found.macs, found.tokens = count(cell, session)
        stage("accuracy")
        found.accuracy = accuracy(cell, session, task, stage)
        for batch in sizes:
            stage(f"time, batch {batch}")
            found.latency.append(time_at(batch, cell, session, found.macs.total))
        stage("memory")
        if session.profile.device == "cuda":
            found.memory = peak_memory(cell, session, max(sizes))
    if session.profile.device != "cuda":
        found.memory = peak_memory(cell, session, max(sizes))


def count(cell: Cell, session: Session) -> tuple[Macs, dict[str, list[tuple[int, int]]]]:
    """Return the MACs of one example by both counters, and the tokens in and out of each block."""
    model, inputs = session.loaded.model, session.loaded.example_inputs(1)
    counted = bench.count_macs(model, **inputs)
    trace = bench.trace(model, **inputs)
    closed = macs.check_counters(model, trace, counted)
    found = Macs(
        total=counted.total,
        reduction=counted.reduction,
        closed_form=closed,
        baseline_total=session.baseline_macs.total,
        scope=session.loaded.scope,
        by_op=dict(counted.by_op),
    )
    return found, {tower: list(tokens) for tower, tokens in trace.tokens.items()}


def accuracy(cell: Cell, session: Session, task: Task | None, stage: Stage) -> Accuracy:
    """Return the score of the model as it is now, or why there is none."""
    if session.loaded.random:
        return Accuracy(None, reason="random weights: no accuracy can be taken from them")
    if cell.task == COST_ONLY or task is None:
        return Accuracy(None, reason="cost only: no task was asked for")
    scored = task.evaluate(
        session.loaded,
        limit=cell.limit,
        batch_size=EVALUATION_BATCH,
        progress=lambda done, total: stage(f"accuracy, {done} of {total}"),
    )
    reason = None
    if scored.failed:
        shown = ", ".join(scored.failed[:20]) + (" …" if len(scored.failed) > 20 else "")
        reason = f"{len(scored.failed)} images did not decode and count as wrong: {shown}"
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
    share = latency.reduction_share(
        lambda: model(**inputs), device=profile.device, threads=profile.threads
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


def attention_path(model: nn.Module) -> str:
    """Return how the last pass carried token sizes into attention: "plain", "mask" or "channel"."""
    paths = set()
    for module in model.modules():
        # `reduced()` leaves a bound method of its pass on each block: that pass knows.
        override = module.__dict__.get("forward")
        run = getattr(getattr(override, "func", None), "__self__", None)
        paths.add(getattr(run, "attention_path", "plain"))
    return next((path for path in ("mask", "channel") if path in paths), "plain")


def peak_memory(cell: Cell, session: Session, batch: int) -> Memory:
    """Return the peak memory at one batch size, beside the unreduced model's."""
    if session.profile.device == "cuda":
        torch.cuda.empty_cache()
    own = session.memory(cell, batch)
    plain = own if cell.baseline else session.baseline_memory(cell, batch)
    return Memory(
        peak_bytes=own.peak_bytes,
        weights_bytes=own.weights_bytes,
        batch=batch,
        how=own.how,
        baseline_peak_bytes=plain.peak_bytes,
        activation_bytes=own.activation_bytes,
        baseline_activation_bytes=plain.activation_bytes,
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
