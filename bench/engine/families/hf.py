"""Adapters for Hugging Face encoders: CLIP and SigLIP (both towers), ViT, DeiT, DINOv2.

Another family of this kind is a line in `FAMILIES`. Those whose blocks are told where tokens are
have a file of their own (`hf_placed`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families import Adapter
from bench.engine.families.tapping import tapped
from bench.engine.forward import Pass
from bench.engine.tower import Run, Tower, original, override, shrink


@dataclass(frozen=True)
class Family:
    """Where a model class keeps its blocks and what they apply in turn.

    Attributes:
        tower: "vision", "text" or "language".
        blocks: attribute paths, of which the first that exists is taken.
        attn_parts, mlp_parts: as in `Tower`.
        final_norm: the norm behind the last block.
        scales: names of the parameters by which the two residual branches are multiplied.
        has_class: a class token stands in front.
        masked: its attention takes a mask.
        title: the family as messages name it; "" where another adapter names it.
    """

    tower: str
    blocks: tuple[str, ...]
    attn_parts: tuple[str, ...]
    mlp_parts: tuple[str, ...]
    final_norm: str
    has_class: bool = False
    masked: bool = True
    title: str = ""
    scales: tuple[str, ...] = ()


_CLIP = (("layer_norm1", "self_attn"), ("layer_norm2", "mlp"))
_VIT = (("layernorm_before", "attention", "dropout"), ("layernorm_after", "mlp", "dropout"))
_DINO = (
    ("norm1", "attention", "layer_scale1", "drop_path"),
    ("norm2", "mlp", "layer_scale2", "drop_path"),
)
_VISION = Family("vision", ("encoder.layers",), *_CLIP, "post_layernorm", has_class=True)
_TEXT = Family("text", ("encoder.layers",), *_CLIP, "final_layer_norm")
_INTERN = Family(
    "vision",
    ("encoder.layer",),
    ("layernorm_before", "attention"),
    ("layernorm_after", "mlp", "dropout"),
    "layernorm",
    has_class=True,
    masked=False,
    scales=("lambda_1", "lambda_2"),
)
_CLIP_VISION, _CLIP_TEXT = replace(_VISION, title="CLIP"), replace(_TEXT, title="CLIP")
_SIGLIP_VISION = replace(_VISION, title="SigLIP", has_class=False)
_SIGLIP_TEXT = replace(_TEXT, title="SigLIP")
_VIT_MODEL = Family("vision", ("layers", "encoder.layer"), *_VIT, "layernorm", True, title="ViT")
_DINOV2 = Family("vision", ("encoder.layer",), *_DINO, "layernorm", True, title="DINOv2")

# by class name, so that composite models (CLIPModel, ...ForImageClassification) are searched
FAMILIES = {
    "CLIPVisionModel": _CLIP_VISION,
    "CLIPVisionTransformer": _CLIP_VISION,
    "CLIPTextModel": _CLIP_TEXT,
    "CLIPTextTransformer": _CLIP_TEXT,
    "Blip2VisionModel": replace(_VISION, masked=False),
    "SiglipVisionModel": _SIGLIP_VISION,
    "SiglipVisionTransformer": _SIGLIP_VISION,
    "SiglipTextModel": _SIGLIP_TEXT,
    "SiglipTextTransformer": _SIGLIP_TEXT,
    "InternVLVisionModel": _INTERN,
    "Idefics3VisionTransformer": replace(_SIGLIP_VISION, title=""),
    "SmolVLMVisionTransformer": replace(_SIGLIP_VISION, title=""),
    "ViTModel": _VIT_MODEL,
    "Dinov2Model": _DINOV2,
    "Dinov2Backbone": _DINOV2,
    "Dinov2WithRegistersModel": replace(_DINOV2, title="DINOv2 with registers"),
    "DeiTModel": replace(_VIT_MODEL, title="DeiT"),
}
_MEAN_HEADS = [  # their classifiers take a plain mean over the original positions
    f"{name}ForImageClassification" for name in ("Dinov2", "Dinov2WithRegisters", "Siglip")
]


class HuggingFaceAdapter(Adapter):
    """The families of transformers above, alone or inside a larger model."""

    @property
    def supports(self) -> list[str]:  # type: ignore[override]
        """Each family once; with its towers, where it has several."""
        titles: dict[str, dict[str, None]] = {}
        for family in FAMILIES.values():
            titles.setdefault(family.title, {})[family.tower] = None
        return [
            f"transformers {title}" + (f" ({' and '.join(towers)})" if len(towers) > 1 else "")
            for title, towers in titles.items()
            if title
        ]

    def matches(self, model: nn.Module) -> bool:
        """Whether it is a transformers model that holds a known tower."""
        library = sys.modules.get("transformers.modeling_utils")  # to load it takes seconds
        known = library is not None and isinstance(model, library.PreTrainedModel)
        return known and bool(_find(model))

    def towers(self, model: nn.Module) -> dict[str, Tower]:
        """The towers by name ("vision", "text")."""
        towers: dict[str, Tower] = {}
        for part, family in _find(model):
            kind = TextTower if family.tower == "text" else VisionTower
            tower = kind(part, family)
            tower.averages = type(model).__name__ in _MEAN_HEADS
            tower.restores = tower.restores or tower.averages
            towers.setdefault(family.tower, tower)
        return towers


def _find(model: nn.Module) -> list[tuple[nn.Module, Family]]:
    """Parts of known class that hold their blocks (wrappers of older versions do not)."""
    parts = [(part, FAMILIES.get(type(part).__name__)) for part in model.modules()]
    return [(part, f) for part, f in parts if f is not None and _blocks(part, f) is not None]


def _blocks(part: nn.Module, family: Family) -> Any:
    for path in family.blocks:
        value: Any = part
        for name in path.split("."):
            value = getattr(value, name, None)
        if value is not None:
            return value
    return None


class HuggingFaceTower(Tower):
    """A tower of a transformers model."""

    pass_class: ClassVar[type[Any]] = Pass

    def __init__(self, part: Any, family: Family) -> None:
        """Check that the blocks are split as this code knows them."""
        self.part, self.family = part, family
        self.name = family.tower
        self.blocks = _blocks(part, family)
        self.attn_parts, self.mlp_parts = family.attn_parts, family.mlp_parts
        names = (*self.attn_parts, *self.mlp_parts)
        missing = {name for block in self.blocks for name in names if not _has(block, name)}
        if missing:
            raise Unsupported(
                f"{type(self.blocks[0]).__name__} of this transformers version has no "
                f"{sorted(missing)}; upgrade transformers to one that this project is tested with"
            )

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """Norm, attention, what follows it, residual add."""
        norm, attention, *rest = self.attn_parts
        y = getattr(block, norm)(x)
        if self.family.masked:
            kw = {"attention_mask": mask, **kw}
        y = getattr(block, attention)(hidden_states=y, **kw)[0]
        for name in rest:
            y = getattr(block, name)(y)
        return x + self.scaled(block, y, 0)

    def scaled(self, block: Any, y: Tensor, branch: int) -> Tensor:
        """A residual branch by its scale."""
        return getattr(block, self.family.scales[branch]) * y if self.family.scales else y

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Tap the attention and, where a later reader counts positions, restore them."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._tap(run))
            if self.restores:
                norm = getattr(self.part, self.family.final_norm)
                stack.enter_context(override(norm, "forward", partial(_restored, norm, run)))
            self.install_more(run, stack)
            yield

    def install_more(self, run: Run, stack: contextlib.ExitStack) -> None:
        """What a kind of tower adds."""

    def _tap(self, run: Run) -> contextlib.AbstractContextManager[None]:
        """The attention of the blocks, tapped for the time of a pass."""
        return tapped([attrgetter(self.attn_parts[1])(block) for block in self.blocks], run)


def _has(block: Any, name: str) -> bool:
    """Whether a block has a part, of which the name may be a path."""
    try:
        attrgetter(name)(block)
    except AttributeError:
        return False
    return True


def _restored(norm: Any, run: Run, x: Tensor) -> Tensor:
    return run.restore(original(norm)(x))


class VisionTower(HuggingFaceTower):
    """Image tower; without a class token (SigLIP) every token is a patch."""

    def __init__(self, part: Any, family: Family) -> None:
        """The prefix: the class token, DeiT's distillation token, registers."""
        super().__init__(part, family)
        embed = getattr(part, "embeddings", None)
        registers = getattr(embed, "register_tokens", None)
        more = 0 if registers is None else registers.shape[1]
        more += hasattr(embed, "distillation_token")
        self.prefix = self.n_protected = family.has_class + more

    @property
    def has_anchor(self) -> bool:
        """True with a class token."""
        return self.family.has_class

    def anchor(self, run: Run, x: Tensor) -> Tensor | None:
        """Position 0 of every sample."""
        return x.new_zeros(x.shape[0], dtype=torch.long) if self.has_anchor else None

    def install_more(self, run: Run, stack: contextlib.ExitStack) -> None:
        """SigLIP's attention pooling sees a merged token as often as it stands for patches."""
        attention = getattr(getattr(self.part, "head", None), "attention", None)
        if isinstance(attention, nn.MultiheadAttention):
            pooled = partial(_size_weighted_pooling, attention, run)
            stack.enter_context(override(attention, "forward", pooled))

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Shrink the image for whoever sees it; embeddings resample their position table."""
        with contextlib.ExitStack() as stack:
            for module in self.seers():
                smaller = partial(_smaller, module, size, self.part.config.patch_size)
                stack.enter_context(override(module, "forward", smaller))
            yield

    def seers(self) -> Sequence[Any]:
        """The modules that get the image, all of which must see the same."""
        return [self.part.embeddings]


def _smaller(
    embed: Any, size: Callable[..., Any], patch: int, pixel_values: Tensor, *args: Any, **kw: Any
) -> Tensor:
    if "interpolate_pos_encoding" in type(embed).forward.__code__.co_varnames:
        kw["interpolate_pos_encoding"] = True
    image = shrink(pixel_values, size(*pixel_values.shape[-2:], (patch, patch)))
    return original(embed)(image, *args, **kw)  # type: ignore[no-any-return]


def _size_weighted_pooling(attention: Any, run: Run, q: Tensor, k: Tensor, v: Tensor) -> Any:
    bias = run.size_bias(k.dtype)
    if bias is not None:
        bias = bias.expand(-1, attention.num_heads, q.shape[1], -1).flatten(0, 1)
    return original(attention)(q, k, v, attn_mask=bias)


def noted(embed: Any, run: Run, input_ids: Any = None, *args: Any, **kw: Any) -> Any:
    """An embedding's forward pass, from which the run learns the token ids."""
    run.input_ids = input_ids
    return original(embed)(input_ids, *args, **kw)


class TextTower(HuggingFaceTower):
    """Text tower: start and end of text are protected; readers find their positions again."""

    prefix = 1
    n_protected = 2
    masked = True
    ordered = True
    restores = True

    def __init__(self, part: Any, family: Family) -> None:
        """CLIP's text tower is causal, SigLIP's is not."""
        super().__init__(part, family)
        self.causal = "CLIP" in type(part).__name__

    @property
    def has_anchor(self) -> bool:
        """The end-of-text token (SigLIP: the last position)."""
        return True

    def install_more(self, run: Run, stack: contextlib.ExitStack) -> None:
        """Note the token ids that a forward pass starts with."""
        embed = self.part.embeddings
        stack.enter_context(override(embed, "forward", partial(noted, embed, run)))

    def anchor(self, run: Run, x: Tensor) -> Tensor:
        """(B,) position of the token that the model itself reads out."""
        ids = run.input_ids
        if not self.causal or ids is None:
            return torch.full((x.shape[0],), x.shape[1] - 1, device=x.device)
        if self.part.eos_token_id == 2:  # old configs: the end-of-text token has the highest id
            return ids.to(torch.int).argmax(-1)
        ends: Tensor = ids == self.part.eos_token_id
        return ends.int().argmax(-1)
