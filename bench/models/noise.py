"""Prompts of noise for multimodal language models, made from the configuration alone.

So costs need neither weights nor a processor; on the meta device the cost of a 13B takes seconds.

    with asked(model, words=36) as prompt:  # a model on the meta device
        stage_macs(model, prompt)
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.engine.families import adapter_for
from bench.engine.families.image_towers import side_of
from bench.engine.families.language import image_token_id
from bench.engine.families.t5 import begun_answers, padding_side
from bench.engine.families.vlm import prompt_layout
from bench.engine.tower import override, without
from bench.models.films import film, video_token_id

WORDS = 36  # tokens of a prompt that are not the image's: what FastV's 611.84 leave beside 576
QWEN_GRID = 36  # patches a side of the image in a prompt of noise: 504 pixels, 324 tokens
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
# Tiles of the largest image, with the image as a whole.
TILES = {"internvl": 12 + 1, "idefics3": 16 + 1, "smolvlm": 16 + 1}
_ON_CPU = ("image_sizes", "image_grid_thw", "video_grid_thw")  # sizes are read, so they need values
_VALUELESS = ("attention_mask", "mm_token_type_ids")  # what is read and may be left out
_IMAGE_FIRST = ("blip-2", "paligemma")


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
    if config.model_type in QWEN:
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
    if config.model_type in QWEN:
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
    if model.config.model_type in QWEN:  # positions, which the model would take from values
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
