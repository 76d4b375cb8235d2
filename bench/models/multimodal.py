"""Multimodal language models of Hugging Face: how they are asked, and prompts of noise for them.

A prompt of noise is made from the configuration alone, so that costs need neither weights nor a
processor; on the meta device the cost of a 13B takes seconds.

    with asked(model, words=36) as prompt:  # a model on the meta device
        stage_macs(model, prompt)
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from bench.core.errors import BenchError
from bench.engine.families import adapter_for
from bench.engine.families.image_towers import side_of
from bench.engine.families.language import image_token_id
from bench.engine.families.t5 import answer_start, has_encoder
from bench.engine.families.vlm import prompt_layout
from bench.engine.tower import original, override
from bench.models.films import WATCHES, film, video_token_id
from bench.models.loaded import Multimodal

if TYPE_CHECKING:
    from bench.models.loaded import Images

WORDS = 36  # tokens of a prompt that are not the image's: what FastV's 611.84 leave beside 576
QWEN_GRID = 36  # patches a side of the image in a prompt of noise: 504 pixels, 324 tokens
_QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# Tiles of the largest image, with the image as a whole.
TILES = {"internvl": 12 + 1, "idefics3": 16 + 1, "smolvlm": 16 + 1}
_ON_CPU = ("image_sizes", "image_grid_thw", "video_grid_thw")  # sizes are read, so they need values
_VALUELESS = ("attention_mask", "mm_token_type_ids")  # what is read and may be left out
_IMAGE_FIRST = ("blip-2", "paligemma")
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


def unequal(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch of equally long prompts with unequally many of the words behind the image.

    The first prompt stays as it is; of B prompts each further one loses another B-th of these
    words, and padding takes their place.
    """
    ids, left = inputs["input_ids"], padding_side(model) == "left"
    behind = int((ids[0] == image_token_id(model)).flip(0).int().argmax())
    unused = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    padding = {"input_ids": unused}  # whatever it is, it is masked out

    def padded(row: Tensor, fewer: int, value: int) -> Tensor:
        kept = row[: len(row) - fewer]
        return functional.pad(kept, (fewer, 0) if left else (0, fewer), value=value)

    def shortened(name: str, part: Tensor) -> Tensor:
        value, rows = padding.get(name, 0), enumerate(part)
        return torch.stack([padded(row, behind * i // len(ids), value) for i, row in rows])

    alike = {name: part for name, part in inputs.items() if part.shape == ids.shape}
    return {**inputs, **{name: shortened(name, part) for name, part in alike.items()}}


def padding_side(model: Any) -> str:
    """Return where a batch's shorter prompts are padded: an answer that follows needs the left.

    An encoder knows tokens by their distance, and a BLIP-2 puts its image ahead of the padded
    words, so that padding between the two would move them apart.
    """
    return "right" if has_encoder(model) else "left"


def begun_answers(model: Any, batch: int) -> dict[str, Tensor]:
    """Return the argument with which a decoder begins answers; none where they follow a prompt."""
    if not has_encoder(model):
        return {}
    return {"decoder_input_ids": torch.full((batch, 1), answer_start(model))}


def answer_begins(model: Any, ids: Tensor) -> int:
    """Return where answers begin in what `generate()` returns for prompts `ids` (B,L)."""
    return 1 if has_encoder(model) else ids.shape[1]  # behind a start token, or the prompt


def describe(name: str, model: Any, provenance: dict[str, Any], processor: Any) -> PromptedModel:
    """Read from a model's configuration how it is asked; `processor` may be None."""
    vision = model.config.vision_config
    side = side_of(getattr(vision, "image_size", QWEN_GRID * vision.patch_size))
    return PromptedModel(name, model, (side, side), provenance=provenance, processor=processor)


# --- prompts of noise ----------------------------------------------------------------------------


def noise(
    model: Any, batch: int = 1, words: int = WORDS, tokens: int | None = None, frames: int = 0
) -> dict[str, Tensor]:
    """Return a prompt with one image of noise and so many random words, the same in each sample.

    With `frames` it is a video of so many in place of an image.

    The image is as large as the model takes without making its tokens fewer: LLaVA-NeXT and
    LLaVA-OneVision cut it into crops, others into `TILES`. Without values it may stand for so many
    `tokens` as one likes, the language model alone being of interest.
    """
    g = torch.Generator().manual_seed(0)
    config, shown = model.config, image_token_id(model)
    if frames:
        layout, parts = film(model, frames, QWEN_GRID)
        shown = video_token_id(model)
    else:
        whole, parts = _image(model)
        layout = torch.ones(whole if tokens is None else tokens, dtype=torch.bool)
    special = {value for key, value in config.to_dict().items() if key.endswith(("_id", "_index"))}
    usual = [i for i in range(3, config.text_config.vocab_size) if i not in special]
    ids = torch.tensor(usual)[torch.randint(len(usual), (1, len(layout) + words), generator=g)]
    ahead = 0 if config.model_type in _IMAGE_FIRST else min(words, 1)
    ids[:, ahead : ahead + len(layout)].masked_fill_(layout, shown)
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.model_type in _QWEN:
        prompt["mm_token_type_ids"] = (ids == shown).long() * (2 if frames else 1)
    if config.model_type in ("gemma3", "paligemma"):  # a PaliGemma's prompt is all of one type
        prompt["token_type_ids"] = (ids == shown).long() * (config.model_type == "gemma3")
    for key, part in parts.items():
        prompt[key] = torch.randn(part, generator=g) if isinstance(part, tuple) else part
    prompt.update(begun_answers(model, 1))
    return {key: part.repeat(batch, *(1,) * (part.dim() - 1)) for key, part in prompt.items()}


def _image(model: Any) -> tuple[int, dict[str, Any]]:
    """Return how many tokens an image becomes, and its tensors: a shape where values are noise."""
    config, vision = model.config, model.config.vision_config
    if config.model_type in _QWEN:
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, QWEN_GRID, QWEN_GRID]])
        parts = {"pixel_values": (QWEN_GRID**2, patch), "image_grid_thw": grid}
        return (QWEN_GRID // vision.spatial_merge_size) ** 2, parts
    projector: Any = adapter_for(model).towers(model)["projector"]
    side, tokens = side_of(vision.image_size), projector.whole
    square = (getattr(vision, "num_channels", 3), side, side)
    if config.model_type in TILES:
        tiles = TILES[config.model_type]
        batched = () if config.model_type == "internvl" else (1,)
        return tokens * tiles, {"pixel_values": (*batched, tiles, *square)}
    if not hasattr(config, "image_grid_pinpoints"):
        return tokens, {"pixel_values": (1, *square)}
    most = int(getattr(config, "vision_aspect_ratio", "1000").removeprefix("anyres_max_"))
    sizes = [size for size in config.image_grid_pinpoints if size[0] * size[1] <= most * side**2]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    down, across, patches = height // side, width // side, side // side_of(vision.patch_size)
    tokens += down * patches * (across * patches + 1)  # every row ends in a newline
    shape = (1, 1 + down * across, *square)
    return tokens, {"pixel_values": shape, "image_sizes": torch.tensor([[height, width]])}


@contextlib.contextmanager
def asked(
    model: Any, words: int = WORDS, tokens: int | None = None, frames: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Give a prompt of noise for a model on the meta device, which is told where the image is."""
    prompt = noise(model, 1, words, tokens, frames)
    image = prompt["input_ids"] == (video_token_id if frames else image_token_id)(model)
    if model.config.model_type in _QWEN:  # positions, which the model would take from values
        kind, pixels = ("video", "pixel_values_videos") if frames else ("image", "pixel_values")
        patches = len(prompt[pixels])
        prompt[f"{kind}_position_ids"] = torch.zeros(patches, 2, dtype=torch.long)
        if model.config.model_type == "qwen3_vl":  # learned ones are resampled from four
            prompt[f"{kind}_interp_indices"] = torch.zeros(patches, 4, dtype=torch.long)
            prompt[f"{kind}_interp_weights"] = torch.zeros(patches, 4)
        prompt["position_ids"] = torch.zeros(3, 1, image.shape[1], dtype=torch.long)
    dtype = next(model.parameters()).dtype
    with contextlib.ExitStack() as stack:
        stack.enter_context(prompt_layout(model, image))
        if model.config.model_type == "blip-2":
            stack.enter_context(without(model.qformer, "encoder_attention_mask"))
            stack.enter_context(without(model.language_model, "attention_mask"))
        if model.config.model_type == "qwen3_vl":
            language = model.model.language_model
            stack.enter_context(override(language, "_deepstack_process", _deepened))
        if model.config.model_type in ("idefics3", "smolvlm"):
            features, code = partial(_whole_tiles, model.model), sys.modules[type(model).__module__]
            stack.enter_context(override(model.model, "get_image_features", features))
            stack.enter_context(override(code, "create_bidirectional_mask", lambda **_: None))
        if model.config.model_type == "paligemma":  # positions are asked where sequences begin
            code = sys.modules["transformers.masking_utils"]
            stack.enter_context(override(code, "find_packed_sequence_indices", lambda _: None))
        yield {
            key: part
            if key in _ON_CPU
            else part.to("meta", dtype if part.is_floating_point() else None)
            for key, part in prompt.items()
            if key not in _VALUELESS
        }


def _deepened(x: Tensor, image: Tensor, features: Tensor) -> Tensor:
    """(B,N,C) with DeepStack's features added, whose places the model would read from values."""
    return x + torch.zeros_like(x).masked_scatter(image[..., None], features)


def _whole_tiles(owner: Any, pixel_values: Tensor, *_: Any, **__: Any) -> Any:
    """Encode tiles (B,T,C,H,W); whether one is empty, or padded, is read from its values."""
    out = owner.vision_model(pixel_values.flatten(0, 1), return_dict=True)
    tokens = owner.connector(out.last_hidden_state)
    out.pooler_output = list(tokens.unflatten(0, pixel_values.shape[:2]).flatten(1, 2))
    return out


@contextlib.contextmanager
def without(module: Any, mask: str) -> Iterator[None]:
    """Leave out a mask that hides nothing: whether it does is read from its values."""

    def forward(*args: Any, **kw: Any) -> Any:
        kw.pop(mask, None)
        return original(module)(*args, **kw)

    with override(module, "forward", forward):
        yield
