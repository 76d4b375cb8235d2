"""Image classification: top 1 and top 5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.assets import embedded
from bench.core.errors import BenchError, Unsupported, shown
from bench.models.loaded import Classifier
from bench.tasks import files
from bench.tasks.base import Evaluation, Feed, Task, hash_of
from bench.tasks.pictures import Arrays, Pictures, Prepared, undecoded
from bench.tasks.registry import task
from bench.tasks.scores import ranks_of_labels, top_k

IMAGE_FOLDER = "imagefolder:PATH"


class Classification(Task):
    """Labelled pictures; label i is the model's output i."""

    kinds = (Classifier,)

    def __init__(
        self, name: str, version: str, pictures: Pictures, labels: Sequence[int], classes: int
    ) -> None:
        """Name the task and its data."""
        super().__init__(name, version, labels)
        self.prepared, self.labels, self.classes = Prepared(pictures), labels, classes

    def by_sample(self, metric: str) -> bool:
        """Yes: an image is judged alone."""
        return True

    def score(self, feed: Feed) -> Evaluation:
        """Score a classifier. Outcomes: `correct` is 0 or 1 an image, `rank` counts from 0."""
        loaded = feed.loaded
        if loaded.classes != self.classes:
            raise Unsupported(
                f"{loaded.name} has {loaded.classes} outputs, task '{self.name}' has "
                f"{self.classes} classes: name a model that was trained for it"
            )
        ranks: list[int] = []
        decoded: list[bool] = []
        for images, ok in feed.images(self.prepared):
            logits = loaded.logits(images)
            labels = [self.labels[i] for i in feed.index[len(ranks) : len(ranks) + len(images)]]
            ranks += ranks_of_labels(logits, labels, ok)
            decoded += ok
        failed = undecoded(self.prepared.pictures, feed.index, decoded)
        return top_k(ranks, self.classes, failed)


@task(
    "fashion-mnist",
    "classification of 2,000 held-out Fashion-MNIST images, 10 classes (top 1, 5)",
)
def fashion_mnist() -> Classification:
    """Return the embedded Fashion-MNIST test images."""
    images, labels = embedded.fashion_test()
    version = hash_of(images.tobytes(), labels.tolist())
    pictures = Arrays(images, "fashion-mnist image")
    return Classification("fashion-mnist", version, pictures, labels.tolist(), 10)


def _size(file: Path) -> int | None:
    """Return a file's bytes; None of a link that leads nowhere."""
    try:
        return file.stat().st_size
    except OSError:
        return None


@task(IMAGE_FOLDER, "classification; one folder a class, in the order of the model's outputs")
def image_folder(path: str) -> Classification:
    """Return the pictures under `path`: one folder a class, classes in alphabetical order."""
    where, _ = files.options(path, IMAGE_FOLDER)
    root = files.path_of(where, IMAGE_FOLDER)
    classes, paths, labels = files.class_folders(root)
    if not paths:
        raise BenchError(
            f"no images in folders under {shown(root)}: {IMAGE_FOLDER} wants PATH/CLASS/x.png"
        )
    pictures = files.pictures(paths, root, IMAGE_FOLDER)
    sizes = [(pictures.name(i), _size(file)) for i, file in enumerate(paths)]
    return Classification(f"imagefolder:{path}", hash_of(sizes), pictures, labels, len(classes))
