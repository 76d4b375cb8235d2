"""Zero-shot classification: each picture against the names of the classes, put into sentences.

    zeroshot:FOLDER[?templates=ensemble]        emoji-zeroshot

A class's feature is the mean of its sentences' features, each of length 1, made of length 1 again.
Source: CLIP (zero-shot notebook); CoOp (trainers/zsclip.py) for the sentences of each data set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.assets import embedded
from bench.models.loaded import TwoTower
from bench.tasks.base import Evaluation, Feed, Task, hash_of, require_tokenizer
from bench.tasks.pictures import Arrays, Pictures, Prepared, undecoded
from bench.tasks.registry import task
from bench.tasks.retrieval import image_features, text_features
from bench.tasks.scores import ranks_of_labels, top_k

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
    sentence = TEMPLATES.get(data_set, USUAL)
    return (*ENSEMBLE, sentence) if ensemble else (sentence,)


class ZeroShot(Task):
    """Labelled pictures, and the names of the classes. A limit leaves images out, never classes."""

    kinds = (TwoTower,)

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
        super().__init__(name, version, labels)
        self.prepared, self.labels = Prepared(pictures), labels
        self.classes, self.templates = classes, templates

    def by_sample(self, metric: str) -> bool:
        """Yes: an image meets all classes, whatever the limit."""
        return True

    def score(self, feed: Feed) -> Evaluation:
        """Score a two-tower model. Outcomes: `correct`, and 0-based `rank`."""
        require_tokenizer(feed.loaded)
        names = self.class_features(feed)
        images, decoded = image_features(feed, self.prepared)
        labels = [self.labels[i] for i in feed.index]
        ranks = ranks_of_labels(images @ names.T, labels, decoded)
        failed = undecoded(self.prepared.pictures, feed.index, decoded)
        return top_k(ranks, len(self.classes), failed)

    def class_features(self, feed: Feed) -> Tensor:
        """Return (classes, C) features of length 1, each the mean over the templates."""
        names = [name.replace("_", " ") for name in self.classes]
        each = [
            text_features(feed, [template.replace("{}", name) for name in names])
            for template in self.templates
        ]
        return torch.nn.functional.normalize(torch.stack(each).mean(0), dim=-1)


@task(
    "emoji-zeroshot",
    "emoji drawings of a held-out design house among 1,636 labels (top 1, 5)",
)
def emoji() -> ZeroShot:
    """Return the embedded drawings of the held-out design house, one class each, by their labels.

    A model that was trained on labels with keywords gets the label alone, without a sentence.
    """
    images, _ = embedded.emoji_test()
    table = embedded.emoji_table("label")
    classes: list[str] = table.column("label").to_pylist()
    version = hash_of(images.tobytes(), *classes)
    pictures = Arrays(images, "emoji image")
    return ZeroShot("emoji-zeroshot", version, pictures, range(len(classes)), classes, ("{}",))
