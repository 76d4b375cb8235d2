"""Zero-shot classification: each picture against the names of the classes, put into sentences.

    zeroshot:FOLDER[?templates=ensemble]        emoji-zeroshot

A class's feature is the mean of its sentences' features, each of length 1, made of length 1 again.
Source: CLIP (zero-shot notebook); CoOp (trainers/zsclip.py) for the sentences of each data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.models.loaded import TwoTower
from bench.tasks.base import (
    Arrays,
    Evaluation,
    Pictures,
    Prepared,
    Progress,
    hash_of,
    normalised,
    proportion,
    ranks_of,
    refuse_random,
    require,
    subset,
)
from bench.tasks.retrieval import image_features, require_tokenizer, text_features, undecoded

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.loaded import Loaded

USUAL = "a photo of a {}."
# CoOp's sentence of each data set, by the name in its `split_zhou_NAME.json`; USUAL for the others.
TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}
# The seven sentences that CLIP's authors found enough for ImageNet.
ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def templates_for(data_set: str, ensemble: bool = False) -> tuple[str, ...]:
    """Return the sentences of a data set: its own, after the seven where they are asked for."""
    own = TEMPLATES.get(data_set, USUAL)
    return (*ENSEMBLE, own) if ensemble else (own,)


class ZeroShot:
    """Labelled pictures, and the names of the classes."""

    def __init__(
        self,
        name: str,
        version: str,
        pictures: Pictures,
        labels: Sequence[int],
        classes: Sequence[str],
        templates: Sequence[str] = (USUAL,),
    ) -> None:
        """Name the task and its data; `{}` in a template stands for a class's name."""
        self.name, self.version, self.prepared = name, version, Prepared(pictures)
        self.labels, self.classes, self.templates = labels, classes, templates

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
        """Score a two-tower model; see `bench.tasks.Task`. Outcomes: `correct`, and 0-based `rank`.

        A limit leaves images out, never classes.
        """
        import torch

        model = require(loaded, TwoTower, self.name)
        refuse_random(loaded)
        require_tokenizer(model)
        index = subset(len(self), limit)
        with torch.inference_mode():
            names = self.class_features(model, batch_size, device)
            images, decoded = image_features(
                model, self.prepared, index, batch_size, device, progress
            )
            scores = images @ names.T
        right = torch.tensor([self.labels[i] for i in index], device=scores.device)
        own = torch.nn.functional.one_hot(right, len(self.classes)).bool()
        ranks = [
            rank if ok else len(self.classes)  # a broken picture is right at no length of list
            for rank, ok in zip(ranks_of(scores, own).tolist(), decoded, strict=True)
        ]
        metrics = {"top1": proportion(ranks, 1)}
        if len(self.classes) > 5:
            metrics["top5"] = proportion(ranks, 5)
        outcomes = {"correct": [int(rank == 0) for rank in ranks], "rank": ranks}
        return Evaluation(metrics, "top1", outcomes, undecoded(self.prepared, index, decoded))

    def class_features(self, loaded: TwoTower, size: int, device: str | None) -> Tensor:
        """Return (classes, C) features of length 1, each the mean over the templates."""
        import torch

        names = [name.replace("_", " ") for name in self.classes]
        each = [
            text_features(loaded, [template.format(name) for name in names], size, device)
            for template in self.templates
        ]
        return normalised(torch.stack(each).mean(0))


def emoji() -> ZeroShot:
    """Return the embedded drawings of the held-out design house, one class each, by their labels.

    A model that was trained on labels with keywords gets the label alone, without a sentence.
    """
    import pyarrow.parquet as pq

    from bench.assets import embedded

    images, _ = embedded.emoji_test()
    table = pq.read_table(embedded.path("emoji_test.parquet"), columns=["label"])
    classes: list[str] = table.column("label").to_pylist()
    version = hash_of(images.tobytes(), *classes)
    labels = range(len(classes))
    return ZeroShot(
        "emoji-zeroshot", version, Arrays(images, "emoji image"), labels, classes, ("{}",)
    )
