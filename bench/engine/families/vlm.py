"""Adapters for multimodal language models: LLaVA-1.5, LLaVA-NeXT, BLIP-2, Qwen2-VL.

Three towers: "vision" (the image encoder), "projector" (what maps its features into the language
model's width) and "language" (the decoder). The model's own code between them counts on as many
image tokens as the prompt has placeholders, so a removed token travels on as a row of NaN until
`LanguagePass` takes it out of the prompt.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families import Adapter
from bench.engine.families.decoder import LanguagePass
from bench.engine.families.hf import FAMILIES, Family, HuggingFaceTower, VisionTower, noted
from bench.engine.families.projector import ImagePass, ProjectorPass
from bench.engine.families.qwen2_vl import MergerTower, PackedTower
from bench.engine.tower import Run, Tower, original, override


@dataclass(frozen=True)
class Layout:
    """Where a model class keeps its parts.

    Attributes:
        title: the family as messages name it.
        language, projector, vision: attribute paths from the model.
        grid: image tokens are rearranged by where they are (crops put together, positions in two
            dimensions), so that each must stay at its own place; else they follow each other.
        packed: the patches of all images lie in one sequence.
        reads_vision: the projector takes the image encoder's tokens themselves.
    """

    title: str
    language: str
    projector: str
    vision: str
    grid: bool = False
    packed: bool = False
    reads_vision: bool = True


_LLAVA = ("model.language_model", "model.multi_modal_projector", "model.vision_tower")
_BLIP2 = ("language_model.model.decoder", "language_projection", "vision_model")
_QWEN2_VL = ("model.language_model", "model.visual.merger", "model.visual")


LAYOUTS = {
    "LlavaForConditionalGeneration": Layout("LLaVA-1.5", *_LLAVA),
    "LlavaNextForConditionalGeneration": Layout("LLaVA-NeXT", *_LLAVA, grid=True),
    "Blip2ForConditionalGeneration": Layout("BLIP-2 with OPT", *_BLIP2, reads_vision=False),
    "Qwen2VLForConditionalGeneration": Layout("Qwen2-VL", *_QWEN2_VL, grid=True, packed=True),
}
_PRE_NORM = (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp"))
_OPT = (("self_attn_layer_norm", "self_attn"), ("final_layer_norm", "fc1", "activation_fn", "fc2"))
DECODERS = {
    "LlamaModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "MistralModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "Qwen2Model": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "Qwen2VLTextModel": Family("language", ("layers",), *_PRE_NORM, "norm"),
    "OPTDecoder": Family("language", ("layers",), *_OPT, "final_layer_norm"),
}


class MultimodalAdapter(Adapter):
    """Language models that see, of transformers."""

    supports = tuple(
        f"transformers {layout.title} (vision, projector, language)" for layout in LAYOUTS.values()
    )
    classes = LAYOUTS

    def towers(self, model: nn.Module) -> dict[str, Tower]:
        """The towers by name, in the order in which tokens pass them.

        Raises:
            Unsupported: its image encoder or its language model is of another family.
        """
        layout = LAYOUTS[type(model).__name__]
        try:
            decoder = model.get_submodule(layout.language)
        except AttributeError:  # no part where a supported one has it: a BLIP-2 with T5
            decoder = getattr(model, "language_model", model)
        family = DECODERS.get(type(decoder).__name__)
        if family is None:
            raise Unsupported(
                f"the language model {type(decoder).__name__} is not supported; known are "
                + ", ".join(DECODERS)
            )
        towers: dict[str, Tower] = {}
        vision, projector = (model.get_submodule(n) for n in (layout.vision, layout.projector))
        if layout.packed:
            towers["vision"], towers["projector"] = PackedTower(vision), MergerTower(projector)
        else:
            kind = FAMILIES.get(type(vision).__name__)
            if kind is None:
                raise Unsupported(f"the image encoder {type(vision).__name__} is not supported")
            towers["vision"] = image = ImageTower(vision, kind, model, layout)
            towers["projector"] = ProjectorTower(projector, image, model, layout)
        towers["language"] = LanguageTower(decoder, family, model)
        return towers


class ImageTower(VisionTower):
    """The image encoder; a projector reads the output of one of its blocks."""

    pass_class = ImagePass
    ordered = True

    def __init__(self, part: Any, family: Family, model: Any, layout: Layout) -> None:
        """Find the block whose output the projector takes."""
        super().__init__(part, family)
        self.linked = ("projector", "language") if layout.reads_vision else ()
        self.feature = len(self.blocks) - 1
        if layout.reads_vision:
            chosen = model.config.vision_feature_layer
            if not isinstance(chosen, int):
                raise Unsupported("features of several vision layers at once are not supported")
            # hidden state 0 is the embedding; n is the output of block n - 1
            self.feature = chosen - 1 if chosen >= 0 else len(self.blocks) + chosen


class ProjectorTower(Tower):
    """The map from image features to the language model; one block, tokens before and after it."""

    name = "projector"
    pass_class = ProjectorPass

    def __init__(self, module: Any, vision: ImageTower, model: Any, layout: Layout) -> None:
        """Note how the model selects features."""
        self.blocks = [module]
        self.feature = vision.feature
        self.grid_order = layout.grid
        self.linked = ("vision", "language") if layout.reads_vision else ("language",)
        self.has_vision = layout.reads_vision
        config = model.config
        strategy = getattr(config, "vision_feature_select_strategy", "full")
        self.prefix = self.n_protected = int(layout.reads_vision and vision.has_anchor)
        self.drops_class = bool(self.prefix) and strategy == "default"
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.patches = side * side if layout.reads_vision else int(config.num_query_tokens)
        self.whole = self.patches + (0 if self.drops_class else self.prefix)

    @property
    def has_anchor(self) -> bool:
        """True where the image encoder has a class token."""
        return bool(self.prefix)

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """The projection."""
        return original(block)(x)  # type: ignore[no-any-return]

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Nothing follows."""
        return x

    def grid(self, patches: int) -> tuple[int, int] | None:
        """A square grid, where tokens are patches."""
        side = int(patches**0.5)
        return (side, side) if self.has_vision and side * side == patches else None

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Needs nothing."""
        yield


class LanguageTower(HuggingFaceTower):
    """The decoder of a multimodal language model; its prompt is cut ahead of the first block."""

    pass_class = LanguagePass
    causal = True
    prefix = 0
    n_protected = 0

    def __init__(self, part: Any, family: Family, model: Any) -> None:
        """Find its parts; RoPE with one axis can be renumbered."""
        super().__init__(part, family)
        if not getattr(self.blocks[0], "do_layer_norm_before", True):
            raise Unsupported("an OPT with the norm after attention (350m) is not supported")
        self.model, self.final_norm = model, getattr(part, family.final_norm)
        self.renumbers = "VL" not in type(part).__name__ and hasattr(part, "rotary_emb")

    @property
    def has_anchor(self) -> bool:
        """The last token of the prompt."""
        return True

    def install_more(self, run: Any, stack: contextlib.ExitStack) -> None:
        """Note the prompt's ids where they are embedded; cut it ahead of the blocks."""
        embed = self.model.get_input_embeddings()
        stack.enter_context(override(embed, "forward", partial(noted, embed, run)))
        forward = partial(run.forward, original(self.part))
        stack.enter_context(override(self.part, "forward", forward))
        owner = getattr(self.model, "model", None)
        if hasattr(owner, "get_video_features"):
            stack.enter_context(override(owner, "get_video_features", _no_videos))

    def image_of(self, ids: Tensor) -> Tensor:
        """(B,N) which tokens of a prompt are the image's."""
        layout: Tensor = getattr(self.model, "_prompt_layout", ids == image_token_id(self.model))
        return layout

    @property
    def _fused(self) -> bool:
        return bool(self.part.config._attn_implementation != "eager")

    def causal_mask(self, x: Tensor, filled: Tensor | None) -> Tensor | None:
        """(B,1,M,M) mask of a prompt, padding not `filled`; None if the kernel has its own."""
        if filled is None and self._fused:
            return None
        M = x.shape[1]
        square = torch.ones(M, M, dtype=torch.bool, device=x.device)
        visible = square.tril()[None, None]
        if filled is not None:  # padding sees itself, lest its softmax be empty
            visible = (visible & filled[:, None, None]) | (square.tril() & square.triu())
        return self.mask(visible, x)

    def mask(self, visible: Tensor, x: Tensor) -> Tensor:
        """A boolean mask of what is visible, as the attention backend takes it."""
        if self._fused:
            return visible
        lowest = torch.finfo(x.dtype).min
        return torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, lowest)

    def rotary(self, x: Tensor, position: Tensor) -> dict[str, Any]:
        """The arguments of a block that depend on positions (B,M)."""
        angles = self.part.rotary_emb(x, position_ids=position)
        return {"position_ids": position, "position_embeddings": angles}

    def projected(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,H,M,D) queries and keys of a block from its input, before rotation."""
        norm, name = self.attn_parts
        attn, y = getattr(block, name), getattr(block, norm)(x)
        shape = (*x.shape[:2], -1, attn.head_dim)
        q, k = (getattr(attn, n)(y).view(shape).transpose(1, 2) for n in ("q_proj", "k_proj"))
        return q, k

    def rotated(self, block: Any, q: Tensor, k: Tensor, kw: Any) -> tuple[Tensor, Tensor]:
        """Queries and keys of a block after rotation."""
        if "position_embeddings" in kw:
            attn = getattr(block, self.attn_parts[1])
            rotate = sys.modules[type(attn).__module__].apply_rotary_pos_emb
            q, k = rotate(q, k, *kw["position_embeddings"])
        return q, k


def _no_videos(*_: Any, **__: Any) -> None:
    raise Unsupported("videos are not supported under reduction: give images")


def image_token_id(model: Any) -> int:
    """The token id that holds an image token's place in a prompt."""
    config = model.config
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    raise Unsupported(f"{type(model).__name__} names no image token in its configuration")


@contextlib.contextmanager
def prompt_layout(model: nn.Module, image: Tensor) -> Iterator[None]:
    """Run `model` on the meta device, where token ids have no values: `image` (B,N) is the layout.

    The model's check that placeholders and features are equally many reads values, and is left out.
    """
    owner = getattr(model, "model", model)

    def unchecked(ids: Any, inputs_embeds: Tensor, *args: Any, **kw: Any) -> Any:
        mask = image.to(inputs_embeds.device)[..., None]
        return (mask, mask) if "VL" in type(owner).__name__ else mask

    with (
        override(model, "_prompt_layout", image),
        override(owner, "get_placeholder_mask", unchecked),
    ):
        yield
