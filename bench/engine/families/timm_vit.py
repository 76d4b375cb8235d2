"""Adapter for timm's `VisionTransformer` (ViT, DeiT, DINOv2, AugReg, CLIP image towers, ...)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.errors import Unsupported
from bench.engine.families import Adapter
from bench.engine.forward import Pass
from bench.engine.tower import Run, Tower, original, override, shrink


class TimmVitAdapter(Adapter):
    """timm's VisionTransformer, which timm and others subclass."""

    supports = ("timm VisionTransformer (ViT, DeiT, DINOv2, AugReg, SigLIP and CLIP image towers)",)

    def matches(self, model: nn.Module) -> bool:
        """Whether it is timm's class or a subclass of it."""
        return isinstance(model, VisionTransformer)

    def towers(self, model: Any) -> dict[str, Tower]:
        """The one vision tower.

        Raises:
            Unsupported: the blocks are of a kind that is not split here (parallel, RoPE, ...).
        """
        for i, block in enumerate(model.blocks):
            attn = getattr(block, "attn", None)
            if type(block) is not Block or not hasattr(attn, "qkv"):
                raise Unsupported(
                    f"block {i} is a {type(block).__name__} with {type(attn).__name__}; only "
                    "timm's plain pre-norm Block with fused-qkv Attention is supported"
                )
        return {"vision": TimmTower(model)}


class TimmTower(Tower):
    """The blocks of a timm VisionTransformer; sizes weight an average pooling at the end."""

    pass_class = Pass
    attn_parts = ("norm1", "attn", "ls1", "drop_path1")
    mlp_parts = ("norm2", "mlp", "ls2", "drop_path2")

    def __init__(self, model: Any) -> None:
        """Read the token layout off the model."""
        self.model = model
        self.name = "vision"
        self.blocks = model.blocks
        self.prefix = self.n_protected = model.num_prefix_tokens
        self.averages = model.global_pool not in ("", "token")

    @property
    def has_anchor(self) -> bool:
        """True with a class token."""
        return self.model.cls_token is not None

    def anchor(self, run: Run, x: Tensor) -> Tensor | None:
        """Position 0 of every sample."""
        return x.new_zeros(x.shape[0], dtype=torch.long) if self.has_anchor else None

    def grid(self, patches: int) -> tuple[int, int] | None:
        """The patch embedding's own grid, else a square one."""
        rows, columns = self.model.patch_embed.grid_size
        return (rows, columns) if rows * columns == patches else super().grid(patches)

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """norm1, attention with the run's size bias, LayerScale, residual add."""
        if mask is not None or kw.get("attn_mask") is not None or kw.get("is_causal"):
            raise Unsupported("masked attention in a timm ViT is not supported under reduction")
        y = _attention(block.attn, block.norm1(x), run)
        return x + block.drop_path1(block.ls1(y))  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Weight average pooling by the token sizes, so that a merged token counts for its own."""
        with override(self.model, "pool", partial(self._pool, run)):
            yield

    def _pool(self, run: Run, x: Tensor, pool_type: str | None = None) -> Tensor:
        model = self.model
        kind = model.global_pool if pool_type is None else pool_type
        if model.attn_pool is not None or kind not in ("avg", "avgmax"):
            return original(model, "pool")(x, pool_type)  # type: ignore[no-any-return]
        first = 0 if model.pool_include_prefix else model.num_prefix_tokens
        size = run.size[:, first:].to(x.dtype)
        mean = (x[:, first:] * size).sum(1) / size.sum(1)
        return mean if kind == "avg" else 0.5 * (x[:, first:].amax(1) + mean)

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Shrink the image in front of the patch embedding; timm resamples the position table."""
        embed = self.model.patch_embed
        forward = original(embed)

        def smaller(image: Tensor, *args: Any, **kw: Any) -> Tensor:
            to = size(*image.shape[-2:], tuple(embed.patch_size))
            return forward(shrink(image, to), *args, **kw)  # type: ignore[no-any-return]

        from timm.layers.format import Format

        settings = {"flatten": False, "output_fmt": Format.NHWC, "strict_img_size": False}
        with contextlib.ExitStack() as stack:
            stack.enter_context(override(embed, "forward", smaller))
            stack.enter_context(override(self.model, "dynamic_img_size", True))
            for key, value in settings.items():
                stack.enter_context(override(embed, key, value))
            yield


def _attention(attn: Any, x: Tensor, run: Run) -> Tensor:
    B, N, _ = x.shape
    gate = getattr(attn, "gate", None)
    qkv = attn.qkv(x).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    dropout = attn.attn_drop.p if attn.training else 0.0
    inner = partial(_sdpa, dropout=dropout) if attn.fused_attn else partial(_eager, attn=attn)
    y = run.attention(q, k, v, None, attn.scale, inner, fused=attn.fused_attn)
    y = y.transpose(1, 2).reshape(B, N, -1)
    norm = getattr(attn, "norm", None)
    y = y if norm is None else norm(y)
    if gate is not None:
        y = y * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y))  # type: ignore[no-any-return]


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, attn: Any) -> Tensor:
    logits = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + mask
    return attn.attn_drop(logits.softmax(-1)) @ v  # type: ignore[no-any-return]
