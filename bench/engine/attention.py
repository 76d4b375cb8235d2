"""What attention leaves for methods; attention modules that ask no interface, BLIP's and ViLT's.

Theirs are written out in eager operators, so there is no place to tap. Here their projections are
called and the products are theirs, operator for operator, so that a pass that has removed nothing
says bit for bit what the plain model says.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bench.core import Plan
from bench.core.tensors import take
from bench.engine.tower import Run


def attention_left(
    plan: Plan, qkv: tuple[Tensor, Tensor, Tensor], bias: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """A block's attention as a second method in that block sees it, after the first one's plan.

    A token that stays has its own q, k and v (B,H,N,D), also where others merged into it; one that
    was made of others has the sums of theirs, weighted as the token itself. The bias of a key that
    was made is the logarithm of its members' sum, and that of an empty slot is -inf.

    Args:
        plan: what was decided for N tokens; M+E are left.
        qkv: (B,H,N,D) each; queries may have more heads than keys and values.
        bias: what was added to the logits, broadcastable to (B,H,N,N), or None.
    """
    keep = plan.keep.clamp(min=0)

    def rows(x_BHND: Tensor) -> Tensor:
        flat = x_BHND.transpose(1, 2).flatten(2)
        kept = take(flat, keep)
        if plan.extra is not None:
            kept = torch.cat([kept, plan.extra.to(flat.dtype) @ flat], 1)
        return kept.view(*kept.shape[:2], x_BHND.shape[1], -1).transpose(1, 2)

    q, k, v = (rows(x) for x in qkv)
    if bias is None and not plan.padded:
        return (q, k, v), None
    B, N = len(keep), qkv[1].shape[2]
    bias = q.new_zeros(B, 1, 1, N) if bias is None else bias.expand(B, -1, -1, -1)
    if bias.shape[2] > 1:
        bias = rows(bias)
    columns = bias.take_along_dim(keep[:, None, None], 3)
    if plan.padded:
        columns = columns.masked_fill(plan.keep[:, None, None] < 0, -torch.inf)
    if plan.extra is not None:
        members = (plan.extra != 0)[:, None, None]  # (B,1,1,E,N)
        made = bias[:, :, :, None].masked_fill(~members, -torch.inf).logsumexp(-1)
        columns = torch.cat([columns, made], 3)
    return (q, k, v), columns


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
