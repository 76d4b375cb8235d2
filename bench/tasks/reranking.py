"""Retrieval re-ranked by image-text matching, as BLIP and ALBEF are evaluated.

    rerank-karpathy:JSON[:IMAGES][?k=256]

Every image and text is compared by its features first. The `k` nearest are then looked at together,
and ordered by the logit of their match added to the similarity; whatever is further away is never
found. `k` decides the result: 128 up to 1,000 images (Flickr30k) and 256 above (COCO).

Source: `evaluation` in train_retrieval.py of salesforce/BLIP, `k_test` in its configs.
Departures: a matched text begins with [CLS], as in transformers; the authors put [ENC] there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.models.loaded import Matcher
from bench.tasks import files, karpathy
from bench.tasks.base import (
    Evaluation,
    Pictures,
    Prepared,
    Progress,
    hash_of,
    refuse_random,
    require,
    subset,
    to_model,
)
from bench.tasks.retrieval import flattened, recalls, require_tokenizer, tokenised, undecoded

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.loaded import Loaded

KARPATHY = "rerank-karpathy:JSON[:IMAGES]"
FEW_IMAGES, K_FEW, K_MANY = 1000, 128, 256


class ReRanking:
    """Pictures, each with one or more texts; the best found are compared again, in pairs.

    With a limit, only the texts of the pictures that are left are searched, as in `Retrieval`.
    """

    def __init__(
        self,
        name: str,
        version: str,
        pictures: Pictures,
        texts: Sequence[Sequence[str]],
        k: int,
    ) -> None:
        """Name the task and its data; the `k` nearest of each query are re-ranked."""
        self.name, self.version = name, hash_of(version, k, "logit")
        self.prepared, self.texts, self.k = Prepared(pictures), texts, k

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.texts)

    def evaluate(
        self,
        loaded: Loaded,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score a matcher; see `bench.tasks.Task`. Outcomes are ranks, as in `Retrieval`.

        Images are encoded twice, for their features and for their matches: the tokens of all of
        COCO's at once would take 12 GB.
        """
        import torch

        model = require(loaded, Matcher, self.name)
        refuse_random(loaded)
        require_tokenizer(model)
        index = subset(len(self), limit)
        owners, texts = flattened(self.texts, index)
        with torch.inference_mode():
            similar, decoded = self._similarities(model, index, texts, batch_size, device)
            to_texts = nearest(similar, self.k)
            to_images = nearest(similar.T, self.k).T
            matches = self._matches(
                model, index, texts, to_texts | to_images, batch_size, device, progress
            )
        found = (similar + matches).masked_fill(~decoded.unsqueeze(1), -torch.inf)
        failed = undecoded(self.prepared, index, decoded.tolist())
        return recalls(
            found.masked_fill(~to_texts, -torch.inf),
            found.masked_fill(~to_images, -torch.inf),
            owners,
            failed,
        )

    def _similarities(
        self,
        loaded: Matcher,
        index: Sequence[int],
        texts: Sequence[str],
        size: int,
        device: str | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the (images, texts) cosines, -inf for broken images, and which are whole."""
        import torch

        images: list[Tensor] = []
        decoded: list[bool] = []
        for pixels, ok in self.prepared.batches(loaded, index, size):
            images.append(loaded.encode_images(to_model(pixels, loaded, device))[0].float())
            decoded += ok
        words = [loaded.encode_texts(t).float() for t in tokenised(loaded, texts, size, device)]
        similar = torch.cat(images) @ torch.cat(words).T
        there = torch.tensor(decoded, device=similar.device)
        return similar.masked_fill(~there.unsqueeze(1), -torch.inf), there

    def _matches(
        self,
        loaded: Matcher,
        index: Sequence[int],
        texts: Sequence[str],
        wanted: Tensor,
        size: int,
        device: str | None,
        progress: Progress | None,
    ) -> Tensor:
        """Return the (images, texts) logits of the wanted pairs, 0 elsewhere."""
        import torch

        matches = torch.zeros(wanted.shape, device=wanted.device)
        row = 0
        for pixels, decoded in self.prepared.batches(loaded, index, size):
            tokens = loaded.encode_images(to_model(pixels, loaded, device))[1]
            for own, ok in zip(tokens, decoded, strict=True):
                pairs = wanted[row].nonzero().squeeze(1).tolist() if ok else []
                near = [texts[i] for i in pairs]
                scores = [
                    loaded.match(own.expand(len(next(iter(some.values()))), -1, -1), some).float()
                    for some in tokenised(loaded, near, size, device)
                ]
                if scores:
                    matches[row, pairs] = torch.cat(scores)
                row += 1
            if progress is not None:
                progress(row, len(index))
        return matches


def nearest(scores: Tensor, k: int) -> Tensor:
    """Return (Q,A) bool: the k best answers of each query, the first of equals.

    What is no number is furthest. (A stable sort says the same, ten times slower.)
    """
    import torch

    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    last = scores.topk(min(k, scores.shape[1])).values[:, -1:]
    above, equal = scores > last, scores == last
    room = k - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))


def coco(rest: str) -> ReRanking:
    """Return the test split of a Karpathy-style file (COCO, Flickr30k), to be re-ranked."""
    where, found = files.options(rest, KARPATHY, ("k",))
    data = karpathy.read(where, KARPATHY)
    files.require_any(data.pictures.paths, data.pictures.root, KARPATHY)
    k = K_FEW if len(data.texts) <= FEW_IMAGES else K_MANY
    if "k" in found:
        k = files.whole(found["k"], "k", KARPATHY)
    return ReRanking(f"rerank-karpathy:{rest}", data.version, data.pictures, data.texts, k)
