"""How the blocks of timm's plain vision transformers are split, and their attention.

Attention is written out here, in the steps of timm's own modules, since they offer no place to tap:
projections, norms of queries and keys, rotary embedding, then `Run.attention`, then what follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.errors import Unsupported
from bench.engine.tower import Run

ATTENTION = ("Attention", "AttentionRope", "EvaAttention", "RelPosAttention")  # of timm, by name
Positions = Mapping[str, Tensor]  # arguments of `heads` and `weighed`: see there


class Split(ABC):
    """How a kind of block is taken apart ahead of its MLP.

    `attend` and `feed`, and the parts, are those of `Tower`.
    """

    attn_parts: tuple[str, ...]
    mlp_parts: tuple[str, ...] = ()

    def attentions(self, block: Any) -> Sequence[Any]:
        """The modules that compute attention."""
        return [getattr(block, "attn", None)]

    def of(self, block: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the parts of the two halves that this block has."""
        return self.attn_parts, self.mlp_parts

    @abstractmethod
    def attend(self, block: Any, x: Tensor, run: Run, positions: Positions) -> Tensor:
        """First half: (B,N,C) -> (B,N,C)."""

    @abstractmethod
    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Second half: (B,N,C) -> (B,N,C)."""


class Branches(Split):
    """Attention, then the MLP, each on a residual branch of its own.

    Right behind either stands a gain for each channel, where the block has one (EVA, BEiT).
    """

    def __init__(self, attn_parts: tuple[str, ...], mlp_parts: tuple[str, ...]) -> None:
        """Keep the names of what the branches apply in turn."""
        self.attn_parts, self.mlp_parts = attn_parts, mlp_parts

    def attend(self, block: Any, x: Tensor, run: Run, positions: Positions) -> Tensor:
        """The attention branch, residual add."""
        y = x
        for name in self.attn_parts:
            if name == "attn":
                y = gained(block, "gamma_1", attention(block.attn, y, run, positions))
            else:
                y = getattr(block, name)(y)
        return x + y

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The MLP branch, residual add."""
        y = x
        for name in self.mlp_parts:
            y = getattr(block, name)(y)
            y = gained(block, "gamma_2", y) if name == "mlp" else y
        return x + y


