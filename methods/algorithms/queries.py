"""PatchMerger's sums of tokens, weighed by queries.

Shapes: B batch, N tokens, M queries, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Site


def new_queries(count: int, width: int, seed: int, device: torch.device | None = None) -> Tensor:
    """Untrained queries (M,C), whose logits have a deviation of about 1; hashed, so compilable."""
    n = torch.arange(1, count * width + 1, device=device).view(count, width) + seed * 7919
    n = n * 2654435761 % 2**31
    n = (n ^ (n >> 15)) * 1103515245 % 2**31
    return (n / 2**30 - 1) * math.sqrt(3 / width)


def query_weights(site: Site, queries_MC: Tensor) -> tuple[Tensor, Tensor]:
    """(B,M,N) weights of the tokens in each query's sum, and (B,M,1) sizes of the sums.

    Each token's size is shared out in proportion to its weights; protected tokens stay out.
    """
    out_BN = site.protect | (site.size[..., 0] == 0)
    normed_BNC = F.layer_norm(site.x, site.x.shape[-1:])
    logits_BMN = (queries_MC.to(site.x) @ normed_BNC.transpose(1, 2)).float()
    log_BMN = logits_BMN.masked_fill(out_BN[:, None], -torch.inf).log_softmax(-1)
    share_BMN = log_BMN.detach().clamp_min(-1e4).softmax(1)
    mass_BN1 = site.size.masked_fill(out_BN[..., None], 0.0)
    return log_BMN.exp(), share_BMN.to(mass_BN1) @ mass_BN1
