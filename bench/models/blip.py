"""How BLIP is asked: answers, captions, features and scores of matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.engine.families.blip import reading
from bench.models.joint import QUESTION_TOKENS, Joint, JointReader, longest_text, padded
from bench.models.loaded import Answerer, Captioner, Matcher, Writer

if TYPE_CHECKING:
    from bench.models.loaded import Images


@dataclass(frozen=True)
class BlipWriter(JointReader, Writer):
    """What answers and captions share."""

    def generated(
        self, images: Images, texts: Sequence[str], new_tokens: int, start: Callable[[Tensor], int]
    ) -> list[str]:
        """Return greedy texts; `start` tells from the input ids (B,L) where they begin."""
        words = self.require_processor().tokenizer
        settings = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1}

        def run(inputs: dict[str, Tensor]) -> list[str]:
            new = self.model.generate(**inputs, **settings)[:, start(inputs["input_ids"]) :]
            return [text.strip() for text in words.batch_decode(new, skip_special_tokens=True)]

        return self.ask(images, texts, run)

    def targets(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, mask and labels (B,L) of texts to be learned, padded on the right."""
        tokens = padded(self.require_processor().tokenizer, texts)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        ids[:, 0] = self.model.config.text_config.bos_token_id
        return ids, mask, ids.masked_fill(mask == 0, -100)


@dataclass(frozen=True)
class BlipAnswerer(BlipWriter, Answerer):
    """BlipForQuestionAnswering: its encoder reads the question, its decoder writes the answer."""

    covers: ClassVar[str] = (
        "one image and one question of {tokens} tokens, the answer's first token"
    )

    def answer(self, images: Images, texts: Sequence[str], new_tokens: int) -> list[str]:
        return self.generated(images, texts, new_tokens, lambda ids: 1)  # behind a start token

    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        ids, mask, labels = self.targets(answers)
        return {
            **padded(self.processor.tokenizer, texts),
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
            "pixel_values": self.pixel_values(images),
            "labels": labels,
        }


@dataclass(frozen=True)
class BlipCaptioner(BlipWriter, Captioner):
    """BlipForConditionalGeneration: a caption goes on from its prompt."""

    covers: ClassVar[str] = (
        "one image and a prompt of {tokens} tokens, the next token at each of them"
    )

    def answer(self, images: Images, texts: Sequence[str], new_tokens: int) -> list[str]:
        # The prompt's first token is replaced by the start, its last, the end of text, is cut off.
        return self.generated(images, texts, new_tokens, lambda ids: ids.shape[1] - 1)

    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        captions = [f"{a} {b}".lstrip() for a, b in zip(texts, answers, strict=True)]
        ids, mask, labels = self.targets(captions)
        pixels = self.pixel_values(images)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "labels": labels}


@dataclass(frozen=True)
class BlipMatcher(Joint, Matcher):
    """BlipForImageTextRetrieval.

    Tokens of a reduced image carry log sizes, where attention uses them, in one more channel, so
    that a match can be scored long after the image was encoded.
    """

    covers: ClassVar[str] = "one image and one text of {tokens} tokens, the score of their match"

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.model.vision_model
        tokens = encoder(**self.placed({"pixel_values": pixels})).last_hidden_state
        features = normalize(self.model.vision_proj(tokens[:, 0]), dim=-1)
        sizes = getattr(encoder, "_size_bias", None)  # of the present reduced pass
        bias = None if sizes is None else sizes(tokens.dtype)
        return features, tokens if bias is None else torch.cat([tokens, bias[:, 0].mT], -1)

    def encode_texts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        first = self.model.text_encoder(**self.placed(inputs)).last_hidden_state[:, 0]
        return normalize(self.model.text_proj(first), dim=-1)

    def match(self, tokens: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        reader, width = self.model.text_encoder, int(self.model.config.vision_config.hidden_size)
        tokens = self.placed({"tokens": tokens})["tokens"]
        bias = tokens[:, None, None, :, width] if tokens.shape[-1] > width else None
        with reading(reader, lambda dtype: bias):
            read = reader(**self.placed(inputs), encoder_hidden_states=tokens[..., :width])
        logits: Tensor = self.model.itm_head(read.last_hidden_state[:, 0])[:, 1]
        return logits


def caption_tokenizer(model: Any, processor: Any) -> Callable[[list[str]], dict[str, Tensor]]:
    """Return a function: captions -> ids and mask, padded on the right to the longest."""
    longest = min(QUESTION_TOKENS, longest_text(model))
    return partial(padded, processor.tokenizer, truncation=True, max_length=longest)


KINDS: dict[str, type[Joint]] = {
    "BlipForImageTextRetrieval": BlipMatcher,
    "BlipForQuestionAnswering": BlipAnswerer,
    "BlipForConditionalGeneration": BlipCaptioner,
}