class Parallel(Split):
    """Attention and MLP side by side on one branch: what a method decides acts on the next block.

    Source: ViT-22B (Dehghani et al. 2023).
    """

    attn_parts = ("in_norm", "in_proj", "q_norm", "k_norm")
    outputs = ("out_proj", "attn_out_proj", "mlp_out_proj")

    def attentions(self, block: Any) -> Sequence[Any]:
        """None: the block itself computes it."""
        return []

    def of(self, block: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """One output projection, or one for each of the two."""
        outputs = tuple(name for name in self.outputs if getattr(block, name) is not None)
        return (*self.attn_parts, *outputs, "ls", "drop_path"), ()

    def attend(self, block: Any, x: Tensor, run: Run, positions: Positions) -> Tensor:
        """The block."""
        mlp, *qkv = block.in_proj(block.in_norm(x)).split(block.in_split, dim=-1)
        if block.mlp_bias is not None:
            mlp = mlp + block.mlp_bias
        q, k, v = (part.view(*x.shape[:2], block.num_heads, block.head_dim) for part in qkv)
        q, k, v = (part.transpose(1, 2) for part in (block.q_norm(q), block.k_norm(k), v))
        y = weighed(block, run, q, k, v, positions).transpose(1, 2).reshape(x.shape)
        mlp = block.mlp_drop(block.mlp_act(mlp))
        if block.out_proj is not None:
            y = block.out_proj(torch.cat((y, mlp), dim=-1))
        else:
            y = block.attn_out_proj(y) + block.mlp_out_proj(mlp)
        return x + block.drop_path(block.ls(y))  # type: ignore[no-any-return]

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Nothing is left of the block."""
        return x


class Twins(Split):
    """Several attentions side by side, then as many MLPs; methods see the heads of all.

    Source: Three things everyone should know about Vision Transformers (Touvron et al. 2022).
    """

    attn_parts, mlp_parts = ("attns",), ("ffns",)

    def attentions(self, block: Any) -> Sequence[Any]:
        """One of each branch."""
        return [branch.attn for branch in block.attns]

    def attend(self, block: Any, x: Tensor, run: Run, positions: Positions) -> Tensor:
        """All attentions at once, residual add."""
        tokens = [branch.norm(x) for branch in block.attns]
        attns = self.attentions(block)
        each = [heads(attn, y, positions) for attn, y in zip(attns, tokens, strict=True)]
        q, k, v = (torch.cat(parts, 1) for parts in zip(*each, strict=True))
        out = weighed(attns[0], run, q, k, v, positions).chunk(len(attns), 1)
        y = [joined(*parts) for parts in zip(attns, tokens, out, strict=True)]
        y = [b.drop_path(b.ls(part)) for b, part in zip(block.attns, y, strict=True)]
        return x + torch.stack(y).sum(0)

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """All MLPs, residual add."""
        return x + torch.stack([branch(x) for branch in block.ffns]).sum(0)


_PRE = Branches(("norm1", "attn", "ls1", "drop_path1"), ("norm2", "mlp", "ls2", "drop_path2"))
_PRE_GAINED = Branches(("norm1", "attn", "drop_path1"), ("norm2", "mlp", "drop_path2"))
_POST = Branches(("attn", "norm1", "drop_path1"), ("mlp", "norm2", "drop_path2"))
SPLITS: dict[type[nn.Module], Split] = {
    vision_transformer.Block: _PRE,
    vision_transformer.ResPostBlock: _POST,
    vision_transformer.ParallelScalingBlock: Parallel(),
    vision_transformer.ParallelThingsBlock: Twins(),
    vision_transformer_relpos.RelPosBlock: _PRE,
    vision_transformer_relpos.ResPostRelPosBlock: _POST,
    eva.EvaBlock: _PRE_GAINED,
    eva.EvaBlockPostNorm: _POST,
    beit.Block: _PRE_GAINED,
}


def split_of(blocks: Sequence[Any]) -> Split:
    """How all of these blocks are taken apart.

    Raises:
        Unsupported: a block is of a kind that is not known here, or not of that of the first.
    """
    for i, block in enumerate(blocks):
        split = SPLITS.get(type(block))
        if split is None or type(block) is not type(blocks[0]):
            raise Unsupported(f"block {i} is a {type(block).__name__}, which is not split here")
        for attn in split.attentions(block):
            kind = type(attn)
            if kind.__name__ not in ATTENTION or not kind.__module__.startswith("timm."):
                raise Unsupported(f"block {i} has {kind.__name__}, which cannot be tapped here")
    return SPLITS[type(blocks[0])]


def gained(block: Any, name: str, y: Tensor) -> Tensor:
    """Tokens (B,N,C) times a block's gain of this name, where it has one."""
    gain = getattr(block, name, None)
    return y if gain is None else gain * y


def attention(attn: Any, x: Tensor, run: Run, positions: Positions) -> Tensor:
    """An attention module with the run's sizes in it. (B,N,C) -> (B,N,C)."""
    out = weighed(attn, run, *heads(attn, x, positions), positions)
    return joined(attn, x, out)


def heads(attn: Any, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B,H,N,D) of tokens (B,N,C).

    `positions` may hold `rope`, (P,2D) or (B,H,P,2D) sines and cosines of the last P tokens.
    """
    B, N, _ = x.shape
    if attn.qkv is not None:
        q, k, v = _fused(attn, x).reshape(B, N, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    else:
        layers = attn.q_proj, attn.k_proj, attn.v_proj
        width = layers[0].out_features // attn.num_heads
        q, k, v = (layer(x).reshape(B, N, -1, width).transpose(1, 2) for layer in layers)
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    rope = positions.get("rope")
    if rope is not None:
        half = {"half": True} if getattr(attn, "rotate_half", False) else {}
        q, k = (_rotated(t, attn.num_prefix_tokens, rope, half).type_as(v) for t in (q, k))
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # keys and values of several heads
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    return q, k, v


def _fused(attn: Any, x: Tensor) -> Tensor:
    """(B,N,3HD) of one layer, whose bias may lack that of the keys (EVA, BEiT)."""
    if getattr(attn, "q_bias", None) is None:
        return attn.qkv(x)  # type: ignore[no-any-return]
    bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    if getattr(attn, "qkv_bias_separate", False):
        return attn.qkv(x) + bias  # type: ignore[no-any-return]
    return F.linear(x, attn.qkv.weight, bias)


def _rotated(t: Tensor, first: int, rope: Tensor, half: Mapping[str, bool]) -> Tensor:
    turned = apply_rot_embed_cat(t[:, :, first:], rope, **half)
    return torch.cat([t[:, :, :first], turned], dim=2)


def weighed(attn: Any, run: Run, q: Tensor, k: Tensor, v: Tensor, positions: Positions) -> Tensor:
    """Attention (B,H,N,D), fused or not as the module was built.

    `positions` may hold `bias`, (B,H,N,N) to add to the logits.
    """
    inner: Callable[..., Tensor] = partial(_eager, drop=attn.attn_drop)
    if attn.fused_attn:
        inner = partial(_sdpa, dropout=attn.attn_drop.p if attn.training else 0.0)
    bias = positions.get("bias")
    return run.attention(q, k, v, bias, attn.scale, inner, fused=attn.fused_attn)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)


def _eager(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, drop: nn.Module
) -> Tensor:
    logits = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + mask
    return drop(logits.softmax(-1)) @ v  # type: ignore[no-any-return]


def joined(attn: Any, x: Tensor, out: Tensor) -> Tensor:
    """Heads (B,H,N,D) -> tokens (B,N,C): norm, gate by the module's input `x`, projection."""
    y = out.transpose(1, 2).reshape(*x.shape[:2], -1)
    norm, gate = getattr(attn, "norm", None), getattr(attn, "gate", None)
    y = y if norm is None else norm(y)
    if gate is not None:
        y = y * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y))  # type: ignore[no-any-return]
