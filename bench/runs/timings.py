"""All timings of one cell, taken in rounds that are spread over the cell's time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.measure import latency
from bench.measure.blocks import Blocks, Limits, no_garbage_collection
from bench.measure.engines import engaged, forget, settled
from bench.measure.timing import Paired
from bench.models.loaded import Multimodal
from bench.records.record import EAGER, Cell, Generation, Latency
from bench.runs.answers import AnswerTiming, Inputs, recorded, rounded
from bench.runs.session import Session

Run = Callable[..., object]  # a model, or its compiled code
Note = Callable[[str], None]  # told what is being measured


class CellTiming:
    """The paired timings of a reduced model: a forward pass at each batch size, and an answer.

    Each `round()` takes a block of every timing. Between rounds the cell does its other work, so
    that a timing sees the machine at several moments.
    """

    def __init__(self, cell: Cell, session: Session, inputs: Inputs, stage: Note) -> None:
        """Nothing is timed yet."""
        self.cell, self.session, self.stage = cell, session, stage
        if session.engine != EAGER:
            forget()  # what was compiled for other cells
        profile = session.profile
        pairs = max(profile.repeats, Limits.pairs)
        seconds = cell.latency_seconds
        self.limits = Limits(pairs, seconds / 2, seconds, warmup=profile.warmup)
        self.batches = tuple(cell.batch_sizes or profile.batch_sizes)
        self.inputs = {batch: inputs(batch) for batch in self.batches}
        self._passes: dict[int, Blocks] = {}
        self._against_fastest: dict[int, Blocks] = {}
        self._answers: AnswerTiming | None = None
        if isinstance(session.loaded, Multimodal):
            self._answers = AnswerTiming(cell, session, inputs, self.limits, stage)
        gc.collect()

    @property
    def rounds(self) -> int:
        """How many rounds make a timing."""
        return self.limits.blocks

    def round(self) -> None:
        """Take another block of each timing."""
        threads = latency.using_threads(self.session.profile.threads)
        with torch.inference_mode(), threads, no_garbage_collection():
            for batch in self.batches:
                self.stage(f"time, batch {batch}")
                if batch not in self._passes:
                    self._begin(batch)
                with settled(self.session.engine):
                    self._passes[batch].add()
                    if batch in self._against_fastest:
                        self._against_fastest[batch].add()
            if self._answers:
                self._answers.round()

    def _begin(self, batch: int) -> None:
        session, inputs = self.session, self.inputs[batch]
        if session.engine != EAGER:
            self.stage(f"compile, batch {batch}")
        plain, model = (
            engaged(side, session.engine, inputs) for side in (session.plain, session.loaded.model)
        )
        usual = session.usual_ms.get(str(batch))
        self._passes[batch] = self._pass_blocks(plain, model, inputs, usual)
        fastest = session.fastest(batch)
        if fastest[:2] != (session.backend, session.engine):
            other = engaged(fastest.model, fastest.engine, inputs)
            self._against_fastest[batch] = self._pass_blocks(other, model, inputs, None)

    def _pass_blocks(
        self, plain: Run, model: Run, inputs: Mapping[str, Any], usual: float | None
    ) -> Blocks:
        device = self.session.profile.device
        return Blocks(
            latency.sampler(lambda: plain(**inputs), device),
            latency.sampler(lambda: model(**inputs), device),
            self.limits,
            latency.PASS,
            usual,
        )

    # --- what the rounds said ----------------------------------------------------------------

    def latencies(self, macs: int) -> list[Latency]:
        """Return the timing of each batch size; `macs` are those of one example."""
        return [self._latency(batch, macs) for batch in self.batches]

    def _latency(self, batch: int, macs: int) -> Latency:
        session, profile = self.session, self.session.profile
        blocks = self._passes[batch]
        pair = self._paired(blocks, latency.PASS, latency.clock_of(profile.device))
        versus, fastest = pair, self._against_fastest.get(batch)
        if fastest is not None:
            versus = self._paired(fastest, latency.PASS, pair.clock)
        disturbances = [b.disturbance for b in (blocks, fastest) if b and b.disturbance]
        speedup = recorded(pair, session.backend, session.engine)
        quiet = blocks.disturbance is None
        session.note_baseline(str(batch), pair.a.p50_ms if quiet else None)
        if self.cell.baseline:
            session.equal[batch] = speedup
        return Latency(
            batch=batch,
            dtype=session.dtype,
            backend=session.backend,
            device=profile.device,
            threads=pair.threads,
            samples_ms=rounded(pair.b.samples_ms),
            baseline_samples_ms=rounded(pair.a.samples_ms),
            p50_ms=pair.b.p50_ms,
            p95_ms=pair.b.p95_ms,
            p99_ms=pair.b.p99_ms,
            throughput_per_s=pair.b.throughput_per_s(batch),
            speedup=speedup,
            speedup_vs_fastest=recorded(versus, *session.fastest(batch)[:2]),
            reduction_share=self._reduction_share(batch),
            attention_path=None,
            utilisation=latency.utilisation(macs * batch, pair.b.p50_ms, profile, session.dtype),
            disturbed=bool(disturbances),
            disturbance="; ".join(dict.fromkeys(disturbances)) or None,
            attempts=max(b.attempts for b in (blocks, fastest) if b),
            load=round(max(blocks.loads), 3),
            dispersion=round(pair.a.dispersion, 4),
            equal=session.equal.get(batch),
            engine=session.engine,
        )

    def _reduction_share(self, batch: int) -> float | None:
        if self.cell.baseline:
            return 0.0
        if self.session.engine != EAGER:  # in a compiled pass nobody can tell
            return None
        model, inputs = self.session.loaded.model, self.inputs[batch]
        profile = self.session.profile
        return latency.reduction_share(
            lambda: model(**inputs), warmup=0, device=profile.device, threads=profile.threads
        )

    def generation(self) -> tuple[Generation | None, list[str]]:
        """Return what answers cost, and notes about what could not be timed."""
        return self._answers.generation() if self._answers else (None, [])

    def _paired(self, blocks: Blocks, stage: str, clock: str) -> Paired:
        return blocks.paired(stage, self.session.threads, clock)
