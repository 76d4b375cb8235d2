"""How much each token matters to the cross token (CrossGET, §3.1), in the two forms of the code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def importance_from_query(
    key_BNC: Tensor, query_BC: Tensor, length_BN: Tensor | None = None
) -> Tensor:
    """Cosine of every key with the cross token's query, over the whole width (the CLIP code).

    Args:
        key_BNC: keys, heads side by side.
        query_BC: the query of the cross token (text: of the end-of-text token).
        length_BN: lengths of the keys, where they are known already.

    Returns:
        (B,N), in float32.
    """
    key, query = key_BNC.float(), F.normalize(query_BC.float(), dim=-1)
    if length_BN is None:
        length_BN = torch.linalg.vector_norm(key, dim=-1).clamp_min(1e-12)
    # The query on the left: a product with a single column takes a CPU 14 times as long.
    return (query[:, None] @ key.transpose(1, 2))[:, 0] / length_BN


def importance_from_attention(attention_BNN: Tensor) -> Tensor:
    """Attention that a token receives (the LLaVA code); the cross token is the last one.

    Args:
        attention_BNN: probabilities, mean over heads; rows are queries, columns keys.

    Returns:
        (B,N): mean over the queries of all other tokens, plus what the cross token pays.
    """
    return attention_BNN[:, :-1].mean(1) + attention_BNN[:, -1]


def query_at(query_BHND: Tensor, at_B: Tensor) -> Tensor:
    """(B,H,N,D), (B,) -> (B,H*D): one token's query, heads side by side."""
    rows = torch.arange(len(at_B), device=at_B.device)
    return query_BHND[rows, :, at_B].flatten(1)
