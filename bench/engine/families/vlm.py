"""Adapters for multimodal language models; another is a line in `LAYOUTS` and what truly differs.

Three towers: "vision" (the image encoder), "projector" (what maps its features into the language
model's width) and "language" (the decoder; of T5 the encoder, beside which its "decoder" is counted
and never reduced). The model's own code between them counts on as many image tokens as the prompt
has placeholders, so a removed token travels on as a row of NaN until `LanguagePass` takes it out of
the prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families import Adapter
from bench.engine.families.hf import FAMILIES
from bench.engine.families.image_towers import CropsTower, Layout, NormedTower
from bench.engine.families.joined_towers import (
    ConnectorTower,
    JoinedImageTower,
    PoolingTower,
    ShuffleTower,
)
from bench.engine.families.language import DECODERS
from bench.engine.families.prefix import PrefixTower
from bench.engine.families.qwen_vl import MergerTower, PackedTower
from bench.engine.families.t5 import ENCODERS, AnswerTower, EncoderTower, has_encoder
from bench.engine.families.video_llava import FramesTower, StillTower
from bench.engine.tower import Tower, override

_LLAVA = ("model.language_model", "model.multi_modal_projector", "model.vision_tower")
_BLIP2 = ("language_projection", "vision_model")
_OPT, _T5 = "language_model.model.decoder", "language_model.encoder"
_QWEN_VL = ("model.language_model", "model.visual.merger", "model.visual")
_IDEFICS3 = ("model.text_model", "model.connector", "model.vision_model")
_STILLS = ("model.language_model", "model.multi_modal_projector", "model.image_tower")
_FRAMES: dict[str, Any] = {"image": StillTower, "between": FramesTower}
_CROPS: dict[str, Any] = {"between": CropsTower, "grid": True}
_SHUFFLED: dict[str, Any] = {"image": JoinedImageTower, "between": ShuffleTower}
_CONNECTED: dict[str, Any] = {"image": JoinedImageTower, "between": ConnectorTower}
_PREFIXED: dict[str, Any] = {"image": NormedTower, "reader": PrefixTower}
_POOLED: dict[str, Any] = {
    "image": JoinedImageTower,
    "between": PoolingTower,
    "reader": PrefixTower,
}

LAYOUTS = {
    "LlavaForConditionalGeneration": Layout("LLaVA-1.5", *_LLAVA),
    "LlavaNextForConditionalGeneration": Layout("LLaVA-NeXT", *_LLAVA, **_CROPS),
    "LlavaNextVideoForConditionalGeneration": Layout("LLaVA-NeXT-Video", *_LLAVA, **_CROPS),
    "VideoLlavaForConditionalGeneration": Layout("Video-LLaVA", *_STILLS, **_FRAMES),
    "LlavaOnevisionForConditionalGeneration": Layout("LLaVA-OneVision", *_LLAVA, **_CROPS),
    "InternVLForConditionalGeneration": Layout("InternVL", *_LLAVA, **_SHUFFLED),
    "Idefics3ForConditionalGeneration": Layout("Idefics3", *_IDEFICS3, **_CONNECTED),
    "SmolVLMForConditionalGeneration": Layout("SmolVLM", *_IDEFICS3, **_CONNECTED),
    "PaliGemmaForConditionalGeneration": Layout("PaliGemma", *_LLAVA, **_PREFIXED),
    "Gemma3ForConditionalGeneration": Layout("Gemma 3", *_LLAVA, **_POOLED),
    "Blip2ForConditionalGeneration": Layout("BLIP-2 with OPT", _OPT, *_BLIP2, reads_vision=False),
    "Qwen2VLForConditionalGeneration": Layout("Qwen2-VL", *_QWEN_VL, grid=True, packed=True),
    "Qwen2_5_VLForConditionalGeneration": Layout("Qwen2.5-VL", *_QWEN_VL, grid=True, packed=True),
    "Qwen3VLForConditionalGeneration": Layout("Qwen3-VL", *_QWEN_VL, grid=True, packed=True),
}
BLIP2_T5 = Layout("BLIP-2 with T5", _T5, *_BLIP2, reads_vision=False)


class MultimodalAdapter(Adapter):
    """Language models that see, of transformers."""

    supports = tuple(
        f"transformers {layout.title} (vision, projector, language)"
        for layout in (*LAYOUTS.values(), BLIP2_T5)
    )
    classes = LAYOUTS

    def towers(self, model: Any) -> dict[str, Tower]:
        """The towers by name, in the order in which tokens pass them.

        Raises:
            Unsupported: its image encoder or its language model is of another family.
        """
        layout = BLIP2_T5 if has_encoder(model) else LAYOUTS[type(model).__name__]
        known = ENCODERS if has_encoder(model) else DECODERS
        try:
            language = model.get_submodule(layout.language)
        except AttributeError:  # no part where a supported one has it
            language = getattr(model, "language_model", model)
        family = known.get(type(language).__name__)
        if family is None:
            raise Unsupported(
                f"the language model {type(language).__name__} is not supported; known are "
                + ", ".join((*DECODERS, *ENCODERS))
            )
        towers: dict[str, Tower] = {}
        vision, projector = (model.get_submodule(n) for n in (layout.vision, layout.projector))
        if layout.packed:
            towers["vision"], towers["projector"] = PackedTower(vision), MergerTower(vision)
        else:
            kind = FAMILIES.get(type(vision).__name__)
            if kind is None:
                raise Unsupported(f"the image encoder {type(vision).__name__} is not supported")
            towers["vision"] = image = layout.image(vision, kind, model, layout)
            towers["projector"] = layout.between(projector, image, model, layout)
        if has_encoder(model):
            towers["language"] = EncoderTower(language, family, model)
            towers["decoder"] = AnswerTower(model.language_model.decoder)
        else:
            reader = PrefixTower if "Gemma" in type(language).__name__ else layout.reader
            videos = layout.packed or layout.between.videos
            towers["language"] = reader(language, family, model, videos)
        return towers


@contextlib.contextmanager
def prompt_layout(model: nn.Module, image: Tensor) -> Iterator[None]:
    """Run `model` on the meta device, where token ids have no values: `image` (B,N) is the layout.

    The model's check that placeholders and features are equally many reads values, and is left out.
    """
    owner = getattr(model, "model", model)

    def unchecked(ids: Any, inputs_embeds: Tensor, *args: Any, **kw: Any) -> Any:
        mask = image.to(inputs_embeds.device)[..., None]
        return (mask, mask) if hasattr(owner, "get_video_features") else mask

    def merged(input_ids: Any, inputs_embeds: Tensor, image_hidden_states: Tensor) -> Tensor:
        return inputs_embeds.masked_scatter(unchecked(None, inputs_embeds), image_hidden_states)

    ours = ("inputs_merger", merged), ("get_placeholder_mask", unchecked)
    name, function = ours[0] if hasattr(owner, "inputs_merger") else ours[1]
    with override(model, "_prompt_layout", image), override(owner, name, function):
        yield
