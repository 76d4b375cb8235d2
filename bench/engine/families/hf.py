"""Adapters for Hugging Face encoders: CLIP (both towers), SigLIP (both), ViT, DINOv2.

Queries, keys and values are tapped through transformers' attention interface: for the time of a
reduced pass the attention modules of a tower read a copy of their config that names a function of
ours, which notes q, k and v, adds the size bias and calls the backend that was configured. So the
model's own attention code, its masks and its backends (eager, SDPA, flash) stay in use.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families.timm_vit import shrink
from bench.engine.tower import Tower, original, override

if TYPE_CHECKING:
    from bench.engine.forward import Pass


@dataclass(frozen=True)
class Family:
    """Where a model class keeps its blocks and what they apply in turn."""

    tower: str
    blocks: tuple[str, ...]  # attribute paths, the first that exists
    attn_parts: tuple[str, ...]
    mlp_parts: tuple[str, ...]
    final_norm: str
    has_class: bool = False
    masked: bool = True  # its attention takes a mask


_CLIP = (("layer_norm1", "self_attn"), ("layer_norm2", "mlp"))
_VIT = (("layernorm_before", "attention", "dropout"), ("layernorm_after", "mlp", "dropout"))
_DINO = (
    ("norm1", "attention", "layer_scale1", "drop_path"),
    ("norm2", "mlp", "layer_scale2", "drop_path"),
)
_CLIP_VISION = Family("vision", ("encoder.layers",), *_CLIP, "post_layernorm", has_class=True)
_SIGLIP_VISION = Family("vision", ("encoder.layers",), *_CLIP, "post_layernorm")
_TEXT = Family("text", ("encoder.layers",), *_CLIP, "final_layer_norm")
_DINOV2 = Family("vision", ("encoder.layer",), *_DINO, "layernorm", has_class=True)

# by class name, so that composite models (CLIPModel, ...ForImageClassification) are searched
FAMILIES = {
    "CLIPVisionModel": _CLIP_VISION,
    "CLIPVisionTransformer": _CLIP_VISION,
    "CLIPTextModel": _TEXT,
    "CLIPTextTransformer": _TEXT,
    "Blip2VisionModel": replace(_CLIP_VISION, masked=False),
    "SiglipVisionModel": _SIGLIP_VISION,
    "SiglipVisionTransformer": _SIGLIP_VISION,
    "SiglipTextModel": _TEXT,
    "SiglipTextTransformer": _TEXT,
    "ViTModel": Family("vision", ("layers", "encoder.layer"), *_VIT, "layernorm", has_class=True),
    "Dinov2Model": _DINOV2,
    "Dinov2Backbone": _DINOV2,
}
# their classifiers take a plain mean over the original positions
_MEAN_HEADS = ("Dinov2ForImageClassification", "SiglipForImageClassification")


class HuggingFaceAdapter:
    """CLIP, SigLIP, ViT and DINOv2 of transformers, alone or inside a larger model."""

    supports = (
        "transformers CLIP (vision and text)",
        "transformers SigLIP (vision and text)",
        "transformers ViT",
        "transformers DINOv2",
    )

    def matches(self, model: nn.Module) -> bool:
        """Whether it is a transformers model that holds a known tower."""
        from transformers import PreTrainedModel

        return isinstance(model, PreTrainedModel) and bool(_find(model))

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
    found = []
    for part in model.modules():
        family = FAMILIES.get(type(part).__name__)
        if family is not None and _blocks(part, family) is not None:
            found.append((part, family))
    return found


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

    def __init__(self, part: Any, family: Family) -> None:
        """Check that the blocks are split as this code knows them."""
        self.part, self.family = part, family
        self.name = family.tower
        self.blocks = _blocks(part, family)
        self.attn_parts, self.mlp_parts = family.attn_parts, family.mlp_parts
        missing = {
            n for b in self.blocks for n in (*self.attn_parts, *self.mlp_parts) if not hasattr(b, n)
        }
        if missing:
            raise Unsupported(
                f"{type(self.blocks[0]).__name__} of this transformers version has no "
                f"{sorted(missing)}; upgrade transformers to one that this project is tested with"
            )

    def attend(self, block: Any, x: Tensor, run: Pass, mask: Tensor | None, kw: Any) -> Tensor:
        """Norm, attention, what follows it, residual add."""
        norm, attention, *rest = self.attn_parts
        y = getattr(block, norm)(x)
        if self.family.masked:
            kw = {"attention_mask": mask, **kw}
        y = getattr(block, attention)(hidden_states=y, **kw)[0]
        for name in rest:
            y = getattr(block, name)(y)
        return x + y  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def install(self, run: Pass) -> Iterator[None]:
        """Tap the attention and, where a later reader counts positions, restore them."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._tap(run))
            if self.restores:
                norm = getattr(self.part, self.family.final_norm)
                stack.enter_context(override(norm, "forward", partial(_restored, norm, run)))
            self.install_more(run, stack)
            yield

    def install_more(self, run: Pass, stack: contextlib.ExitStack) -> None:
        """What a kind of tower adds."""

    @contextlib.contextmanager
    def _tap(self, run: Pass) -> Iterator[None]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        modules = [getattr(block, self.attn_parts[1]) for block in self.blocks]
        config = modules[0].config
        backend = config._attn_implementation
        eager = getattr(sys.modules[type(modules[0]).__module__], "eager_attention_forward", None)
        inner = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager)
        if backend not in ("eager", "sdpa", None):
            raise Unsupported(f"attention backend '{backend}' is not supported; use sdpa or eager")
        tapped = copy.copy(config)
        tapped._attn_implementation_internal = _TAP
        with contextlib.ExitStack() as stack:
            stack.enter_context(_registered(run))
            for module in modules:
                stack.enter_context(override(module, "config", tapped))
                stack.enter_context(override(module, _TAP, (run, inner, backend == "sdpa")))
            yield


