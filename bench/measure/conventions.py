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


def two_products(tokens: float, sizes: Decoder) -> float:
    """MACs of a block as FastV counts them (arXiv:2403.06764, §3.3): 4nd² + 2n²d + 2ndm."""
    n, d, m = tokens, sizes.width, sizes.mlp
    return 4 * n * d * d + 2 * n * n * d + 2 * n * d * m


def three_products(tokens: float, sizes: Decoder) -> float:
    """MACs of a block with all three products of its gated MLP: 4nd² + 2n²d + 3ndm."""
    n, d, m = tokens, sizes.width, sizes.mlp
    return 4 * n * d * d + 2 * n * n * d + 3 * n * d * m


CONVENTIONS = {"two-product": two_products, "three-product": three_products}


def prompt_macs(tokens: Sequence[float], sizes: Decoder, convention: str) -> float:
    """MACs of a prompt, `tokens` being those of each block, by a convention's name."""
    return sum(CONVENTIONS[convention](n, sizes) for n in tokens)
