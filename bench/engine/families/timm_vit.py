"""Adapter for timm's plain vision transformers: VisionTransformer, Eva, Beit and one like Beit.

A tower is made of what the model does around its blocks; how a block is split, its class says
(`timm_blocks`).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families import Adapter
from bench.engine.families.placed import PlacedPass
from bench.engine.families.timm_blocks import Positions, split_of
from bench.engine.forward import Pass
from bench.engine.tower import Run, Tower, original, override, shrink


class TimmTower(Tower):
    """The blocks of a timm vision transformer; sizes weight whatever pools them at the end.

    Attributes:
        shape: rows and columns of the present images' patches, where the model takes any size.
    """

    pass_class: ClassVar[type[Any]] = Pass

    def __init__(self, model: Any) -> None:
        """Read the token layout off the model.

        Raises:
            Unsupported: its blocks, or what pools its tokens, are of a kind that is not known.
        """
        self.model = model
        self.name = "vision"
        self.blocks = model.blocks
        self.split = split_of(model.blocks)
        self.attn_parts, self.mlp_parts = self.split.of(model.blocks[0])
        self.prefix = self.n_protected = model.num_prefix_tokens
        self.averages = model.global_pool not in ("", "token")
        self.restores = self.averages and not hasattr(model, "pool")
        self.shape: tuple[int, int] | None = None
        pool = getattr(model, "attn_pool", None)
        if pool is not None and "attn_mask" not in inspect.signature(pool.forward).parameters:
            raise Unsupported(
                f"the {type(pool).__name__} of this timm version takes no mask, by which it would "
                "see merged tokens as often as they stand for patches"
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.embed_dim)

    @property
    def has_anchor(self) -> bool:
        """True with a class token."""
        return self.model.cls_token is not None

    def anchor(self, run: Run, x: Tensor) -> Tensor | None:
        """Position 0 of every sample."""
        return x.new_zeros(x.shape[0], dtype=torch.long) if self.has_anchor else None

    def grid(self, patches: int) -> tuple[int, int] | None:
        """The present images' grid, else the patch embedding's own, else a square one."""
        for shape in (self.shape, self.model.patch_embed.grid_size):
            if shape is not None and prod(shape) == patches:
                return (shape[0], shape[1])
        return super().grid(patches)

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """The attention's half, told of places as far as the model knows any."""
        if mask is not None or kw.get("attn_mask") is not None or kw.get("is_causal"):
            raise Unsupported("masked attention in a timm ViT is not supported under reduction")
        return self.split.attend(block, x, run, self.positions(block, run, kw))

    def positions(self, block: Any, run: Any, kw: Any) -> Positions:
        """What a block's attention is told of the present tokens' places."""
        return {}

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The MLP's half."""
        return self.split.feed(block, x)

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Weight the pooling by sizes, so that a merged token counts for its own; note grids."""
        model = self.model
        with contextlib.ExitStack() as stack:
            if self.restores:
                stack.enter_context(override(model.norm, "forward", partial(self._norm, run)))
            elif hasattr(model, "pool"):
                stack.enter_context(override(model, "pool", partial(self._pool, run)))
            if getattr(model, "dynamic_img_size", False):
                stack.enter_context(override(model, "_pos_embed", self._noting_shape))
            yield

    def _norm(self, run: Run, x: Tensor) -> Tensor:
        return run.restore(original(self.model.norm)(x))

    def _pool(self, run: Run, x: Tensor, pool_type: str | None = None) -> Tensor:
        model = self.model
        kind = model.global_pool if pool_type is None else pool_type
        with_prefix = getattr(model, "pool_include_prefix", model.attn_pool is not None)
        first = 0 if with_prefix else model.num_prefix_tokens
        if model.attn_pool is not None:
            bias = run.size_bias(x.dtype)
            seen = None if bias is None else bias[..., first:]
            return model.attn_pool(x[:, first:], attn_mask=seen)  # type: ignore[no-any-return]
        if kind not in ("avg", "avgmax"):
            return original(model, "pool")(x, pool_type)  # type: ignore[no-any-return]
        size = run.size[:, first:].to(x.dtype)
        mean = (x[:, first:] * size).sum(1) / size.sum(1)
        return mean if kind == "avg" else 0.5 * (x[:, first:].amax(1) + mean)

    def _noting_shape(self, x: Tensor) -> Any:
        self.shape = (x.shape[1], x.shape[2])
        return original(self.model, "_pos_embed")(x)

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Shrink the image in front of the patch embedding; timm resamples the position table."""
        if not hasattr(self.model, "dynamic_img_size"):
            raise Unsupported(
                f"timm's {type(self.model).__name__} has biases by places of one image size, so "
                "its input cannot be resized"
            )
        embed = self.model.patch_embed
        forward = original(embed)

        def smaller(image: Tensor, *args: Any, **kw: Any) -> Tensor:
            to = size(*image.shape[-2:], tuple(embed.feat_ratio(as_scalar=False)))
            return forward(shrink(image, to), *args, **kw)  # type: ignore[no-any-return]

        from timm.layers.format import Format

        settings = {"flatten": False, "output_fmt": Format.NHWC, "strict_img_size": False}
        with contextlib.ExitStack() as stack:
            stack.enter_context(override(embed, "forward", smaller))
            stack.enter_context(override(self.model, "dynamic_img_size", True))
            for key, value in settings.items():
                stack.enter_context(override(embed, key, value))
            yield


