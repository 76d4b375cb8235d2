"""What a method answers, and how it is applied.

Shape suffixes: B batch, N tokens in, M tokens kept, R tokens merged away, E tokens appended,
C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.core.observe import OBSERVERS
from bench.core.tensors import added_rows, row_numbers, take_rows


@dataclass(frozen=True)
class Plan:
    """What a method answers: which tokens stay, which merge into which, with what weight.

    With sizes s and gains (g_src, g_dst), by default 1, an output token is
    `(s_d (1 + sum(g_dst - 1)) x_d + sum s_i g_src_i x_i) / (s_d + sum s_i)`,
    and with `mix` (w_keep, w_src) it is `w_keep_d x_d + sum w_src_i x_i`.

    Attributes:
        keep: (B,M) indices into N, in output order; -1 leaves a slot empty (size 0, never seen),
            or, where `size` gives it one, fills it with zeros.
        padded: `keep` may have empty slots.
        src: (B,R) indices into N, merged away; None for a pruner.
        dst: (B,R) indices into M, where each source goes.
        gain: (B,R) weights on the source and on its destination, once a source.
        mix: (B,M) and (B,R) weights of kept and merged tokens, in place of the weighted mean.
        extra: (B,E,N) weights of tokens made of input tokens, appended after the kept ones.
        soft: `extra` makes one token part of several; else each is part of at most one.
        members: how many tokens `extra` is made of, where it is not soft; None for all that are
            neither kept nor merged.
        size: (B,M+E,1) sizes afterwards, where they are not the sums over what was merged.
        grid: (rows, columns) when the kept patches form a grid again.
    """

    keep: Tensor
    src: Tensor | None = None
    dst: Tensor | None = None
    gain: tuple[Tensor, Tensor] | None = None
    mix: tuple[Tensor, Tensor | None] | None = None
    extra: Tensor | None = None
    size: Tensor | None = None
    grid: tuple[int, int] | None = None
    padded: bool = False
    soft: bool = False
    members: int | None = None

    def apply(self, x: Tensor, size: Tensor, vacant: bool = True) -> tuple[Tensor, Tensor]:
        """Tokens (B,N,C) and sizes (B,N,1) -> (B,M+E,C) and (B,M+E,1).

        Observers are told the price of the merge, which does not depend on how it is written.

        Args:
            x: tokens.
            size: how many input tokens each stands for.
            vacant: some sizes may be 0, those of padding or of empty slots.
        """
        for observer in OBSERVERS:
            observer.enter("merge")
        merged = self._applied(x, size, vacant or self.padded)
        for observer in OBSERVERS:
            observer.exit("merge")
            observer.merged(self.macs(x))
        return merged

    def macs(self, x: Tensor) -> int:
        """The price of the merge by convention, for tokens (B,N,C), in multiply-accumulates.

        One a channel for each token that disappears into another; a soft assignment is the matrix
        product of its weights and the tokens. It follows from shapes, so that no value is needed.
        """
        B, N, C = x.shape
        gone = 0 if self.src is None else self.src.shape[1]
        if self.extra is not None:
            made = self.extra.shape[1]
            if self.soft:
                return B * (gone + made * N) * C
            free = N - self.keep.shape[1] - gone
            gone += max((free if self.members is None else self.members) - made, 0)
        return B * gone * C

    def _applied(self, x: Tensor, size: Tensor, vacant: bool) -> tuple[Tensor, Tensor]:
        keep = row_numbers(self.keep.clamp(min=0) if self.padded else self.keep, x.shape[1])
        new = self._kept(size, keep)
        if self.src is not None and self.dst is not None:
            out, new = self._merged(x, size, keep, new, vacant)
        else:
            out = self._kept(x, keep)
            if self.mix is not None:
                out = out * self.mix[0][..., None].to(x.dtype)
        if self.extra is not None:
            out = torch.cat([out, self.extra.to(x.dtype) @ x], 1)
            if self.size is None:
                stands_for = (self.extra != 0).to(size.dtype) @ size
                new = torch.cat([new, stands_for], 1)
        return out, new if self.size is None else self.size.to(size.dtype)

    def _kept(self, x: Tensor, keep: Tensor) -> Tensor:
        """(B,N,C) -> (B,M,C), empty slots zero."""
        out = take_rows(x, keep)
        return out * (self.keep >= 0)[..., None].to(x.dtype) if self.padded else out

    def _merged(
        self, x: Tensor, size: Tensor, keep: Tensor, kept: Tensor, vacant: bool
    ) -> tuple[Tensor, Tensor]:
        """Tokens and sizes after the merge, of which `kept` (B,M,1) are the sizes before."""
        assert self.src is not None and self.dst is not None
        src, dst = row_numbers(self.src, x.shape[1]), row_numbers(self.dst, kept.shape[1])
        moved = take_rows(size, src)
        if self.mix is not None:
            w_keep, w_src = self.mix
            assert w_src is not None
            out = self._sum(x, keep, src, dst, (w_keep[..., None], w_src[..., None]))
            return out, kept if self.size is not None else added_rows(kept, dst, moved)
        if self.gain is None:
            out = self._sum(x * size.to(x.dtype), keep, src, dst)
        else:
            g_src, g_dst = (g[..., None].to(size.dtype) for g in self.gain)
            grown = added_rows(torch.ones_like(kept), dst, g_dst - 1)
            out = self._sum(x, keep, src, dst, (kept * grown, moved * g_src))
        new = added_rows(kept, dst, moved)
        if not vacant:
            return out.div_(new.to(x.dtype)), new
        # padding has size 0; a token made of padding alone stays zero instead of 0/0, whatever
        # the smallest number is (float16 rounds that of float32 to 0)
        tiny = max(torch.finfo(t).tiny for t in (x.dtype, new.dtype))
        return out.div_(new.clamp_min(tiny).to(x.dtype)), new

    def _sum(
        self,
        x: Tensor,
        keep: Tensor,
        src: Tensor,
        dst: Tensor,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B,M,C): what is kept, plus what goes to it, each with its weight (B,M,1), (B,R,1)."""
        out, added = self._kept(x, keep), take_rows(x, src)
        if weights is not None:
            out, added = (t.mul_(w.to(x.dtype)) for t, w in zip((out, added), weights, strict=True))
        out.flatten(0, 1).index_add_(0, dst, added.flatten(0, 1))
        return out

    def slots(self, n: int) -> Tensor:
        """(B,N) output slot of each input token; -1 where it was dropped.

        An appended token is the slot of the dropped tokens it is made of.
        """
        B, M = self.keep.shape
        slot = self.keep.new_full((B, n), -1)
        if self.extra is not None:
            member = (self.extra != 0).any(1)
            slot = torch.where(member, M + self.extra.abs().argmax(1), slot)
        number = torch.arange(M, device=slot.device).expand(B, M)
        if self.padded:  # an empty slot has no token: it writes into a column that is cut off
            slot = torch.cat([slot, slot[:, :1]], 1)
            slot = slot.scatter(1, torch.where(self.keep < 0, n, self.keep), number)[:, :n]
        else:
            slot = slot.scatter(1, self.keep, number)
        if self.src is not None and self.dst is not None:
            slot = slot.scatter(1, self.src, self.dst)
        return slot

    def reorder(self, key_BM: Tensor) -> Plan:
        """The same plan with the kept tokens in ascending, stable order of `key`."""
        order = key_BM.argsort(dim=1, stable=True)
        dst, mix, size = self.dst, self.mix, self.size
        if dst is not None:
            dst = order.argsort(1).gather(1, dst)
        if mix is not None:
            mix = (mix[0].gather(1, order), mix[1])
        if size is not None:
            M = order.shape[1]
            size = torch.cat([size[:, :M].gather(1, order[..., None]), size[:, M:]], 1)
        return replace(self, keep=self.keep.gather(1, order), dst=dst, mix=mix, size=size)
