"""Blocks of paired timings: quadruples A B B A, spread in time, taken again where disturbed.

timing = Blocks(sample_plain, sample_reduced, Limits(pairs=16))
timing.add(); ...; timing.add()          # at least two, with other work in between
timing.paired("pass").speedup.ci95
"""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.core.errors import BenchError
from bench.measure import load
from bench.measure.timing import Block, Paired, paired_of

BLOCKS = 4
MIN_PAIRS = 16  # below this the interval of a median says little
PAUSES_S = (0.5, 1.0, 2.0)  # before a disturbed block is taken again, up to three times

Sample = Callable[[], Mapping[str, float]]  # one call: milliseconds by stage


@dataclass(frozen=True)
class Limits:
    """How much a timing takes, all its blocks together.

    Attributes:
        pairs: pairs to take, in whole quadruples a block.
        min_seconds: more pairs are taken until this much time has passed.
        max_seconds: fewer are taken once it has, but never fewer than `min_pairs`.
        min_pairs: see `max_seconds`.
        blocks: how many blocks the pairs come in.
        warmup: untimed calls of each side ahead of the first block; one ahead of the others, and
            one where it takes a block's time.
    """

    pairs: int = MIN_PAIRS
    min_seconds: float = 0.0
    max_seconds: float | None = None
    min_pairs: int = MIN_PAIRS
    blocks: int = BLOCKS
    warmup: int = 3

    def __post_init__(self) -> None:
        """Refuse what gives no interval.

        Raises:
            BenchError: too few pairs or blocks.
        """
        if self.blocks < 2 or self.min_pairs < 1 or self.pairs < 2 * self.blocks:
            raise BenchError(
                f"{self.pairs} pairs in {self.blocks} blocks: an interval needs two blocks or "
                "more, each of two pairs or more"
            )

    @property
    def block_seconds(self) -> float:
        """The time that a block may take, infinite without `max_seconds`."""
        return math.inf if self.max_seconds is None else self.max_seconds / self.blocks

    def goes_on(self, pairs: int, seconds: float) -> bool:
        """Whether a block of so many pairs and seconds is to have another quadruple."""
        if pairs < min(self.min_pairs, self.pairs) / self.blocks:
            return True
        if seconds >= self.block_seconds:
            return False
        return pairs < self.pairs / self.blocks or seconds < self.min_seconds / self.blocks


@dataclass
class Blocks:
    """A paired timing of two sides, block by block.

    Attributes:
        sample_a: times one call of the baseline.
        sample_b: times one call of the other side.
        limits: how much to take.
        lead: the stage of the baseline that is judged for disturbances.
        usual_ms: the median of that stage in other timings of the same kind, where known.
        watched: disturbed blocks are taken again.
        attempts: 1, and one more for each time that a block was taken again.
        loads: processors that other processes kept busy during each block that was kept.
        disturbances: by what one can tell that a block that was kept was disturbed.
    """

    sample_a: Sample
    sample_b: Sample
    limits: Limits
    lead: str
    usual_ms: float | None = None
    watched: bool = True
    attempts: int = 1
    loads: list[float] = field(default_factory=list)
    disturbances: list[str] = field(default_factory=list)
    _blocks: list[dict[str, Block]] = field(default_factory=list)

    def add(self) -> None:
        """Take another block; where it is disturbed, again, after a pause.

        Attempts are counted over all blocks, so that lasting load costs three more at the most.
        """
        if not self.watched:
            self._blocks.append(self._take())
            return
        while True:
            before = load.look()
            start = load.Snapshot.take()
            block = self._take()
            busy = max(before, load.Snapshot.take().others_since(start))
            reason = load.disturbance(busy, block[self.lead].a, self.usual_ms)
            if reason is None or self.attempts > len(PAUSES_S):
                break
            time.sleep(PAUSES_S[self.attempts - 1])
            self.attempts += 1
        self._blocks.append(block)
        self.loads.append(busy)
        if reason is not None:
            self.disturbances.append(reason)

    def paired(self, stage: str, threads: int, clock: str) -> Paired:
        """Return what the blocks say of a stage."""
        return paired_of([block[stage] for block in self._blocks], threads, clock)

    @property
    def stages(self) -> list[str]:
        """The stages that the sides tell of."""
        return list(self._blocks[0])

    @property
    def disturbance(self) -> str | None:
        """By what one can tell that the timing was disturbed; None where it was quiet."""
        kinds = {re.sub(r"[\d.]+", "", reason): reason for reason in self.disturbances}
        return "; ".join(kinds.values()) or None

    def _take(self) -> dict[str, Block]:
        """Take a block, taken apart by stage."""
        limits = self.limits
        sides: tuple[list[Mapping[str, float]], list[Mapping[str, float]]] = ([], [])
        start = time.perf_counter()
        for _ in range(1 if self._blocks else limits.warmup):
            self.sample_a(), self.sample_b()
            if time.perf_counter() - start >= limits.block_seconds:
                break
        start = time.perf_counter()
        while limits.goes_on(len(sides[0]), time.perf_counter() - start):
            sides[0].append(self.sample_a())
            sides[1].append(self.sample_b())
            sides[1].append(self.sample_b())
            sides[0].append(self.sample_a())
        a, b = sides
        return {
            stage: Block(tuple(s[stage] for s in a), tuple(s[stage] for s in b)) for stage in a[0]
        }


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no garbage in the body: a collection in mid-sample is not the model's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
