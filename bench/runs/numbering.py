"""The numbers of batches in a pass over some of them: random methods draw by these."""

from __future__ import annotations

from itertools import chain
from typing import Any

from bench.core.errors import BenchError


class Undivided(BenchError):
    """A task that cannot be divided into shards; its cells run whole."""


class Numbers(dict[Any, int]):
    """The numbers of batches, by pass, as one process would count them: see `redrawing`.

    A pass asks for the number of its next batch with `get`, and sets the one after.

    Attributes:
        start: the number of a pass's next batch, where it has seen none.
        strict: a method at work draws by these numbers, so that they must be one process's.
    """

    def __init__(self, strict: bool = True) -> None:
        """No batch was seen."""
        super().__init__()
        self.start, self.strict = 0, strict
        self._before: dict[str, int] = {}  # batches of earlier phases, by their kind
        self._seen: dict[str, set[Any]] = {}  # the passes that such phases went through
        self._then: dict[Any, int] = {}  # the numbers at the beginning of this phase

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the number of a pass's next batch."""
        return super().get(key, self.start)

    def begin(self, kind: str, batches: range) -> None:
        """Number the next batches as those of a phase of this kind."""
        self.start = self._before.get(kind, 0) + batches.start
        for key in self._seen.get(kind, ()):
            self[key] = self.start
        self._then = dict(self)

    def end(self, kind: str, batches: range, count: int) -> None:
        """Count a phase of `count` batches, of which `batches` ran; without any, a first one did.

        Raises:
            Undivided: a pass ran more or less than once a batch, and a method draws by its number.
        """
        end = self._before.get(kind, 0) + batches.stop
        ran = {key for key, number in self.items() if number != self._then.get(key)}
        others = set(chain.from_iterable(s for k, s in self._seen.items() if k != kind))
        self._before[kind] = self._before.get(kind, 0) + count
        if not batches:
            self.clear()
            self.update(self._then)
        elif self.strict and (ran & others or any(self[key] != end for key in ran)):
            raise Undivided("a batch is not one pass through the model, and a method draws")
        else:
            self._seen[kind] = self._seen.get(kind, set()) | ran
