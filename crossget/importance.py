"""How much each token matters to the cross token (CrossGET, §3.1), in the two forms of the code."""

from __future__ import annotations

import torch
from torch import Tensor

from crossget.matching import cosine_similarity


def similarity_and_importance(key_BNC: Tensor, query_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs of keys, and of every key with the cross token's query (the CLIP code).

    The query is one more row beside the keys, so that one product has all cosines.

    Args:
        key_BNC: keys, heads side by side.
        query_BC: the query of the cross token (text: of the end-of-text token).

    Returns:
        (B,N,N) and (B,N), in float32.
    """
    cosine = cosine_similarity(torch.cat([key_BNC, query_BC[:, None]], 1))
    return cosine[:, :-1, :-1], cosine[:, -1, :-1]


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