_TAP = "_reduced"  # the name of our attention function, and of what it finds on the module
_RUNS: list[Pass] = []  # which need it now


@contextlib.contextmanager
def _registered(run: Pass) -> Iterator[None]:
    """Our attention function is known to transformers as long as any run needs it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[_TAP] = _tapped_attention
    _RUNS.append(run)
    try:
        yield
    finally:
        _RUNS.remove(run)
        if not _RUNS:
            del ALL_ATTENTION_FUNCTIONS[_TAP]


def _tapped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kw: Any,
) -> tuple[Tensor, Tensor | None]:
    """The function that the attention modules find: (B,H,N,D) each -> ((B,N,H,D), weights).

    The run is looked up on the module, so that a deep copy made inside has a run of its own.
    """
    run, inner, fused = getattr(module, _TAP)

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return inner(module, q, k, v, mask, scaling=scale, **kw)[0].transpose(1, 2)  # type: ignore[no-any-return]

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = run.attention(query, key, value, attention_mask, scale, call, fused=fused)
    return out.transpose(1, 2), None


def _restored(norm: Any, run: Pass, x: Tensor) -> Tensor:
    return run.restore(original(norm)(x))


class VisionTower(HuggingFaceTower):
    """Image tower; without a class token (SigLIP) every token is a patch."""

    def __init__(self, part: Any, family: Family) -> None:
        """A class token is the whole prefix."""
        super().__init__(part, family)
        self.prefix = self.n_protected = int(family.has_class)

    @property
    def has_anchor(self) -> bool:
        """True with a class token."""
        return self.family.has_class

    def anchor(self, run: Pass, x: Tensor) -> Tensor | None:
        """Position 0 of every sample."""
        return x.new_zeros(x.shape[0], dtype=torch.long) if self.has_anchor else None

    def install_more(self, run: Pass, stack: contextlib.ExitStack) -> None:
        """SigLIP's attention pooling sees a merged token as often as it stands for patches."""
        attention = getattr(getattr(self.part, "head", None), "attention", None)
        if isinstance(attention, nn.MultiheadAttention):
            pooled = partial(_size_weighted_pooling, attention, run)
            stack.enter_context(override(attention, "forward", pooled))

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Shrink the image in front of the embeddings, which resample their position table."""
        embed = self.part.embeddings
        smaller = partial(_smaller, embed, size, self.part.config.patch_size)
        with override(embed, "forward", smaller):
            yield


def _smaller(
    embed: Any,
    size: Callable[..., Any],
    patch: int,
    pixel_values: Tensor,
    *args: Any,
    **kw: Any,
) -> Tensor:
    if "interpolate_pos_encoding" in type(embed).forward.__code__.co_varnames:
        kw["interpolate_pos_encoding"] = True
    image = shrink(pixel_values, size(*pixel_values.shape[-2:], (patch, patch)))
    return original(embed)(image, *args, **kw)  # type: ignore[no-any-return]


def _size_weighted_pooling(attention: Any, run: Pass, q: Tensor, k: Tensor, v: Tensor) -> Any:
    bias = run.size_bias(k.dtype)
    if bias is not None:
        bias = bias.expand(-1, attention.num_heads, q.shape[1], -1).flatten(0, 1)
    return original(attention)(q, k, v, attn_mask=bias)


def noted(embed: Any, run: Pass, input_ids: Any = None, *args: Any, **kw: Any) -> Any:
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

    def install_more(self, run: Pass, stack: contextlib.ExitStack) -> None:
        """Note the token ids that a forward pass starts with."""
        embed = self.part.embeddings
        stack.enter_context(override(embed, "forward", partial(noted, embed, run)))

    def anchor(self, run: Pass, x: Tensor) -> Tensor:
        """(B,) position of the token that the model itself reads out."""
        ids = run.input_ids
        if not self.causal or ids is None:
            return torch.full((x.shape[0],), x.shape[1] - 1, device=x.device)
        if self.part.eos_token_id == 2:  # old configs: the end-of-text token has the highest id
            return ids.to(torch.int).argmax(-1)
        found: Tensor = ids == self.part.eos_token_id
        return found.int().argmax(-1)
