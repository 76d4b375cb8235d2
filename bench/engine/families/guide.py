"""What a LLaVA's words and patches have in common: the joint space of the CLIP it was built on.

A LLaVA keeps the image encoder of a CLIP, not its text tower. Methods that rank patches by the
question need both; whoever has the CLIP hands it to the model:

    llava.text_guide = bench.TextGuide(clip, tokenizer, decode)

What they run is a cost of the reduction, counted and timed with it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.engine.tower import original, override


@dataclass(frozen=True)
class TextGuide:
    """The CLIP that a LLaVA's image encoder came from, and how a prompt is put to it.

    Attributes:
        clip: a CLIPModel of transformers; of its image encoder the last norm alone is run.
        tokenizer: list of texts -> `input_ids`, lists of CLIP's ids from start to end of text.
        decode: (B,L) the language model's ids -> the text of each question.
    """

    clip: Any
    tokenizer: Callable[[list[str]], Any]
    decode: Callable[[Tensor], list[str]]

    def images(self, x: Tensor) -> Tensor:
        """Features (I,N,C) of the image encoder -> the joint space (I,N,E), float32."""
        clip = self._on(x.device)
        return clip.visual_projection(clip.vision_model.post_layernorm(x.float()))  # type: ignore[no-any-return]

    def texts(self, ids: Tensor, cut: bool) -> Tensor:
        """Prompts (B,L) -> the joint space (B,M,E), not normalised, float32.

        A question longer than CLIP reads is `cut`, or goes in M segments; rows of zeros stand
        where a question of the batch has fewer than another.
        """
        clip, length = self._on(ids.device), self.clip.config.text_config.max_position_embeddings
        if ids.is_meta:  # the words have no values: one segment each
            rows, counts = ids.new_zeros(len(ids), length), [1] * len(ids)
        else:
            texts = list(self.tokenizer(self.decode(ids))["input_ids"])
            if cut:
                texts = [
                    row if len(row) <= length else [*row[: length - 1], row[-1]] for row in texts
                ]
            segments = [_segments(row, length) for row in texts]
            counts = [len(some) for some in segments]
            rows = torch.tensor([row for some in segments for row in some], device=ids.device)
        embeds = clip.text_projection(clip.text_model(input_ids=rows).pooler_output).float()
        most = max(counts)
        padded = [F.pad(e, (0, 0, 0, most - len(e))) for e in embeds.split(counts)]
        return torch.stack(padded)

    def parameters(self) -> list[nn.Parameter]:
        """What is run of the CLIP."""
        clip = self.clip
        parts = (clip.text_model, clip.text_projection, clip.visual_projection)
        return [p for part in (*parts, clip.vision_model.post_layernorm) for p in part.parameters()]

    def _on(self, device: torch.device) -> Any:
        """The CLIP on a device; on the meta device a copy, since values do not come back."""
        there = next(self.clip.parameters()).device
        if device.type == "meta" and there != device:
            return copy.deepcopy(self.clip).to(device)
        return self.clip if there == device else self.clip.to(device)


@contextmanager
def noting_prompts(model: Any, run: Any) -> Iterator[None]:
    """Let a pass know the prompts' ids before images are encoded, and whose crops those are.

    `generate()` encodes images ahead of the prompt; LLaVA-NeXT cuts an image into `run.crops`.
    """
    with ExitStack() as stack:
        stack.enter_context(override(model, "generate", partial(_generate, model, run)))
        if hasattr(model.config, "image_grid_pinpoints"):
            features = partial(_features, model.model, run)
            stack.enter_context(override(model.model, "get_image_features", features))
        yield


def _generate(model: Any, run: Any, inputs: Tensor | None = None, *args: Any, **kw: Any) -> Any:
    run.prompts = kw.get("input_ids", inputs)
    try:
        return original(model, "generate")(inputs, *args, **kw)
    finally:
        run.prompts = None


# `generate()` goes by the names of these arguments.
def _features(
    owner: Any, run: Any, pixel_values: Tensor, image_sizes: Any, *args: Any, **kw: Any
) -> Any:
    count, config = sys.modules[type(owner).__module__].image_size_to_num_patches, owner.config
    side, grids = config.vision_config.image_size, config.image_grid_pinpoints
    run.crops = [count(size, grids, side) for size in image_sizes]
    return original(owner, "get_image_features")(pixel_values, image_sizes, *args, **kw)


def _segments(ids: Sequence[int], length: int) -> list[list[int]]:
    """Ids in pieces of `length`, the last one filled up with zeros."""
    filled = [*ids, *[0] * (-len(ids) % length)]
    return [filled[at : at + length] for at in range(0, len(filled), length)]
