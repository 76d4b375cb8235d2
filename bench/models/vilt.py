"""How ViLT is asked: answers out of those that it was trained on, judgements of pairs of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.models.joint import Joint, JointReader, longest_text
from bench.models.loaded import Answerer, Encoder, PairClassifier
from bench.models.processors import padded

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.loaded import Images


@dataclass(frozen=True)
class ViltEncoder(Joint, Encoder):
    """ViltModel."""

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        return f"one image and one text of {self.text_length} tokens, through the whole encoder"


@dataclass(frozen=True)
class ViltReader(JointReader):
    """A ViLT whose head chooses one of its classes."""

    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return texts padded on the right, images and the right class of each; see `Reader`."""
        import torch

        pixels = self.pixel_values(images)
        if len(images[0]) > 1:
            pixels = pixels.unflatten(0, (len(images), -1))
        known = self.model.config.label2id
        labels = torch.tensor([known[answer] for answer in answers])
        return {**padded(self.processor.tokenizer, texts), "pixel_values": pixels, "labels": labels}


@dataclass(frozen=True)
class ViltAnswerer(ViltReader, Answerer):
    """ViltForQuestionAnswering."""

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        return f"one image and one text of {self.text_length} tokens, its answer"

    def answer(self, images: Images, texts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the most likely of the known answers, however long; see `Writer`."""

        def run(inputs: dict[str, Tensor]) -> list[str]:
            best = self.model(**inputs).logits.argmax(-1).tolist()
            return [str(self.model.config.id2label[i]) for i in best]

        return self.ask(images, texts, run)


@dataclass(frozen=True)
class ViltPairs(ViltReader, PairClassifier):
    """ViltForImagesAndTextClassification."""

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        return f"two images, each with a statement of {self.text_length} tokens, one judgement"

    def judge(self, images: Images, texts: Sequence[str]) -> Tensor:
        """Return logits (B,classes); see `PairClassifier`."""
        import torch

        return torch.stack(self.ask(images, texts, lambda inputs: self.model(**inputs).logits))

    def sample(self, images: Sequence[Any], text: str) -> dict[str, Tensor]:
        """Return the arguments (1,...) of one text about so many images as the model takes."""
        wanted = int(self.model.config.num_images)
        if len(images) != wanted:
            raise BenchError(
                f"{self.name} judges {wanted} images with each text, not {len(images)}"
            )
        processor, longest = self.require_processor(), longest_text(self.model)
        pictures = [image.convert("RGB") for image in images]
        pixels = processor.image_processor(pictures, return_tensors="pt")
        tokens = processor.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        return {**tokens, **{key: part[None] for key, part in pixels.items()}}


KINDS: dict[str, type[Joint]] = {
    "ViltForQuestionAnswering": ViltAnswerer,
    "ViltForImagesAndTextClassification": ViltPairs,
    "ViltModel": ViltEncoder,
}
