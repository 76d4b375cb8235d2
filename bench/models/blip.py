"""How BLIP is asked: answers, captions, features and scores of matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.models.joint import QUESTION_TOKENS, Joint, JointReader, longest_text
from bench.models.loaded import Answerer, Captioner, Matcher, Writer
from bench.models.processors import padded

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.loaded import Images


@dataclass(frozen=True)
class BlipWriter(JointReader, Writer):
    """What answers and captions share."""

    def generated(
        self, images: Images, texts: Sequence[str], new_tokens: int, start: Callable[[Tensor], int]
    ) -> list[str]:
        """Return greedy texts; `start` tells from the input ids (B,L) where they begin."""
        words = self.require_processor().tokenizer

        def run(inputs: dict[str, Tensor]) -> list[str]:
            out = self.model.generate(
                **inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1
            )
            new = out[:, start(inputs["input_ids"]) :]
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
    """BlipForQuestionAnswering."""

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        return f"one image and one question of {self.text_length} tokens, the answer's first token"

    def answer(self, images: Images, texts: Sequence[str], new_tokens: int) -> list[str]:
        """Return answers, which begin with one start token; see `Writer`."""
        return self.generated(images, texts, new_tokens, lambda ids: 1)

    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return questions for the encoder, and answers for the decoder; see `Reader`."""
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
    """BlipForConditionalGeneration."""

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        return (
            f"one image and a prompt of {self.text_length} tokens, the next token at each of them"
        )

    def answer(self, images: Images, texts: Sequence[str], new_tokens: int) -> list[str]:
        """Return captions without their prompts; see `Writer`.

        The prompt's first token is replaced by the start, its last, the end of text, is cut off.
        """
        return self.generated(images, texts, new_tokens, lambda ids: ids.shape[1] - 1)

    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return prompts that go on with their captions; see `Reader`."""
        captions = [f"{a} {b}".lstrip() for a, b in zip(texts, answers, strict=True)]
        ids, mask, labels = self.targets(captions)
        pixels = self.pixel_values(images)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "labels": labels}


@dataclass(frozen=True)
class BlipMatcher(Joint, Matcher):
    """BlipForImageTextRetrieval; it needs no processor for what is encoded already.

    Tokens of a reduced image carry log sizes, where attention uses them, in one more channel, so
    that a match can be scored long after the image was encoded.
    """

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        return f"one image and one text of {self.text_length} tokens, the score of their match"

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and tokens; see `Matcher`."""
        import torch
        from torch.nn.functional import normalize

        tokens = self.model.vision_model(**self.placed({"pixel_values": pixels})).last_hidden_state
        features = normalize(self.model.vision_proj(tokens[:, 0]), dim=-1)
        sizes = getattr(self.model.vision_model, "_size_bias", None)  # of the present reduced pass
        bias = None if sizes is None else sizes(tokens.dtype)
        return features, tokens if bias is None else torch.cat([tokens, bias[:, 0].mT], -1)

    def encode_texts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features of texts; see `Matcher`."""
        from torch.nn.functional import normalize

        first = self.model.text_encoder(**self.placed(inputs)).last_hidden_state[:, 0]
        return normalize(self.model.text_proj(first), dim=-1)

    def match(self, tokens: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return logits of matches; see `Matcher`."""
        from bench.engine.families.blip import reading

        width = int(self.model.config.vision_config.hidden_size)
        tokens = self.placed({"tokens": tokens})["tokens"]
        bias = tokens[:, None, None, :, width] if tokens.shape[-1] > width else None
        with reading(self.model.text_encoder, lambda dtype: bias):
            read = self.model.text_encoder(
                **self.placed(inputs), encoder_hidden_states=tokens[..., :width]
            )
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
