"""Attention within the windows of an image (Qwen2.5-VL), of the tokens that remain in each.

A model puts whole groups of patches into windows and the windows after each other. A token stays in
the window of its place; what a method appended is in none, sees all tokens and is seen by all.

Shape suffixes: N patches of an image, M tokens that remain, G groups, H heads, D channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Windows:
    """How an image's groups lie in windows.

    Attributes:
        shape: rows and columns of groups.
        side: groups along a side of a window; fewer at the image's lower and right edges.
        each: patches of a group.
    """

    shape: tuple[int, int]
    side: int
    each: int

    @property
    def lengths(self) -> list[int]:
        """Patches of each window."""
        rows, columns = (
            [min(self.side, n - first) for first in range(0, n, self.side)] for n in self.shape
        )
        return [h * w * self.each for h in rows for w in columns]

    def _number(self, device: torch.device) -> Tensor:
        """(G,) window of each group, groups counted from left to right, then downwards."""
        row, column = (torch.arange(n, device=device) // self.side for n in self.shape)
        across = -(-self.shape[1] // self.side)
        return (row[:, None] * across + column).flatten()

    def order(self, device: torch.device) -> Tensor:
        """(G,) the group at each place of the sequence."""
        return self._number(device).argsort(stable=True)

    def of_patches(self, device: torch.device, appended: int = 0) -> Tensor:
        """(N+appended,) window of each patch of the sequence; -1 of what a method appended."""
        number = self._number(device).sort().values.repeat_interleave(self.each)
        return torch.cat([number, number.new_full((appended,), -1)])

    def remaining(self, window_M: Tensor, appended: int) -> list[int]:
        """How many tokens are left in each window.

        Without values nobody knows; then all windows lose their share.
        """
        lengths, left = self.lengths, window_M.shape[0] - appended
        if window_M.is_meta:
            patches = sum(lengths)
            ends = [round(sum(lengths[: i + 1]) * left / patches) for i in range(len(lengths))]
            return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        window = torch.arange(len(lengths), device=window_M.device)
        counts: list[int] = (window_M[:, None] == window).sum(0).tolist()  # waits for a GPU
        return counts


@dataclass(frozen=True)
class Partition:
    """The tokens of an image in windows.

    Attributes:
        lengths: tokens of each window.
        order: (M,) token at each place once they are in windows, appended ones last; None where
            they are.
        appended: tokens that belong to no window.
    """

    lengths: Sequence[int]
    order: Tensor | None
    appended: int

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Queries and keys of each product of the attention."""
        seen, appended = sum(self.lengths) + self.appended, self.appended
        pairs = [(n, n + appended) for n in self.lengths if n]
        return [*pairs, (appended, seen)] if appended else pairs

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, attend: Attend
    ) -> Tensor:
        """Attention (1,H,M,D), window by window; `bias` (1,1,1,M) is added to the logits."""
        if self.order is not None:
            q, k, v = (t[:, :, self.order] for t in (q, k, v))
            bias = None if bias is None else bias[..., self.order]
        biases = [None] * (len(self.lengths) + 1) if bias is None else self._split(bias, 3)
        pieces = zip(*(self._split(t, 2) for t in (q, k, v)), biases, strict=True)
        *windows, last = pieces
        out = [self._one(window, last, attend) for window in windows if window[0].shape[2]]
        if self.appended:
            out.append(attend(last[0], k, v, bias))
        whole = torch.cat(out, 2)
        return whole if self.order is None else whole[:, :, self.order.argsort()]

    def _split(self, x: Tensor, dim: int) -> Sequence[Tensor]:
        return torch.split(x, [*self.lengths, self.appended], dim)

    def _one(self, window: Sequence[Tensor], last: Sequence[Tensor], attend: Attend) -> Tensor:
        """One window's queries, with its keys and those of what was appended."""
        q, k, v, bias = window
        if self.appended:
            k, v = (torch.cat([a, b], 2) for a, b in zip((k, v), last[1:3], strict=True))
            bias = None if bias is None else torch.cat([bias, last[3]], 3)
        return attend(q, k, v, bias)
