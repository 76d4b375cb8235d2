"""Timed answers of a language model: to one prompt, and to batches of unequal prompts as served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from bench.measure import generation
from bench.measure.blocks import Blocks, Limits
from bench.measure.memory import is_out_of_memory
from bench.measure.timing import Paired
from bench.models.noise import unequal
from bench.records.record import Cell, Generation, Served, Speedup, Stage
from bench.runs.session import ANSWERS, Session

NEW_TOKENS = 16  # of the answers that are timed
DIGITS = 4  # of a millisecond: what a clock can tell, and a diff can show

Inputs = Callable[[int], Mapping[str, Any]]  # batch -> the arguments of a model


class AnswerTiming:
    """The paired timings of answers, at one prompt and at each larger batch that was asked for.

    A batch that does not fit into memory is left out, with a note.
    """

    def __init__(
        self,
        cell: Cell,
        session: Session,
        inputs: Inputs,
        limits: Limits,
        stage: Callable[..., Any],
    ) -> None:
        """Nothing is timed yet."""
        self.session, self.limits, self.stage = session, limits, stage
        loaded = session.loaded
        self._inputs: dict[int, Mapping[str, Any]] = {1: loaded.example_inputs(1)}
        for batch in sorted({*cell.answer_batches} - {1}):
            self._inputs[batch] = unequal(loaded.model, inputs(batch))
        self._blocks: dict[int, Blocks] = {}
        self._filled: dict[int, tuple[float | None, float | None]] = {}
        self._notes: list[str] = []

    def round(self) -> None:
        """Take another block of each timing."""
        for batch in list(self._inputs):
            self.stage("time, answers" + (f" to {batch} prompts" if batch > 1 else ""))
            try:
                self._add(batch)
            except Exception as error:
                if batch == 1 or not is_out_of_memory(error):
                    raise
                self._notes.append(f"answers to {batch} prompts at once need more memory: left out")
                del self._inputs[batch]

    def _add(self, batch: int) -> None:
        inputs = self._inputs[batch]
        plain, model = self.session.plain, self.session.loaded.model
        if batch not in self._blocks:
            usual = self.session.usual_ms.get(_kind(batch))
            a, b = (generation.sampler(side, inputs, NEW_TOKENS) for side in (plain, model))
            self._blocks[batch] = Blocks(a, b, self.limits, generation.ANSWER, usual)
        self._blocks[batch].add()
        if batch > 1 and batch not in self._filled:
            self._filled[batch] = (
                generation.filled_share(model, inputs),
                float(inputs["attention_mask"].float().mean()),
            )

    def generation(self) -> tuple[Generation, list[str]]:
        """Return what answers of `NEW_TOKENS` tokens cost, and what was left out."""
        session, inputs = self.session, self._inputs[1]
        reduced, plain = (
            generation.stage_macs(model, inputs) for model in (session.loaded.model, session.plain)
        )
        answers = Generation(
            NEW_TOKENS,
            reduced.macs,
            plain.macs,
            reduced.kv_bytes,
            plain.kv_bytes,
            **self._timed(1, generation.TIMES),
            served=list(self._served()),
        )
        return answers, self._notes

    def _served(self) -> Iterator[Served]:
        for batch, (filled, baseline_filled) in self._filled.items():
            if batch in self._inputs:
                timed = self._timed(batch, generation.BATCH_TIMES)
                yield Served(batch, **timed, filled=filled, baseline_filled=baseline_filled)

    def _timed(self, batch: int, stages: tuple[str, ...]) -> dict[str, Any]:
        """Return the fields that `Generation` and `Served` have of a timing."""
        blocks, threads = self._blocks[batch], self.session.threads
        pairs = {name: blocks.paired(name, threads, generation.clock()) for name in stages}
        quiet = blocks.disturbance is None
        usual = pairs[generation.ANSWER].a.p50_ms if quiet else None
        self.session.note_baseline(_kind(batch), usual)
        return {
            "stages": [self._stage(name, pair) for name, pair in pairs.items()],
            "disturbed": not quiet,
            "disturbance": blocks.disturbance,
            "attempts": blocks.attempts,
            "load": round(max(blocks.loads), 3),
        }

    def _stage(self, name: str, pair: Paired) -> Stage:
        return Stage(
            name,
            rounded(pair.b.samples_ms),
            rounded(pair.a.samples_ms),
            pair.b.p50_ms,
            recorded(pair, self.session.backend, self.session.engine),
        )


def _kind(batch: int) -> str:
    """Return what kind of timing the answers to a batch are, for `Session.usual_ms`."""
    return ANSWERS if batch == 1 else f"{ANSWERS} {batch}"


def recorded(pair: Paired, backend: str, engine: str) -> Speedup:
    """Return a speed-up with the attention backend and the engine of the unreduced side."""
    return replace(pair.speedup, backend=backend, engine=engine)


def rounded(samples_ms: tuple[float, ...]) -> list[float]:
    """Return times as records have them."""
    return [round(ms, DIGITS) for ms in samples_ms]
