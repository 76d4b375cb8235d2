"""How more and more samples reach a model, and none of them twice: a third kind of `Feed`.

memory: list[Asked] = []
for size in (128, 192, 256):
scored = task.score(Growing(loaded, order[:size], 64, memory=memory))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.runs.asking import ASKED, FACTS, Heard, Phase, Standing
from bench.runs.numbering import Undivided
from bench.tasks.base import Answer, Feed, Sample
from bench.tasks.pictures import Prepared


@dataclass
class Asked(Phase):
    """What a model said in one phase; `about` are the texts that were put to it."""

    about: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Growing(Feed):
    """A feed that asks a model of those samples alone that no earlier feed of its memory asked of.

    What it said of the others is handed out again, batch by batch.
    """

    memory: list[Asked] = field(default_factory=list)
    place: list[int] = field(default_factory=lambda: [0])  # of the next phase

    def __post_init__(self) -> None:
        """Stand between the task and the model."""
        if not isinstance(self.loaded, Standing):
            object.__setattr__(self, "loaded", _Remembered(self.loaded))

    def images(self, prepared: Prepared) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield batches without pixels, of which is known what was said, then the new ones."""
        phase = self._next("images")
        for known, decoded in zip(list(phase.said), list(phase.decoded), strict=True):
            self.loaded.known = known
            yield torch.empty(len(decoded), 0), decoded
        done = sum(map(len, phase.decoded))

        def new() -> Iterator[Any]:
            feed = replace(self._plain(done), index=self.index[done:])
            for images, decoded in feed.images(prepared):
                phase.decoded.append(decoded)
                yield images, decoded

        yield from self._listened(phase, new())
        if len(phase.said) != len(phase.decoded):
            raise Undivided("a batch is not asked about once")

    def texts(self, texts: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield batches without tokens, of which is known what was said, then the new ones."""
        phase = self._next("texts")
        done = len(phase.about)
        if phase.about != list(texts[:done]):
            raise Undivided("its texts are others with more samples")
        for known in list(phase.said):
            self.loaded.known = known
            yield {}
        phase.about += texts[done:]
        yield from self._listened(phase, self._plain().texts(texts[done:]))

    def answers(
        self, samples: Sequence[Sample], ask: Callable[[Sequence[Sample]], Sequence[Answer]]
    ) -> list[Answer]:
        """Return the answers that are known, and those to the new samples."""
        phase = self._next("answers")
        self.loaded.open = True
        for start in range(len(phase.said), len(samples), self.size):
            phase.said += ask(samples[start : start + self.size])
            self._tell(len(phase.said), len(samples))
        self.loaded.open = False
        return list(phase.said)

    def _listened(self, phase: Asked, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches that the model is asked about, and keep what it says."""
        self.loaded.known, self.loaded.listening = None, phase
        yield from batches
        self.loaded.listening = None

    def _next(self, kind: str) -> Asked:
        """Return the next phase, which an earlier feed may have been through."""
        place = self.place[0]
        self.place[0] += 1
        if place == len(self.memory):
            self.memory.append(Asked(kind))
        if self.memory[place].kind != kind:
            raise Undivided("it asks in another order with more samples")
        return self.memory[place]

    def _plain(self, done: int = 0) -> Feed:
        """Return the same without a memory; `done` samples count as done."""
        total = len(self.index)
        return Feed(
            self.loaded.loaded,
            self.index,
            self.size,
            self.device,
            lambda more, _: self._tell(done + more, total),
        )


class _Remembered(Heard):
    """A model that is listened to, and in whose place what it said before may stand.

    Attributes:
        known: what it said of the batch that a task is at; None: it is asked.
    """

    def __init__(self, loaded: Any) -> None:
        super().__init__(loaded)
        self.known: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the model has; raises Undivided for what nothing is known of."""
        if name in ASKED and not self.open:
            return lambda inputs: self._say(getattr(self.loaded, name), inputs)
        if self.known is not None and name not in FACTS and not name.startswith("__"):
            raise Undivided(f"the task asks for the model's {name}")
        return getattr(self.loaded, name)

    def _say(self, ask: Callable[[Any], Any], inputs: Any) -> Tensor:
        if self.known is not None:
            return self.known.to(self.loaded.device)
        return super()._say(ask, inputs)
