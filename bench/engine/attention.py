"""Attention modules of transformers that ask no attention interface: BLIP's and ViLT's.

They are written out in eager operators, so there is no place to tap. Here their projections are
called and the products are theirs, operator for operator, so that a pass that has removed nothing
says bit for bit what the plain model says.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from bench.engine.tower import Run


def fused_projection(attn: Any, x: Tensor, run: Run) -> Tensor:
    """BLIP's image attention, with q, k and v from one layer. (B,N,C) -> (B,N,C)."""
    B, N, C = x.shape
    qkv = attn.qkv(x).reshape(B, N, 3, attn.num_heads, C // attn.num_heads).permute(2, 0, 3, 1, 4)

    def inner(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return _weigh(attn, (q @ k.transpose(-1, -2)) * scale, v, mask)

    out = run.attention(qkv[0], qkv[1], qkv[2], None, attn.scale, inner, fused=False)
    return attn.projection(out.transpose(1, 2).reshape(B, N, C))  # type: ignore[no-any-return]


def own_projections(attn: Any, x: Tensor, run: Run, mask: Tensor | None) -> Tensor:
    """BERT's self-attention without its output layer; BLIP's text and ViLT. (B,N,C) -> (B,N,C)."""
    root = math.sqrt(attn.attention_head_size)
    shape = (*x.shape[:2], -1, attn.attention_head_size)
    q, k, v = (getattr(attn, n)(x).view(shape).transpose(1, 2) for n in ("query", "key", "value"))

    def inner(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        # divided, not multiplied by 1 / root: the last bit differs
        return _weigh(attn, (q @ k.transpose(-1, -2)) / root, v, mask)

    out = run.attention(q, k, v, mask, 1 / root, inner, fused=False)
    return out.transpose(1, 2).reshape(x.shape)


def _weigh(attn: Any, logits: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        logits = logits + mask
    return attn.dropout(logits.softmax(-1)) @ v  # type: ignore[no-any-return]
