"""How a task's samples reach a model of which only some batches run, or none: two kinds of `Feed`.

A task asks in *phases*: it goes through batches of images, of texts, or of samples to be answered.
`Recording` runs a shard's batches of each phase and keeps what the model said; `Replaying` hands
the task what all shards kept, in the order of the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.runs.numbering import Numbers, Undivided
from bench.tasks.base import Answer, Feed, Sample
from bench.tasks.pictures import Prepared

ASKED = ("logits", "encode_images", "encode_texts")  # what a model says of a batch, as tensors
# What else a task may look at in a phase of images or texts.
FACTS = ("name", "kind", "classes", "tokenizer", "channels", "image_size", "device", "dtype")


@dataclass
class Phase:
    """What the model said in one phase.

    Attributes:
        kind: "images", "texts" or "answers".
        said: by batch, in their order: a tensor a batch, or the answers to its samples.
        decoded: of each batch, which of its images decoded.
    """

    kind: str
    said: list[Any] = field(default_factory=list)
    decoded: list[list[bool]] = field(default_factory=list)


@dataclass
class Part:
    """What a shard's model said in one evaluation; `failed` names images that did not decode.

    Only of images that answers were asked about: of others, `Phase.decoded` tells.
    """

    phases: list[Phase]
    failed: list[str]

    def plain(self) -> dict[str, Any]:
        """Return it as lists, mappings and tensors."""
        phases = [[phase.kind, phase.said, phase.decoded] for phase in self.phases]
        return {"phases": phases, "failed": self.failed}

    @staticmethod
    def of(plain: dict[str, Any]) -> Part:
        """Return the part that `plain` was made of."""
        return Part([Phase(*phase) for phase in plain["phases"]], plain["failed"])


@dataclass(frozen=True)
class Recording(Feed):
    """A feed that runs a shard's batches and keeps what the model said of them.

    In each phase the shard's batches come first. Those of other shards follow, as copies of what
    the model said last, so that the task's code comes to its end; its score is of no use.
    """

    choose: Callable[[int], range] = range  # of so many batches, the shard's
    numbers: Numbers = field(default_factory=Numbers)
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Stand between the task and the model."""
        if not isinstance(self.loaded, Standing):
            object.__setattr__(self, "loaded", Heard(self.loaded))

    def part(self, failed: list[str]) -> Part:
        """Return what was kept; `failed` are the names that the task returned."""
        answers = [phase for phase in self.phases if phase.kind == "answers"]
        asked = any(phase.said for phase in answers)
        return Part(self.phases, failed if asked else [])

    def images(self, prepared: Prepared) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield the shard's batches, then blank ones."""

        def batches(some: range) -> Iterator[tuple[Any, list[bool]]]:
            index = self.index[some.start * self.size : some.stop * self.size]
            for images, ok in replace(self._plain(), index=index).images(prepared):
                if self.loaded.listening is phase:
                    phase.decoded.append(ok)
                yield images, ok

        def blank(rows: int) -> tuple[Any, list[bool]]:
            return torch.empty(rows, 0), [True] * rows

        phase = Phase("images")
        yield from self._heard(phase, len(self.index), batches, blank)

    def texts(self, texts: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield the shard's batches, then blank ones."""

        def batches(some: range) -> Iterator[Any]:
            yield from self._plain().texts(texts[some.start * self.size : some.stop * self.size])

        yield from self._heard(Phase("texts"), len(texts), batches, lambda rows: {"": rows})

    def answers(
        self, samples: Sequence[Sample], ask: Callable[[Sequence[Sample]], Sequence[Answer]]
    ) -> list[Answer]:
        """Return the answers to the shard's batches, then copies of the last one."""
        phase, count = Phase("answers"), -(-len(samples) // self.size)
        mine = self.choose(count)
        self._begin(phase, mine)
        self.loaded.open = True
        answers: list[Answer] = []
        for number in mine or range(1):
            said = list(ask(samples[number * self.size : (number + 1) * self.size]))
            if mine:
                phase.said.append(said)
            answers += said
            self._tell(len(answers), len(mine) * self.size)
        self.loaded.open = False
        self.numbers.end(phase.kind, mine, count)
        answers = answers[: len(samples)]
        return answers + [answers[-1]] * (len(samples) - len(answers))

    def _heard(
        self,
        phase: Phase,
        length: int,
        batches: Callable[[range], Iterator[Any]],
        blank: Callable[[int], Any],
    ) -> Iterator[Any]:
        """Yield a phase's batches: the shard's, with the model listened to, then blank ones."""
        count = -(-length // self.size)
        mine = self.choose(count)
        self._begin(phase, mine)
        rows = [min(self.size, length - number * self.size) for number in range(count)]
        self.loaded.listening = phase if mine else None
        yield from batches(mine or range(1))
        ran = list(mine or range(1))
        if mine and len(phase.said) != len(mine):
            raise Undivided("a batch is not asked about once")
        self.numbers.end(phase.kind, mine, count)
        for number in range(count):
            if number not in ran:
                self.loaded.blank = rows[number]
                yield blank(rows[number])
        self.loaded.listening = self.loaded.blank = None

    def _begin(self, phase: Phase, mine: range) -> None:
        self.phases.append(phase)
        self.numbers.begin(phase.kind, mine)

    def _plain(self) -> Feed:
        """The same without anything kept."""
        return Feed(self.loaded.loaded, self.index, self.size, self.device, self.progress)


class Standing:
    """Something in a model's place, that is taken for one of its kind."""

    loaded: Any

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what `isinstance` asks, after the type itself
        """The model's kind."""
        return self.loaded.__class__


class Heard(Standing):
    """A model that is listened to: what a task asks of it, and nothing else, reaches it.

    Attributes:
        loaded: the model.
        listening: the phase that what it says belongs to.
        blank: rows of a batch that another shard runs, to which it says what it said last.
        open: answers are asked for, in whichever way.
    """

    def __init__(self, loaded: Any) -> None:
        """Listen to nothing yet."""
        self.loaded = loaded
        self.listening: Phase | None = None
        self.blank: int | None = None
        self.open = False
        self._last: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the model has; raises Undivided for what a shard cannot do without all."""
        if name in ASKED and not self.open:
            return lambda inputs: self._say(getattr(self.loaded, name), inputs)
        if not (self.open or name in FACTS or name.startswith("__")):
            raise Undivided(f"the task asks for the model's {name}")
        return getattr(self.loaded, name)

    def _say(self, ask: Callable[[Any], Any], inputs: Any) -> Tensor:
        if self.blank is not None:
            if self._last is None:
                raise Undivided("the task asks about no batch of its own")
            return self._last[:1].expand(self.blank, *self._last.shape[1:])
        said = ask(inputs)
        if not isinstance(said, Tensor):
            raise Undivided("the model says more than a tensor of a batch")
        self._last = said
        if self.listening is not None:
            self.listening.said.append(said.cpu())
        return said


@dataclass(frozen=True)
class Replaying(Feed):
    """A feed that asks no model: it hands out what the shards kept."""

    parts: Sequence[Part] = ()
    place: list[int] = field(default_factory=lambda: [0])  # of the next phase

    def __post_init__(self) -> None:
        """Stand between the task and the model."""
        if not isinstance(self.loaded, Standing):
            object.__setattr__(self, "loaded", _Said(self.loaded))

    def images(self, prepared: Prepared) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield batches without pixels, and which of their images decoded."""
        phases = self._next("images")
        decoded = list(chain.from_iterable(phase.decoded for phase in phases))
        self._check(sum(map(len, decoded)), len(self.index))
        self.loaded.said = chain.from_iterable(phase.said for phase in phases)
        for ok in decoded:
            yield torch.empty(len(ok), 0), ok

    def texts(self, texts: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield batches without tokens."""
        said = [one for phase in self._next("texts") for one in phase.said]
        self._check(sum(map(len, said)), len(texts))
        self.loaded.said = iter(said)
        yield from ({} for _ in said)

    def answers(
        self, samples: Sequence[Sample], ask: Callable[[Sequence[Sample]], Sequence[Answer]]
    ) -> list[Answer]:
        """Return the answers that were kept."""
        batches = chain.from_iterable(phase.said for phase in self._next("answers"))
        answers: list[Answer] = list(chain.from_iterable(batches))
        self._check(len(answers), len(samples))
        return answers

    def _next(self, kind: str) -> list[Phase]:
        """Return every shard's part of the next phase."""
        place = self.place[0]
        self.place[0] += 1
        phases = [part.phases[place] for part in self.parts if place < len(part.phases)]
        if len(phases) < len(self.parts) or any(phase.kind != kind for phase in phases):
            raise BenchError("the shards are of another task: run them again")
        return phases

    def _check(self, found: int, wanted: int) -> None:
        if found != wanted:
            raise BenchError(f"the shards have {found} of {wanted} samples: run them again")


class _Said(Standing):
    """A model that says what the shards heard, batch after batch."""

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded
        self.said: Iterator[Tensor] = iter(())

    def __getattr__(self, name: str) -> Any:
        """Return what the model has, or what it said."""
        if name in ASKED:
            return lambda inputs: next(self.said).to(self.loaded.device)
        return getattr(self.loaded, name)
