"""Adapters for multimodal language models: the LLaVAs, BLIP-2, Qwen2-VL.

Three towers: "vision" (the image encoder), "projector" (what maps its features into the language
model's width) and "language" (the decoder; of T5 the encoder, beside which its "decoder" is counted
and never reduced). The model's own code between them counts on as many image tokens as the prompt
has placeholders, so a removed token travels on as a row of NaN until `LanguagePass` takes it out of
the prompt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.core.site import EncoderSite
from bench.engine.families import Adapter
from bench.engine.families.crops import CropsPass
from bench.engine.families.guide import TextGuide, noting_prompts
from bench.engine.families.hf import FAMILIES, Family, VisionTower
from bench.engine.families.language import DECODERS, LanguageTower
from bench.engine.families.projector import ImagePass, ProjectorPass
from bench.engine.families.qwen2_vl import MergerTower, PackedTower
from bench.engine.families.t5 import ENCODERS, AnswerTower, EncoderTower, has_encoder
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
        crops: an image has crops that are put together, or frames of a video that are pooled.
        reads_vision: the projector takes the image encoder's tokens themselves.
    """

    title: str
    language: str
    projector: str
    vision: str
    grid: bool = False
    packed: bool = False
    crops: bool = False
    reads_vision: bool = True


_LLAVA = ("model.language_model", "model.multi_modal_projector", "model.vision_tower")
_BLIP2 = ("language_projection", "vision_model")
_OPT, _T5 = "language_model.model.decoder", "language_model.encoder"
_QWEN2_VL = ("model.language_model", "model.visual.merger", "model.visual")


LAYOUTS = {
    "LlavaForConditionalGeneration": Layout("LLaVA-1.5", *_LLAVA),
    "LlavaNextForConditionalGeneration": Layout("LLaVA-NeXT", *_LLAVA, grid=True, crops=True),
    "LlavaOnevisionForConditionalGeneration": Layout(
        "LLaVA-OneVision", *_LLAVA, grid=True, crops=True
    ),
    "Blip2ForConditionalGeneration": Layout("BLIP-2 with OPT", _OPT, *_BLIP2, reads_vision=False),
    "Qwen2VLForConditionalGeneration": Layout("Qwen2-VL", *_QWEN2_VL, grid=True, packed=True),
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
            towers["vision"], towers["projector"] = PackedTower(vision), MergerTower(projector)
        else:
            kind = FAMILIES.get(type(vision).__name__)
            if kind is None:
                raise Unsupported(f"the image encoder {type(vision).__name__} is not supported")
            towers["vision"] = image = ImageTower(vision, kind, model, layout)
            towers["projector"] = (CropsTower if layout.crops else ProjectorTower)(
                projector, image, model, layout
            )
        if has_encoder(model):
            towers["language"] = EncoderTower(language, family, model)
            towers["decoder"] = AnswerTower(model.language_model.decoder)
        else:
            towers["language"] = LanguageTower(language, family, model, layout.crops)
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
            self.site_class = EncoderSite
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
        self.blocks, self.model = [module], model
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
        self.owner = model.get_submodule(layout.projector.rpartition(".")[0])

    @property
    def has_anchor(self) -> bool:
        """True where the image encoder has a class token."""
        return bool(self.prefix)

    @property
    def guide(self) -> TextGuide | None:
        """The CLIP that the image encoder came from, where it was handed to the model."""
        found = getattr(self.model, "text_guide", None) if self.has_vision else None
        if callable(found):  # to be made when it is first asked for
            found = self.model.text_guide = found()
        return found

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
    def install(self, run: Any) -> Iterator[None]:
        """Note which words belong to which image, if a method has to know."""
        with noting_prompts(self.model, run) if run.worded else contextlib.nullcontext():
            yield


class CropsTower(ProjectorTower):
    """The same where crops are put together behind it, or frames of a video are pooled."""

    pass_class = CropsPass

    @contextlib.contextmanager
    def install(self, run: Any) -> Iterator[None]:
        """Follow the tokens up to the prompt."""
        owner = self.owner
        ours: dict[str, Any] = {"pack_image_features": partial(run.packed, self.owner)}
        if hasattr(owner, "get_video_features"):
            plain = original(owner, "get_video_features")
            # generate() goes by the names of its arguments
            ours["get_video_features"] = update_wrapper(partial(run.videos, plain), plain)
            ours["apply_pooling"] = partial(run.pooled, original(owner, "apply_pooling"))
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().install(run))
            for name, function in ours.items():
                stack.enter_context(override(owner, name, function))
            yield


@contextlib.contextmanager
def prompt_layout(model: nn.Module, image: Tensor) -> Iterator[None]:
    """Run `model` on the meta device, where token ids have no values: `image` (B,N) is the layout.

    The model's check that placeholders and features are equally many reads values, and is left out.
    """
    owner = getattr(model, "model", model)

    def unchecked(ids: Any, inputs_embeds: Tensor, *args: Any, **kw: Any) -> Any:
        mask = image.to(inputs_embeds.device)[..., None]
        return (mask, mask) if hasattr(owner, "get_video_features") else mask

    with (
        override(model, "_prompt_layout", image),
        override(owner, "get_placeholder_mask", unchecked),
    ):
        yield
