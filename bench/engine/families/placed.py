"""Passes through blocks that are told where each token is: rotary embedding, biases by distance.

A token that stays keeps its place, also where others merged into it; one that a method made of
several takes the place of its heaviest input (see `places`); one that a method appended has none.

Shape suffixes: B batch, H heads, N tokens at first, M tokens that remain, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.engine.families.attended import places
from bench.engine.forward import Pass

if TYPE_CHECKING:
    from bench.core import Plan


class PlacedPass(Pass):
    """A pass that knows the place of every token.

    Attributes:
        place: (B,M) place of each token in the sequence that the first block got; those of tokens
            that a method appended follow behind it.
    """

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Start a sequence: every token is at its own place."""
        x = super().begin(x, mask)
        self.place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return x

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        super()._follow(plan, n, layer)
        self.place = places(plan, self.place)

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        return mask if mask is None else self.pairs(mask)

    def rows(self, table: Tensor, first: int, neutral: Sequence[float]) -> Tensor:
        """A table by places at the present tokens; the table itself while these are all.

        Args:
            table: (N-first,D) or (H,N-first,D).
            first: tokens in front that it has no rows for.
            neutral: what an appended token gets, a number for each of so many equal parts of D.

        Returns:
            (B,1,M-first,D) or (B,H,M-first,D).
        """
        if not self.changed:
            return table
        if self.appends:
            parts = zip(table.chunk(len(neutral), -1), neutral, strict=True)
            behind = (0, 0, 0, self.appends)
            table = torch.cat([F.pad(part, behind, value=value) for part, value in parts], -1)
        place = self.place[:, first:] - first
        at: Tensor = table.index_select(-2, place.flatten()).unflatten(-2, place.shape)
        return at[:, None] if table.dim() == 2 else at.transpose(0, 1)

    def pairs(self, bias: Tensor) -> Tensor:
        """What is added to logits by pairs of places, at the present tokens (B,H,M,M).

        It changes nothing where one of the two was appended. `bias` is (H,N,N), (1,H,N,N) or
        (B,H,N,N), or a mask of such a shape (True where a key is seen).
        """
        if not self.changed:
            return bias
        bias = bias[(None,) * (4 - bias.dim())]
        if self.appends:
            behind, neutral = (0, self.appends, 0, self.appends), bias.dtype == torch.bool
            bias = F.pad(bias, behind, value=neutral)
        rows = bias.take_along_dim(self.place[:, None, :, None], 2)
        return rows.take_along_dim(self.place[:, None, None, :], 3)
