"""What papers count for a language model's prompt, from the tokens in each block.

Papers differ from one another, and from what runs: a gated MLP (SwiGLU) is three products, and many
count two. A figure is comparable under one convention only, so each has a name here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder's block: width d, MLP width m."""

    width: int
    mlp: int


# products of a block's MLP that are counted: FastV's two (arXiv:2403.06764, §3.3), or all three
CONVENTIONS = {"two-product": 2, "three-product": 3}


def prompt_macs(tokens: Sequence[float], sizes: Decoder, convention: str) -> float:
    """MACs of a prompt, `tokens` n being those of each block: 4nd² + 2n²d + 2ndm, or 3ndm."""
    d, mlp = sizes.width, CONVENTIONS[convention] * sizes.mlp
    return sum(4 * n * d * d + 2 * n * n * d + n * d * mlp for n in tokens)
