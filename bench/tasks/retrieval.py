"""Image-text retrieval: recall at 1, 5 and 10, from image to text and from text to image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.tasks.base import (
    Arrays,
    Evaluation,
    Files,
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
    to_model,
)

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models import Loaded

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

        require(loaded, "two-tower", self.name)
        refuse_random(loaded)
        if loaded.tokenizer is None:
            raise BenchError(f"{loaded.name} has no tokenizer: put its files beside its weights")
        index = subset(len(self), limit)
        owners = [row for row, i in enumerate(index) for _ in self.texts[i]]
        texts = [text for i in index for text in self.texts[i]]
        with torch.inference_mode():
            images, decoded = self._images(loaded, index, batch_size, device, progress)
            scores = images @ self._texts(loaded, texts, batch_size, device).T
        broken = torch.tensor(decoded, device=scores.device).logical_not()
        # An image that did not decode is in nobody's way, and is never found.
        scores = scores.masked_fill(broken.unsqueeze(1), -torch.inf)
        own = torch.tensor(owners, device=scores.device) == torch.arange(
            len(index), device=scores.device
        ).unsqueeze(1)
        asked = own.any(1)
        ranks = {
            "i2t": ranks_of(scores[asked], own[asked]).tolist(),
            "t2i": ranks_of(scores.T, own.T).tolist(),
        }
        metrics = {
            f"{way}_r{k}": proportion(found, k) for way, found in ranks.items() for k in RECALLS
        }
        outcomes = {f"rank_{way}": found for way, found in ranks.items()}
        failed = [
            self.prepared.pictures.name(i) for i, ok in zip(index, decoded, strict=True) if not ok
        ]
        return Evaluation(metrics, "i2t_r1", outcomes, failed)

    def _images(
        self,
        loaded: Loaded,
        index: Sequence[int],
        size: int,
        device: str | None,
        progress: Progress | None,
    ) -> tuple[Tensor, list[bool]]:
        import torch

        model: Any = loaded.model
        features: list[Tensor] = []
        decoded: list[bool] = []
        for images, ok in self.prepared.batches(loaded, index, size):
            inputs = {loaded.image_argument: to_model(images, loaded, device)}
            features.append(normalised(_pooled(model.get_image_features(**inputs))))
            decoded += ok
            if progress is not None:
                progress(len(decoded), len(index))
        return torch.cat(features), decoded

    def _texts(self, loaded: Loaded, texts: Sequence[str], size: int, device: str | None) -> Tensor:
        import torch

        model: Any = loaded.model
        features: list[Tensor] = []
        for start in range(0, len(texts), size):
            tokens = loaded.tokenizer(list(texts[start : start + size]))  # type: ignore[misc]
            tokens = {key: value.to(device or loaded.device) for key, value in tokens.items()}
            features.append(normalised(_pooled(model.get_text_features(**tokens))))
        return torch.cat(features)


def _pooled(output: Any) -> Tensor:
    """Return the projected features, whichever way this version of transformers returns them."""
    features: Tensor = getattr(output, "pooler_output", output)
    return features


def emoji() -> Retrieval:
    """Return the embedded drawings of the held-out design house, with their names."""
    from bench import embedded

    images, texts = embedded.emoji_test()
    version = hash_of(images.tobytes(), *texts)
    return Retrieval(
        "emoji-retrieval", version, Arrays(images, "emoji image"), [[text] for text in texts]
    )


def karpathy(where: str, split: str = "test") -> Retrieval:
    """Return a split of a Karpathy-style file, `JSON[:IMAGES]`.

    The file holds `{"images": [{"filename", "split", "filepath"?, "sentences": [{"raw"}]}]}`, or is
    a list of `{"image", "caption": str or list}`; IMAGES is by default the file's folder.
    """
    json_name, colon, images = where.partition(".json:")
    file = Path(json_name + ".json" if colon else where).expanduser()
    root = Path(images).expanduser() if images else file.parent
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text)
        if isinstance(data, dict):
            rows = [
                (
                    Path(row.get("filepath", "")) / row["filename"],
                    [s["raw"] for s in row["sentences"]],
                )
                for row in data["images"]
                if row.get("split", split) == split
            ]
        else:
            rows = [(Path(row["image"]), _texts_of(row["caption"])) for row in data]
    except OSError as error:
        raise BenchError(
            f"cannot read {file} ({error.strerror}): karpathy:JSON[:IMAGES]"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{file} is no Karpathy-style file ({error!r} is missing or wrong)"
        ) from error
    if not rows:
        raise BenchError(f"{file} has no images with split '{split}'")
    files = Files([root / path for path, _ in rows], root)
    return Retrieval(f"karpathy:{where}", hash_of(text), files, [texts for _, texts in rows])


def _texts_of(caption: Any) -> list[str]:
    return [caption] if isinstance(caption, str) else [str(text) for text in caption]