class EvaTower(TimmTower):
    """Rotary embedding, in most models, turns queries and keys by their tokens' places."""

    pass_class = PlacedPass

    def positions(self, block: Any, run: Any, kw: Any) -> Positions:
        """Sines and cosines; no angle for what a method appended."""
        rope = kw.get("rope")
        if rope is None:
            return {}
        if rope.dim() > 3:
            raise Unsupported("patch dropout beside rotary embedding cannot be reduced")
        return {"rope": run.rows(rope, self.prefix, (0.0, 1.0))}

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Also renew the angles where they are kept for one size of image."""
        rope, embed = self.model.rope, self.model.patch_embed
        with super().resize(size), contextlib.ExitStack() as stack:
            if isinstance(getattr(rope, "pos_embed", None), Tensor):
                patch = embed.feat_ratio(as_scalar=False)
                to = size(*embed.img_size, tuple(patch))
                smaller = copy.deepcopy(rope)
                smaller.update_feat_shape([n // p for n, p in zip(to, patch, strict=True)])
                angles = lambda shape=None: smaller.get_embed()  # noqa: E731
                stack.enter_context(override(rope, "get_embed", angles))
            yield


class BiasedTower(TimmTower):
    """Attention is biased by how its tokens lie to each other, in each block or in all alike."""

    pass_class = PlacedPass

    def positions(self, block: Any, run: Any, kw: Any) -> Positions:
        """The bias of the block, of those shared by all, or their sum."""
        shared = (value for name, value in kw.items() if name.startswith("shared_rel_pos"))
        biases = [bias for bias in (_bias(block.attn), *shared) if bias is not None]
        return {"bias": run.pairs(sum(biases[1:], biases[0]))} if biases else {}

    def on_places(self, block: Any) -> dict[str, int]:
        """The network that makes a bias of distances, one for each pair of rows and of columns."""
        table = getattr(getattr(block.attn, "rel_pos", None), "rel_coords_log", None)
        return {} if table is None else {"attn.rel_pos": table[..., 0].numel()}


def _bias(attn: Any) -> Tensor | None:
    """(1,H,N,N) what an attention module adds to its logits by places."""
    if getattr(attn, "rel_pos", None) is not None:
        return attn.rel_pos.get_bias()  # type: ignore[no-any-return]
    if getattr(attn, "relative_position_bias_table", None) is not None:
        return attn._get_rel_pos_bias()  # type: ignore[no-any-return]
    return None


TOWERS: dict[type[nn.Module], type[TimmTower]] = {
    VisionTransformer: TimmTower,
    Eva: EvaTower,
    Beit: BiasedTower,
    VisionTransformerRelPos: BiasedTower,
}


class TimmVitAdapter(Adapter):
    """timm's plain vision transformers, which timm and others subclass."""

    supports = (
        "timm VisionTransformer (ViT, DeiT, DINOv2, AugReg, SigLIP and CLIP image towers)",
        "timm Eva (EVA, EVA-02, DINOv3, Perception Encoder, RoPE-ViT)",
        "timm Beit and VisionTransformerRelPos",
    )

    def matches(self, model: nn.Module) -> bool:
        """Whether it is one of timm's classes or a subclass of one."""
        return isinstance(model, tuple(TOWERS))

    def towers(self, model: Any) -> dict[str, Tower]:
        """The one vision tower.

        Raises:
            Unsupported: the blocks are of a kind that is not split here.
        """
        kind = next(tower for cls, tower in TOWERS.items() if isinstance(model, cls))
        return {"vision": kind(model)}
