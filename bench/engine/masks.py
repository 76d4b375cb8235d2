"""What is added to attention logits: causal masks, padding, and the sizes of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHANNEL_PAD = 8  # flash kernels want head widths in steps of 8


def channel_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """SDPA with a per-key bias (B,1,1,N) carried as an extra channel instead of a mask.

    On a GPU a mask would knock fused attention off its flash kernel. The channel is exact:
    `scale * (q.k + (1 / scale) * bias)`.
    """
    D = q.shape[-1]
    q = F.pad(F.pad(q, (0, 1), value=1 / scale), (0, _CHANNEL_PAD - 1))
    column = bias.transpose(-2, -1).expand(*k.shape[:3], 1)
    k = F.pad(torch.cat([k, column], -1), (0, _CHANNEL_PAD - 1))
    v = F.pad(v, (0, _CHANNEL_PAD))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :D]


def triangle(like: Tensor, n: int) -> Tensor:
    """(1,1,n,n) to add to the logits: no token sees a later one."""
    return like.new_full((n, n), float("-inf")).triu(1)[None, None]


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two biases, of which either may be absent."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as it is added to logits: what a boolean one hides gets -inf."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def weighted(mask: Tensor | None, weight_BM: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask that hides keys, with what is added to the logits of each, where there is that."""
    if weight_BM is None:
        return mask
    return both(additive(mask, dtype), weight_BM[:, None, None].to(dtype))


def visible(mask: Any) -> Tensor:
    """(B,1,N,N) attention mask -> (B,N) 1.0 where the last query may see the key."""
    last: Tensor = mask[:, 0, -1]
    return (last if last.dtype == torch.bool else last == 0).float()
