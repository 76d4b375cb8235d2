"""What every task shares: samples, metrics with their intervals, ranks that ties cannot flatter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from bench.core.errors import BenchError, Unsupported
from bench.records.record import Metric

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from bench.models.loaded import Loaded

Kind = TypeVar("Kind", bound="Loaded")
Sample = TypeVar("Sample")
Said = TypeVar("Said")
Progress = Callable[[int, int], None]  # (samples done, samples in all)

CACHE_BYTES = 1 << 30  # prepared images are kept between cells up to this size


@dataclass(frozen=True)
class Evaluation:
    """A model's score on a task.

    Attributes:
        metrics: by name; percent metrics run from 0 to 100.
        primary: the name of the metric that tables show.
        outcomes: per-sample results, in the order of the samples, to compare methods pairwise.
        failed: names of samples whose image did not decode; they count as wrong.
    """

    metrics: dict[str, Metric]
    primary: str
    outcomes: dict[str, list[Any]]
    failed: list[str] = field(default_factory=list)


class Task(Protocol):
    """Held-out data and how to score a model on them."""

    name: str
    version: str  # changes when the data change

    def __len__(self) -> int:
        """Return the number of images."""

    def evaluate(
        self,
        loaded: Loaded,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score a model as it is now, reduced or not.

        Args:
            loaded: the model and how to feed it.
            limit: use this many images, the same for every model and method.
            batch_size: images a forward pass.
            device: where the model is; None asks the model.
            progress: called after each batch.

        Raises:
            Unsupported: this model cannot do this task.
            BenchError: its weights are random, or it says not how images are prepared.
        """


class Pictures(Protocol):
    """Images by position, each with a name that a person can find it by."""

    def __len__(self) -> int:
        """Return how many there are."""

    def name(self, index: int) -> str:
        """Return the name of one image."""

    def open(self, index: int) -> Image:
        """Return one image, decoded; raises OSError or ValueError when it cannot be."""


@dataclass(frozen=True)
class Arrays:
    """Pictures in memory: (N,H,W) or (N,H,W,3) uint8."""

    pixels: Any
    label: str = "image"

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return the name of one image."""
        return f"{self.label} {index}"

    def open(self, index: int) -> Image:
        """Return one image."""
        from PIL import Image

        return Image.fromarray(np.asarray(self.pixels[index]))


@dataclass(frozen=True)
class Files:
    """Pictures in files."""

    paths: Sequence[Path]
    root: Path

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path below the root."""
        path = self.paths[index]
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def open(self, index: int) -> Image:
        """Return one image, decoded."""
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            image.load()
            return image.copy()


class Prepared:
    """Pictures as the batches a model takes, kept between cells while they are small."""

    def __init__(self, pictures: Pictures) -> None:
        """Wrap pictures; nothing is opened yet."""
        self.pictures = pictures
        self._kept: tuple[Any, list[tuple[Tensor, list[bool]]]] | None = None

    def batches(
        self, loaded: Loaded, index: Sequence[int], size: int
    ) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield (B,C,H,W) float32 batches and which of their images decoded (the others are 0)."""
        key = (loaded.name, tuple(index), size)
        if self._kept is not None and self._kept[0] == key:
            yield from self._kept[1]
            return
        batches: list[tuple[Tensor, list[bool]]] = []
        held = 0
        for start in range(0, len(index), size):
            batch = self._prepare(loaded, index[start : start + size])
            held += batch[0].numel() * 4
            batches = [*batches, batch] if held <= CACHE_BYTES else []
            yield batch
        if held <= CACHE_BYTES:
            self._kept = (key, batches)

    def _prepare(self, loaded: Loaded, index: Sequence[int]) -> tuple[Tensor, list[bool]]:
        import torch

        images = torch.zeros(len(index), loaded.channels, *loaded.image_size)
        decoded = []
        for row, i in enumerate(index):
            try:
                picture = self.pictures.open(i)
            except (OSError, ValueError, SyntaxError):  # Pillow raises all three on broken files
                decoded.append(False)
                continue
            images[row] = loaded.pixels(picture)
            decoded.append(True)
        return images, decoded


def refuse_random(loaded: Loaded) -> None:
    """Raise BenchError when a model's weights are random: its accuracy would mean nothing."""
    if loaded.random:
        raise BenchError(f"{loaded.name} has random weights: no accuracy can be taken from them")


def require(loaded: Loaded, kinds: type[Kind] | tuple[type[Kind], ...], task: str) -> Kind:
    """Return a model as one of the kinds that a task needs.

    Raises:
        Unsupported: it is of another kind.
    """
    if isinstance(loaded, kinds):
        return loaded
    names = [kind.kind for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    raise Unsupported(
        f"task '{task}' needs {_a(' or '.join(names))} model; {loaded.name} is {_a(loaded.kind)}"
    )


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def subset(n: int, limit: int | None) -> list[int]:
    """Return which samples a limit leaves: spread over the data, the same for everyone."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(np.random.default_rng(0).permutation(n)[:limit].tolist())


def in_batches(
    samples: Sequence[Sample],
    size: int,
    say: Callable[[Sequence[Sample]], Sequence[Said]],
    tell: Progress | None,
) -> list[Said]:
    """Return what a model says to each sample, so many at a time, without gradients."""
    import torch

    said: list[Said] = []
    with torch.inference_mode():
        for start in range(0, len(samples), size):
            said += say(samples[start : start + size])
            if tell is not None:
                tell(len(said), len(samples))
    return said


def proportion(ranks: Sequence[int], k: int) -> Metric:
    """Return the percentage of `ranks` (0-based) below `k`, with its Wilson interval."""
    from statsmodels.stats.proportion import proportion_confint

    hits, n = sum(rank < k for rank in ranks), len(ranks)
    low, high = proportion_confint(hits, n, method="wilson")
    return Metric(100 * hits / n, "%", (100 * float(low), 100 * float(high)), n)


def average(scores: Sequence[float], unit: str, scale: float = 1.0) -> Metric:
    """Return the mean of `scores`, times `scale`, with Student's interval where there is one."""
    mean = scale * sum(scores) / len(scores)
    if len(scores) < 2:
        return Metric(mean, unit, None, len(scores))
    from statsmodels.stats.weightstats import DescrStatsW

    low, high = DescrStatsW(scores).tconfint_mean()
    return Metric(mean, unit, (scale * float(low), scale * float(high)), len(scores))


def ranks_of(scores: Tensor, own: Tensor) -> Tensor:
    """Return the 0-based rank of each query's best right answer, ties counted against it.

    A wrong answer that scores the same as the right one stands before it, and so does one that
    cannot be compared (NaN): an embedding that is the same for everything scores nothing.

    Args:
        scores: (Q,A) score of each answer for each query.
        own: (Q,A) bool, the right answers, at least one a query.
    """
    import torch

    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return (~(scores < best) & ~own).sum(1)


def normalised(features: Tensor) -> Tensor:
    """Return (B,C) float32 features of length 1."""
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1)


def hash_of(*parts: object) -> str:
    """Return the sha256 over the parts: bytes as they are, anything else as text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update((part if isinstance(part, bytes) else str(part).encode()) + b"\0")
    return digest.hexdigest()


def to_model(batch: Tensor, loaded: Loaded, device: str | torch.device | None) -> Tensor:
    """Return a batch on the model's device, in its dtype."""
    return batch.to(device or loaded.device, loaded.dtype)
