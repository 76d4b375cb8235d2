"""Image classification: top 1 and top 5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError, Unsupported
from bench.models.loaded import Classifier
from bench.tasks.base import (
    Arrays,
    Evaluation,
    Files,
    Pictures,
    Prepared,
    Progress,
    hash_of,
    proportion,
    ranks_of,
    refuse_random,
    require,
    subset,
    to_model,
)

if TYPE_CHECKING:
    from bench.models.loaded import Loaded

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".ppm"})


class Classification:
    """Labelled pictures; label i is the model's output i."""

    def __init__(
        self, name: str, version: str, pictures: Pictures, labels: Sequence[int], classes: int
    ) -> None:
        """Name the task and its data."""
        self.name, self.version = name, version
        self.prepared, self.labels, self.classes = Prepared(pictures), labels, classes

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def evaluate(
        self,
        loaded: Loaded,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score a classifier; see `bench.tasks.Task`. Outcome `correct` is 0 or 1 an image."""
        import torch

        model = require(loaded, Classifier, self.name)
        refuse_random(loaded)
        if model.classes != self.classes:
            raise Unsupported(
                f"{loaded.name} has {model.classes} outputs, task '{self.name}' has "
                f"{self.classes} classes: name a model that was trained for it"
            )
        index = subset(len(self), limit)
        ranks: list[int] = []
        failed: list[str] = []
        with torch.inference_mode():
            for images, decoded in self.prepared.batches(loaded, index, batch_size):
                here = index[len(ranks) : len(ranks) + len(images)]
                logits = model.logits(to_model(images, loaded, device))
                right = torch.tensor([self.labels[i] for i in here], device=logits.device)
                own = torch.nn.functional.one_hot(right, logits.shape[1]).bool()
                batch_ranks = ranks_of(logits, own).tolist()
                for i, rank, ok in zip(here, batch_ranks, decoded, strict=True):
                    ranks.append(rank if ok else self.classes)
                    if not ok:
                        failed.append(self.prepared.pictures.name(i))
                if progress is not None:
                    progress(len(ranks), len(index))
        metrics = {"top1": proportion(ranks, 1)}
        if self.classes > 5:
            metrics["top5"] = proportion(ranks, 5)
        outcomes = {"correct": [int(rank == 0) for rank in ranks], "rank": ranks}
        return Evaluation(metrics, "top1", outcomes, failed)


def fashion_mnist() -> Classification:
    """Return the embedded Fashion-MNIST test images."""
    from bench.assets import embedded

    images, labels = embedded.fashion_test()
    version = hash_of(images.tobytes(), labels.tolist())
    pictures = Arrays(images, "fashion-mnist image")
    return Classification("fashion-mnist", version, pictures, labels.tolist(), 10)


def image_folder(path: str) -> Classification:
    """Return the pictures under `path`: one folder a class, classes in alphabetical order."""
    root = Path(path).expanduser()
    folders = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    found = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise BenchError(
            f"no images in folders under {root}: imagefolder: wants {root}/CLASS/x.png"
        )
    files = Files([file for file, _ in found], root)
    sizes = [(files.name(i), file.stat().st_size) for i, (file, _) in enumerate(found)]
    labels = [label for _, label in found]
    return Classification(f"imagefolder:{path}", hash_of(sizes), files, labels, len(folders))
