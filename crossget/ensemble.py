"""Cross-guided ensemble (CrossGET, §3.3): the more important token of a pair weighs more."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_weights(importance_BN: Tensor, src_BR: Tensor, dst_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Twice the softmax of a pair's importances, so that equal tokens weigh 1 each.

    Args:
        importance_BN: importance of every token.
        src_BR: positions of the sources.
        dst_BR: positions of their destinations.

    Returns:
        (B,R) weights of the sources and of the destinations.
    """
    pair_2BR = torch.stack([src_BR, dst_BR])
    source, destination = 2 * importance_BN.expand(2, -1, -1).gather(2, pair_2BR).softmax(0)
    return source, destination
