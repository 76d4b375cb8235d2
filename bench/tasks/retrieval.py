"""Image-text retrieval: recall at 1, 5 and 10, from image to text and from text to image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.assets import embedded
from bench.models.loaded import TwoTower
from bench.tasks import files
from bench.tasks.base import Evaluation, Feed, Task, hash_of, require_tokenizer
from bench.tasks.karpathy import TEST
from bench.tasks.karpathy import read as read_karpathy
from bench.tasks.pictures import Arrays, Pictures, Prepared, undecoded
from bench.tasks.registry import task
from bench.tasks.scores import proportion, ranks_of

RECALLS = (1, 5, 10)
FORM = "karpathy:JSON[:IMAGES]"


class Retrieval(Task):
    """Pictures, each with one or more texts that describe it.

    With a limit, only the texts of the pictures that are left are searched: fewer distractors, so
    figures under different limits do not compare. With `all_texts` each picture is compared with
    the texts of all, whatever the limit; texts still search among the pictures that are left.
    """

    kinds = (TwoTower,)

    def __init__(
        self,
        name: str,
        version: str,
        pictures: Pictures,
        texts: Sequence[Sequence[str]],
        all_texts: bool = False,
    ) -> None:
        """Name the task and its data; `texts[i]` are the captions of picture i."""
        super().__init__(name, version, texts)
        self.prepared, self.texts, self.all_texts = Prepared(pictures), texts, all_texts

    def searched(self, index: Sequence[int]) -> tuple[list[int], list[str]]:
        """Return the texts that some pictures are compared with, and the row of each one's picture.

        That of a distractor is -1. Texts of all pictures are in one order, whichever are searched.
        """
        if not self.all_texts:
            return flattened(self.texts, index)
        rows = {picture: row for row, picture in enumerate(index)}
        owners = [rows.get(i, -1) for i, texts in enumerate(self.texts) for _ in texts]
        return owners, [text for texts in self.texts for text in texts]

    def by_sample(self, metric: str) -> bool:
        """Where all texts are searched, what is found of an image."""
        return self.all_texts and metric.startswith("i2t_")

    def score(self, feed: Feed) -> Evaluation:
        """Score a two-tower model.

        Outcomes are 0-based ranks: `rank_i2t` an image, of its best caption; `rank_t2i` a caption,
        of its image. Images without a caption are distractors only.
        """
        require_tokenizer(feed.loaded)
        owners, texts = self.searched(feed.index)
        images, decoded = image_features(feed, self.prepared)
        scores = images @ text_features(feed, texts).T
        broken = torch.tensor(decoded, device=scores.device).logical_not()
        # An image that did not decode is in nobody's way, and is never found.
        scores = scores.masked_fill(broken.unsqueeze(1), -torch.inf)
        failed = undecoded(self.prepared.pictures, feed.index, decoded)
        return recalls(scores, scores, owners, failed)


def flattened(texts: Sequence[Sequence[str]], index: Sequence[int]) -> tuple[list[int], list[str]]:
    """Return the texts of some images, and of each text the place of its image among them."""
    owners = [row for row, i in enumerate(index) for _ in texts[i]]
    return owners, [text for i in index for text in texts[i]]


def recalls(
    to_texts: Tensor, to_images: Tensor, owners: Sequence[int], failed: list[str]
) -> Evaluation:
    """Return the recalls and ranks that two (images, texts) matrices of scores give.

    Args:
        to_texts: what each image makes of every text.
        to_images: what each text makes of every image; often the same.
        owners: of each text, the row of its image; -1 where that is not among them.
        failed: names of images that did not decode.
    """
    rows = torch.arange(len(to_texts), device=to_texts.device).unsqueeze(1)
    right = torch.tensor(owners, device=to_texts.device) == rows
    asked, owned = right.any(1), right.any(0)
    ranks = {
        "i2t": ranks_of(to_texts[asked], right[asked]).tolist(),
        "t2i": ranks_of(to_images[:, owned].T, right[:, owned].T).tolist(),
    }
    metrics = {f"{way}_r{k}": proportion(of, k) for way, of in ranks.items() for k in RECALLS}
    outcomes = {f"rank_{way}": of for way, of in ranks.items()}
    return Evaluation(metrics, "i2t_r1", outcomes, failed)


def image_features(feed: Feed, prepared: Prepared) -> tuple[Tensor, list[bool]]:
    """Return a two-tower model's features of some images, of length 1, and which decoded."""
    features: list[Tensor] = []
    decoded: list[bool] = []
    for images, ok in feed.images(prepared):
        features.append(feed.loaded.encode_images(images))
        decoded += ok
    return torch.cat(features), decoded


def text_features(feed: Feed, texts: Sequence[str]) -> Tensor:
    """Return a two-tower model's features of texts, of length 1."""
    return torch.cat([feed.loaded.encode_texts(tokens) for tokens in feed.texts(texts)])


@task(
    "emoji-retrieval",
    "emoji drawings of a held-out design house against their names, both ways",
)
def emoji() -> Retrieval:
    """Return the embedded drawings of the held-out design house, with their names."""
    images, texts = embedded.emoji_test()
    version = hash_of(images.tobytes(), *texts)
    pictures = Arrays(images, "emoji image")
    return Retrieval("emoji-retrieval", version, pictures, [[text] for text in texts])


@task(FORM, "retrieval; Karpathy-style split file with several captions an image")
def karpathy(rest: str, split: str = TEST) -> Retrieval:
    """Return a split of a Karpathy-style file; `split` is it where no option names one."""
    where, options = files.options(rest, FORM, ("split",))
    data = read_karpathy(where, FORM, options.get("split"), split)
    return Retrieval(f"karpathy:{rest}", data.version, data.pictures, data.texts)
