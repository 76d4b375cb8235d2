"""The towers between pixels and prompt: image encoders that a projector reads, and projectors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any, ClassVar

from torch import Tensor

from bench.core.errors import Unsupported
from bench.core.site import EncoderSite
from bench.engine.families.crops import CropsPass
from bench.engine.families.guide import TextGuide, noting_prompts
from bench.engine.families.hf import Family, VisionTower
from bench.engine.families.language import LanguageTower
from bench.engine.families.projector import ImagePass, NormedPass, ProjectorPass
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
        image, between, reader: the classes of the towers "vision", "projector" and "language".
    """

    title: str
    language: str
    projector: str
    vision: str
    grid: bool = False
    packed: bool = False
    reads_vision: bool = True
    image: type[ImageTower] = field(default_factory=lambda: ImageTower)
    between: type[ProjectorTower] = field(default_factory=lambda: ProjectorTower)
    reader: type[LanguageTower] = LanguageTower


def side_of(size: Any) -> int:
    """Pixels along a side of a square, of which a configuration may name both sides."""
    return int(size if isinstance(size, int) else size[0])


def patches_of_a_side(config: Any) -> int:
    """How many patches an image encoder has along each side of an image."""
    return side_of(config.image_size) // side_of(config.patch_size)


class ImageTower(VisionTower):
    """The image encoder; a projector reads the output of one of its blocks."""

    pass_class: ClassVar[type[Any]] = ImagePass
    ordered = True

    def __init__(self, part: Any, family: Family, model: Any, layout: Layout) -> None:
        """Find the block whose output the projector takes."""
        super().__init__(part, family)
        self.linked = ("projector", "language") if layout.reads_vision else ()
        self.feature = len(self.blocks) - 1
        if layout.reads_vision:
            self.site_class = EncoderSite
            chosen = getattr(model.config, "vision_feature_layer", -1)
            if not isinstance(chosen, int):
                raise Unsupported("features of several vision layers at once are not supported")
            # hidden state 0 is the embedding; n is the output of block n - 1
            self.feature = chosen - 1 if chosen >= 0 else len(self.blocks) + chosen


class NormedTower(ImageTower):
    """An image encoder whose last norm stands ahead of the projector."""

    pass_class: ClassVar[type[Any]] = NormedPass

    def __init__(self, part: Any, family: Family, model: Any, layout: Layout) -> None:
        """Its last block makes the features.

        Raises:
            Unsupported: another block makes them, or the norm is for the class token alone.
        """
        super().__init__(part, family, model, layout)
        if self.feature != len(self.blocks) - 1:
            raise Unsupported("features of another vision layer than the last are not supported")
        if family.has_class and family.final_norm == "post_layernorm":
            raise Unsupported(f"the image encoder {type(part).__name__} is not supported here")

    def install_more(self, run: Any, stack: contextlib.ExitStack) -> None:
        """Note what the norm makes of the features."""
        super().install_more(run, stack)
        norm = getattr(self.part, self.family.final_norm)
        stack.enter_context(override(norm, "forward", partial(run.normed, original(norm))))


class ProjectorTower(Tower):
    """The map from image features to the language model; one block, tokens before and after it.

    Attributes:
        videos: whether prompts may have videos.
    """

    name = "projector"
    pass_class: ClassVar[type[Any]] = ProjectorPass
    videos: ClassVar[bool] = False

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
        side = patches_of_a_side(config.vision_config)
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
    """The same where crops are put together behind it, or frames of a video are pooled.

    Attributes:
        pools_ahead: frames are pooled ahead of it.
    """

    pass_class = CropsPass
    videos = True

    @property
    def pools_ahead(self) -> bool:
        """Whether the model has a part that pools features.

        Raises:
            Unsupported: it does so otherwise than by a mean.
        """
        pooler = getattr(self.owner, "vision_resampler", None)
        if pooler is not None and self.model.config.spatial_pool_mode != "average":
            raise Unsupported("frames of videos that are not pooled by a mean are not supported")
        return pooler is not None

    @contextlib.contextmanager
    def install(self, run: Any) -> Iterator[None]:
        """Follow the tokens up to the prompt."""
        owner = self.owner
        ours: dict[str, Any] = {}
        if hasattr(owner, "pack_image_features"):
            ours["pack_image_features"] = partial(run.packed, owner)
        if hasattr(owner, "get_video_features"):
            plain = original(owner, "get_video_features")
            # generate() goes by the names of its arguments
            ours["get_video_features"] = update_wrapper(partial(run.videos, plain), plain)
        if hasattr(owner, "apply_pooling"):
            ours["apply_pooling"] = partial(run.pooled, original(owner, "apply_pooling"))
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().install(run))
            if self.pools_ahead:
                pooler = owner.vision_resampler
                ahead = partial(run.resampled, original(pooler))
                stack.enter_context(override(pooler, "forward", ahead))
            for name, function in ours.items():
                stack.enter_context(override(owner, name, function))
            yield
