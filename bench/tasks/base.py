"""What every task shares: which samples, which models, and how one reaches the other."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError, Unsupported
from bench.records.record import Metric

if TYPE_CHECKING:
    from bench.models.loaded import Loaded
    from bench.tasks.pictures import Prepared

Sample = TypeVar("Sample")
Answer = TypeVar("Answer")
Progress = Callable[[int, int], None]  # (samples done, samples in all)


@dataclass(frozen=True)
class Evaluation:
    """A model's score on a task.

    Attributes:
        metrics: by name; percent metrics run from 0 to 100.
        primary: the name of the metric that tables show; None, and no metrics, where the answers
            are recorded for a server that scores them.
        outcomes: per-sample results, in the order of the samples, to compare methods pairwise.
        failed: names of samples whose image did not decode; they count as wrong.
    """

    metrics: dict[str, Metric]
    primary: str | None
    outcomes: dict[str, list[Any]]
    failed: list[str] = field(default_factory=list)


class Task(ABC):
    """Held-out data and how to score a model on them.

    Attributes:
        kinds: of models that can do the task.
        name: as users type it.
        version: changes when the data change.
    """

    kinds: ClassVar[tuple[type[Loaded], ...]]

    def __init__(self, name: str, version: str, samples: Sequence[Any]) -> None:
        """Name the task and its data."""
        self.name, self.version, self._samples = name, version, samples

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    def evaluate(
        self,
        loaded: Loaded,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score a model as it is now, reduced or not. What the outcomes are, `score` says.

        Args:
            loaded: the model and how to feed it.
            limit: use this many samples, the same for every model and method.
            batch_size: samples a forward pass.
            device: where the model is; None asks the model.
            progress: called after each batch.

        Raises:
            Unsupported: this model cannot do this task.
            BenchError: its weights are random, or it says not how images are prepared.
        """
        require(loaded, self.kinds, self.name)
        refuse_random(loaded)
        index = subset(len(self), limit)
        with torch.inference_mode():
            return self.score(Feed(loaded, index, batch_size, device, progress))

    def by_sample(self, metric: str) -> bool:
        """Whether a metric scores each sample whatever other samples there are.

        Such metrics of unequally many samples compare. One that depends on the others (a text's
        image is looked for among all images, say) does not, nor one that nobody answers for.
        """
        return False

    @abstractmethod
    def score(self, feed: Feed) -> Evaluation:
        """Score the model of `feed` on its samples, without gradients."""


@dataclass(frozen=True)
class Feed:
    """How a task's samples reach a model.

    Attributes:
        loaded: the model and how to feed it.
        index: the samples that a limit leaves.
        size: samples a forward pass.
        device: where the model is; None asks the model.
        progress: called after each batch.
    """

    loaded: Any
    index: Sequence[int]
    size: int = 64
    device: str | None = None
    progress: Progress | None = None

    def images(self, prepared: Prepared) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield batches (B,C,H,W) in the model's dtype, and which of their images decoded."""
        done = 0
        for batch, decoded in prepared.batches(self.loaded, self.index, self.size):
            yield batch.to(self.device or self.loaded.device, self.loaded.dtype), decoded
            done += len(decoded)
            self._tell(done, len(self.index))

    def texts(self, texts: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield texts as the model's tokenizer gives them, in batches; see `require_tokenizer`."""
        for start in range(0, len(texts), self.size):
            tokens = self.loaded.tokenizer(list(texts[start : start + self.size]))
            device = self.device or self.loaded.device
            yield {key: value.to(device) for key, value in tokens.items()}

    def answers(
        self, samples: Sequence[Sample], ask: Callable[[Sequence[Sample]], Sequence[Answer]]
    ) -> list[Answer]:
        """Return what a model answers to each sample, asked in batches."""
        answers: list[Answer] = []
        for start in range(0, len(samples), self.size):
            answers += ask(samples[start : start + self.size])
            self._tell(len(answers), len(samples))
        return answers

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def refuse_random(loaded: Loaded) -> None:
    """Raise BenchError when a model's weights are random: its accuracy would mean nothing."""
    if loaded.random:
        raise BenchError(f"{loaded.name} has random weights: no accuracy can be taken from them")


def require(loaded: Loaded, kinds: tuple[type[Loaded], ...], task: str) -> None:
    """Raise Unsupported when a model is of another kind than a task needs."""
    if not isinstance(loaded, kinds):
        needed = _a(" or ".join(kind.kind for kind in kinds))
        raise Unsupported(f"task '{task}' needs {needed} model; {loaded.name} is {_a(loaded.kind)}")


def require_tokenizer(loaded: Any) -> None:
    """Raise BenchError when a model came without its tokenizer."""
    if loaded.tokenizer is None:
        raise BenchError(f"{loaded.name} has no tokenizer: put its files beside its weights")


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def subset(n: int, limit: int | None) -> list[int]:
    """Return which samples a limit leaves: spread over the data, the same for everyone.

    Those of a smaller limit come first among those of a larger one; all samples without a limit are
    in the order of the data.
    """
    return list(range(n)) if limit is None or limit >= n else shuffled(n)[:limit]


def shuffled(n: int) -> list[int]:
    """Return all samples in an order of which any beginning is spread over the data."""
    order: list[int] = np.random.default_rng(0).permutation(n).tolist()
    return order


def hash_of(*parts: object) -> str:
    """Return the sha256 over the parts: bytes as they are, anything else as text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update((part if isinstance(part, bytes) else str(part).encode()) + b"\0")
    return digest.hexdigest()
