"""Multimodal language models of Hugging Face: how they are asked, how their answers are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.core.errors import BenchError
from bench.engine.families.image_towers import side_of
from bench.engine.families.language import image_token_id
from bench.engine.families.t5 import answer_begins, begun_answers, has_encoder
from bench.models.films import WATCHES
from bench.models.loaded import Multimodal
from bench.models.noise import QWEN_GRID, WORDS, asked, noise

if TYPE_CHECKING:
    from bench.models.loaded import Images

_BY_PROMPT = ("llava_onevision", "gemma3")  # processors that want to know whose an image is
_PLAIN_PROMPTS = {  # else as LLaVA's
    "blip-2": "Question: {question} Answer:",  # its processor puts the image ahead
    "paligemma": "answer en {question}",
}


@dataclass(frozen=True)
class PromptedModel(Multimodal):
    """A language model that gets its images inside a prompt."""

    covers: ClassVar[str] = f"one image and {WORDS} words, until the first token of the answer"

    @property
    def takes_video(self) -> bool:
        return self.model.config.model_type in WATCHES

    def prepare(
        self,
        images: Images,
        questions: Sequence[str],
        answers: Sequence[str] = (),
        video: bool = False,
    ) -> dict[str, Tensor]:
        """Return the arguments of `generate()` for questions, padded as `padding_side` says.

        Args:
            images: of each question.
            questions: as a user asks them; the model's chat template goes around.
            answers: where given, each prompt goes on with its answer and the end of text.
            video: whether the images of each question are the frames of one video.
        """
        processor = self.require_processor()
        words = processor.tokenizer
        texts = [
            self._prompt(1 if video else len(shown), question, video)
            for shown, question in zip(images, questions, strict=True)
        ]
        settings: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        family = self.model.config.model_type
        if family == "paligemma" and answers:  # its processor marks where a prompt ends
            settings["suffix"] = [*answers]
            answers = ()
        for i, answer in enumerate(answers):
            texts[i] = f"{texts[i]} {answer} {words.eos_token}"
        begun = bool(words.bos_token) and texts[0].startswith(words.bos_token)
        settings["add_special_tokens"] = not begun
        inputs = dict(processor(text=texts, **self._media(images, video), **settings))
        inputs.pop("labels", None)  # see `teach`
        return {**inputs, **begun_answers(self.model, len(texts))}

    def _media(self, images: Images, video: bool) -> dict[str, Any]:
        """Return the pictures as this model's processor takes them."""
        each: list[Any] = [[image.convert("RGB") for image in shown] for shown in images]
        if video:  # the frames are chosen already
            return {"videos": each, "do_sample_frames": False}
        if self.model.config.model_type not in _BY_PROMPT:
            each = [image for shown in each for image in shown]
        return {"images": each or None}

    def _prompt(self, images: int, question: str, video: bool = False) -> str:
        """Return a question as this model was taught to read it, with a place for each image.

        With `video` it is a place for each video.
        """
        processor, family = self.processor, self.model.config.model_type
        if family == "blip-2" and images != 1:
            raise BenchError(f"{self.name} looks at one image with each question, not at {images}")
        if getattr(processor, "chat_template", None):
            kind = "video" if video else "image"
            content = [*({"type": kind} for _ in range(images))]
            content.append({"type": "text", "text": question})
            prompt: str = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            return prompt
        if family in _PLAIN_PROMPTS:
            marks = processor.image_token * images if family == "paligemma" else ""
            return marks + _PLAIN_PROMPTS[family].format(question=question)
        marks = f"{processor.video_token if video else processor.image_token}\n" * images
        return f"USER: {marks}{question} ASSISTANT:"

    def questions(self, ids: Tensor) -> list[str]:
        """Return the questions of prompts (B,L), without what the chat template puts around."""
        processor, image, mark = self.require_processor(), image_token_id(self.model), "\0"
        words = processor.tokenizer
        around = self._prompt(1, mark)
        for special in (*words.all_special_tokens, getattr(processor, "image_token", "<image>")):
            around = around.replace(str(special), "")
        ahead, behind = (part.strip() for part in around.split(mark))
        rows = [[i for i in row if i != image] for row in ids.tolist()]
        texts = words.batch_decode(rows, skip_special_tokens=True)
        texts = [text.strip().removeprefix(ahead) for text in texts]
        return [(text.split(behind)[0] if behind else text).strip() for text in texts]

    def decode(self, ids: Tensor) -> list[str]:
        """Return the texts of new tokens (B,T), without outer spaces."""
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def answer(
        self, images: Images, texts: Sequence[str], new_tokens: int, video: bool = False
    ) -> list[str]:
        if video:
            self.require_video()
        asked = self.prepare(images, texts, video=True) if video else self.prepare(images, texts)
        inputs = self.placed(asked)
        settings = {"max_new_tokens": new_tokens, "do_sample": False, "num_beams": 1}
        out = self.model.generate(**inputs, **settings)
        return self.decode(out[:, answer_begins(self.model, inputs["input_ids"]) :])

    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        if has_encoder(self.model):
            return self._teach_decoder(images, texts, answers)
        asked = self.prepare(images, texts)["attention_mask"].sum(1)
        inputs = self.prepare(images, texts, answers)
        mask = inputs["attention_mask"]
        before = mask.shape[1] - mask.sum(1) + asked  # padding is on the left
        answered = torch.arange(mask.shape[1]) >= before[:, None]
        return {**inputs, "labels": inputs["input_ids"].masked_fill(~answered, -100)}

    def _teach_decoder(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        """The answers, each with the end of text behind it, are what the decoder learns to say."""
        inputs, words = self.prepare(images, texts), self.require_processor().tokenizer
        ids = [words(text, add_special_tokens=False)["input_ids"] for text in answers]
        rows = [torch.tensor([*row, words.eos_token_id]) for row in ids]
        inputs["labels"] = pad_sequence(rows, batch_first=True, padding_value=-100)
        del inputs["decoder_input_ids"]  # the model makes them of the labels
        return inputs

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        return self.placed(noise(self.model, batch))

    @contextlib.contextmanager
    def valueless_inputs(
        self, words: int | None = None, frames: int = 0
    ) -> Iterator[dict[str, Any]]:
        with asked(self.model, WORDS if words is None else words, frames=frames) as prompt:
            yield prompt


def describe(name: str, model: Any, provenance: dict[str, Any], processor: Any) -> PromptedModel:
    """Read from a model's configuration how it is asked; `processor` may be None."""
    vision = model.config.vision_config
    side = side_of(getattr(vision, "image_size", QWEN_GRID * vision.patch_size))
    return PromptedModel(name, model, (side, side), provenance=provenance, processor=processor)
