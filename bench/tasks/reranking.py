"""Retrieval re-ranked by image-text matching, as BLIP and ALBEF are evaluated.

    rerank-karpathy:JSON[:IMAGES][?k=256&split=test]

Every image and text is compared by its features first. The `k` nearest are then looked at together,
and ordered by the logit of their match added to the similarity; whatever is further away is never
found. `k` decides the result: 128 up to 1,000 images (Flickr30k) and 256 above (COCO).

Source: `evaluation` in train_retrieval.py of salesforce/BLIP, `k_test` in its configs.
Departures: a matched text begins with [CLS], as in transformers; the authors put [ENC] there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.models.loaded import Matcher
from bench.tasks import files, karpathy
from bench.tasks.base import Evaluation, Feed, Task, hash_of, require_tokenizer
from bench.tasks.pictures import Pictures, Prepared, undecoded
from bench.tasks.registry import task
from bench.tasks.retrieval import flattened, recalls

FORM = "rerank-karpathy:JSON[:IMAGES]"
FEW_IMAGES, K_FEW, K_MANY = 1000, 128, 256


class ReRanking(Task):
    """Pictures, each with one or more texts; the best found are compared again, in pairs.

    With a limit, only the texts of the pictures that are left are searched, as in `Retrieval`.
    """

    kinds = (Matcher,)

    def __init__(
        self, name: str, version: str, pictures: Pictures, texts: Sequence[Sequence[str]], k: int
    ) -> None:
        """Name the task and its data; the `k` nearest of each query are re-ranked."""
        super().__init__(name, hash_of(version, k, "logit"), texts)
        self.prepared, self.texts, self.k = Prepared(pictures), texts, k

    def score(self, feed: Feed) -> Evaluation:
        """Score a matcher. Outcomes are ranks, as in `Retrieval`.

        Images are encoded twice, for their features and for their matches: the tokens of all of
        COCO's at once would take 12 GB.
        """
        require_tokenizer(feed.loaded)
        owners, texts = flattened(self.texts, feed.index)
        similar, decoded = self._similarities(replace(feed, progress=None), texts)
        to_texts = nearest(similar, self.k)
        to_images = nearest(similar.T, self.k).T
        matches = self._matches(feed, texts, to_texts | to_images)
        scores = (similar + matches).masked_fill(~decoded.unsqueeze(1), -torch.inf)
        return recalls(
            scores.masked_fill(~to_texts, -torch.inf),
            scores.masked_fill(~to_images, -torch.inf),
            owners,
            undecoded(self.prepared.pictures, feed.index, decoded.tolist()),
        )

    def _similarities(self, feed: Feed, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the (images, texts) cosines, -inf for broken images, and which decoded."""
        images: list[Tensor] = []
        decoded: list[bool] = []
        for pixels, ok in feed.images(self.prepared):
            images.append(feed.loaded.encode_images(pixels)[0].float())
            decoded += ok
        words = [feed.loaded.encode_texts(tokens).float() for tokens in feed.texts(texts)]
        similar = torch.cat(images) @ torch.cat(words).T
        there = torch.tensor(decoded, device=similar.device)
        return similar.masked_fill(~there.unsqueeze(1), -torch.inf), there

    def _matches(self, feed: Feed, texts: Sequence[str], wanted: Tensor) -> Tensor:
        """Return the (images, texts) logits of the wanted pairs, 0 elsewhere."""
        matches = torch.zeros(wanted.shape, device=wanted.device)
        row = 0
        for pixels, decoded in feed.images(self.prepared):
            tokens = feed.loaded.encode_images(pixels)[1]
            for image, ok in zip(tokens, decoded, strict=True):
                columns = wanted[row].nonzero().squeeze(1).tolist() if ok else []
                scores = [
                    feed.loaded.match(image.expand(_length(words), -1, -1), words).float()
                    for words in feed.texts([texts[i] for i in columns])
                ]
                if scores:
                    matches[row, columns] = torch.cat(scores)
                row += 1
        return matches


def _length(tokens: dict[str, Tensor]) -> int:
    return len(next(iter(tokens.values())))


def nearest(scores: Tensor, k: int) -> Tensor:
    """Return (Q,A) bool: the k best answers of each query, the first of equals.

    What is no number is furthest. (A stable sort says the same, ten times slower.)
    """
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    last = scores.topk(min(k, scores.shape[1])).values[:, -1:]
    above, equal = scores > last, scores == last
    room = k - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))


@task(FORM, "retrieval; the k nearest re-ranked by image-text matching")
def coco(rest: str) -> ReRanking:
    """Return a split of a Karpathy-style file (COCO, Flickr30k), to be re-ranked."""
    where, options = files.options(rest, FORM, ("k", "split"))
    data = karpathy.read(where, FORM, options.get("split"))
    k = K_FEW if len(data.texts) <= FEW_IMAGES else K_MANY
    if "k" in options:
        k = files.positive(options["k"], "k", FORM)
    return ReRanking(f"rerank-karpathy:{rest}", data.version, data.pictures, data.texts, k)
