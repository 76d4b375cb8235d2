"""How ViLT is asked: answers out of those that it was trained on, judgements of pairs of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from bench.models.joint import Joint, JointReader, padded
from bench.models.loaded import Answerer, Encoder, PairClassifier

if TYPE_CHECKING:
    from bench.models.loaded import Images


@dataclass(frozen=True)
class ViltEncoder(Joint, Encoder):
    """ViltModel."""

    covers: ClassVar[str] = "one image and one text of {tokens} tokens, through the whole encoder"


@dataclass(frozen=True)
class ViltReader(JointReader):
    """A ViLT whose head chooses one of its classes."""

    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        pixels = self.pixel_values(images)
        if len(images[0]) > 1:
            pixels = pixels.unflatten(0, (len(images), -1))
        labels = torch.tensor([self.model.config.label2id[answer] for answer in answers])
        return {**padded(self.processor.tokenizer, texts), "pixel_values": pixels, "labels": labels}


@dataclass(frozen=True)
class ViltAnswerer(ViltReader, Answerer):
    """ViltForQuestionAnswering: the most likely of the answers that it knows, however long."""

    covers: ClassVar[str] = "one image and one text of {tokens} tokens, its answer"

    def answer(self, images: Images, texts: Sequence[str], new_tokens: int) -> list[str]:
        def run(inputs: dict[str, Tensor]) -> list[str]:
            best = self.model(**inputs).logits.argmax(-1).tolist()
            return [str(self.model.config.id2label[i]) for i in best]

        return self.ask(images, texts, run)


@dataclass(frozen=True)
class ViltPairs(ViltReader, PairClassifier):
    """ViltForImagesAndTextClassification."""

    covers: ClassVar[str] = "two images, each with a statement of {tokens} tokens, one judgement"

    def judge(self, images: Images, texts: Sequence[str]) -> Tensor:
        return torch.stack(self.ask(images, texts, lambda inputs: self.model(**inputs).logits))


KINDS: dict[str, type[Joint]] = {
    "ViltForQuestionAnswering": ViltAnswerer,
    "ViltForImagesAndTextClassification": ViltPairs,
    "ViltModel": ViltEncoder,
}
