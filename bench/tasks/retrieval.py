"""Image-text retrieval: recall at 1, 5 and 10, from image to text and from text to image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.models.loaded import Matcher, TwoTower
from bench.tasks.base import (
    Arrays,
    Evaluation,
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
from bench.tasks.karpathy import read as read_karpathy

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.loaded import Loaded

RECALLS = (1, 5, 10)


class Retrieval:
    """Pictures, each with one or more texts that describe it.

    With a limit, only the texts of the pictures that are left are searched: fewer distractors, so
    figures under different limits do not compare.
    """

    def __init__(
        self, name: str, version: str, pictures: Pictures, texts: Sequence[Sequence[str]]
    ) -> None:
        """Name the task and its data; `texts[i]` are the captions of picture i."""
        self.name, self.version = name, version
        self.prepared, self.texts = Prepared(pictures), texts

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
        """Score a two-tower model; see `bench.tasks.Task`.

        Outcomes are 0-based ranks: `rank_i2t` an image, of its best caption; `rank_t2i` a caption,
        of its image. Images without a caption are distractors only.
        """
        import torch

        model = require(loaded, TwoTower, self.name)
        refuse_random(loaded)
        require_tokenizer(model)
        index = subset(len(self), limit)
        owners, texts = flattened(self.texts, index)
        with torch.inference_mode():
            images, decoded = image_features(
                model, self.prepared, index, batch_size, device, progress
            )
            scores = images @ text_features(model, texts, batch_size, device).T
        broken = torch.tensor(decoded, device=scores.device).logical_not()
        # An image that did not decode is in nobody's way, and is never found.
        scores = scores.masked_fill(broken.unsqueeze(1), -torch.inf)
        return recalls(scores, scores, owners, undecoded(self.prepared, index, decoded))


def flattened(texts: Sequence[Sequence[str]], index: Sequence[int]) -> tuple[list[int], list[str]]:
    """Return the texts of some images, and of each text the place of its image among them."""
    owners = [row for row, i in enumerate(index) for _ in texts[i]]
    return owners, [text for i in index for text in texts[i]]


def undecoded(prepared: Prepared, index: Sequence[int], decoded: Sequence[bool]) -> list[str]:
    """Return the names of the images that did not decode."""
    return [prepared.pictures.name(i) for i, ok in zip(index, decoded, strict=True) if not ok]


def recalls(
    to_texts: Tensor, to_images: Tensor, owners: Sequence[int], failed: list[str]
) -> Evaluation:
    """Return the recalls and ranks that two (images, texts) matrices of scores give.

    Args:
        to_texts: what each image makes of every text.
        to_images: what each text makes of every image; often the same.
        owners: of each text, the row of its image.
        failed: names of images that did not decode.
    """
    import torch

    rows = torch.arange(len(to_texts), device=to_texts.device).unsqueeze(1)
    own = torch.tensor(owners, device=to_texts.device) == rows
    asked = own.any(1)
    ranks = {
        "i2t": ranks_of(to_texts[asked], own[asked]).tolist(),
        "t2i": ranks_of(to_images.T, own.T).tolist(),
    }
    metrics = {f"{way}_r{k}": proportion(found, k) for way, found in ranks.items() for k in RECALLS}
    outcomes = {f"rank_{way}": found for way, found in ranks.items()}
    return Evaluation(metrics, "i2t_r1", outcomes, failed)


def image_features(
    loaded: TwoTower,
    prepared: Prepared,
    index: Sequence[int],
    size: int,
    device: str | None,
    progress: Progress | None,
) -> tuple[Tensor, list[bool]]:
    """Return a two-tower model's features of some images, of length 1, and which decoded."""
    import torch

    features: list[Tensor] = []
    decoded: list[bool] = []
    for images, ok in prepared.batches(loaded, index, size):
        features.append(loaded.encode_images(to_model(images, loaded, device)))
        decoded += ok
        if progress is not None:
            progress(len(decoded), len(index))
    return torch.cat(features), decoded


def text_features(loaded: TwoTower, texts: Sequence[str], size: int, device: str | None) -> Tensor:
    """Return a two-tower model's features of texts, of length 1."""
    import torch

    return torch.cat([loaded.encode_texts(t) for t in tokenised(loaded, texts, size, device)])


def require_tokenizer(loaded: TwoTower | Matcher) -> Callable[[list[str]], Mapping[str, Tensor]]:
    """Return a model's tokenizer; raises BenchError when it came without one."""
    if loaded.tokenizer is None:
        raise BenchError(f"{loaded.name} has no tokenizer: put its files beside its weights")
    return loaded.tokenizer


def tokenised(
    loaded: TwoTower | Matcher, texts: Sequence[str], size: int, device: str | None
) -> Iterator[dict[str, Tensor]]:
    """Yield texts as a model takes them, so many at once."""
    tokenizer = require_tokenizer(loaded)
    for start in range(0, len(texts), size):
        tokens = tokenizer(list(texts[start : start + size]))
        yield {key: value.to(device or loaded.device) for key, value in tokens.items()}


def emoji() -> Retrieval:
    """Return the embedded drawings of the held-out design house, with their names."""
    from bench.assets import embedded

    images, texts = embedded.emoji_test()
    version = hash_of(images.tobytes(), *texts)
    return Retrieval(
        "emoji-retrieval", version, Arrays(images, "emoji image"), [[text] for text in texts]
    )


def karpathy(where: str, split: str = "test") -> Retrieval:
    """Return a split of a Karpathy-style file, `JSON[:IMAGES]`."""
    found = read_karpathy(where, "karpathy:JSON[:IMAGES]", split)
    return Retrieval(f"karpathy:{where}", found.version, found.pictures, found.texts)
