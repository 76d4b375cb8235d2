"""What a method answers, and how it is applied.

Shape suffixes: B batch, N tokens in, M tokens kept, R tokens merged away, E tokens appended,
C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.core.observe import OBSERVERS
from bench.core.tensors import add_rows, take


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

    def apply(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B,N,C) and sizes (B,N,1) -> (B,M+E,C) and (B,M+E,1).

        Observers are told the price of the merge, which does not depend on how it is written.
        """
        for observer in OBSERVERS:
            observer.enter("merge")
        merged = self._applied(x, size)
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

    def _applied(self, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        keep = self.keep.clamp(min=0) if self.padded else self.keep
        out, new = take(x, keep), take(size, keep)
        if self.padded:
            filled = (self.keep >= 0)[..., None]
            out, new = out * filled.to(x.dtype), new * filled.to(size.dtype)
        if self.mix is not None:
            out = out * self.mix[0][..., None].to(x.dtype)
        if self.src is not None and self.dst is not None:
            out, new = self._merge(x, size, out, new)
        if self.extra is not None:
            out = torch.cat([out, self.extra.to(x.dtype) @ x], 1)
            stands_for = (self.extra != 0).to(size.dtype) @ size
            new = torch.cat([new, stands_for], 1)
        return out, new if self.size is None else self.size.to(size.dtype)

    def _merge(self, x: Tensor, size: Tensor, out: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = self.src, self.dst
        assert src is not None and dst is not None
        moved = take(size, src)
        new = add_rows(kept.clone(), dst, moved)
        if self.mix is not None:
            assert self.mix[1] is not None
            return add_rows(out, dst, take(x, src) * self.mix[1][..., None].to(x.dtype)), new
        weight_src, weight_dst = moved, kept
        if self.gain is not None:
            g_src, g_dst = (g[..., None].to(size.dtype) for g in self.gain)
            weight_src = moved * g_src
            weight_dst = kept * add_rows(torch.ones_like(kept), dst, g_dst - 1)
        dtype = x.dtype
        out = out * weight_dst.to(dtype)
        out = add_rows(out, dst, take(x, src) * weight_src.to(dtype))
        # padding has size 0; a token made of padding alone stays zero instead of 0/0, whatever
        # the smallest number is (float16 rounds that of float32 to 0)
        tiny = max(torch.finfo(t).tiny for t in (dtype, new.dtype))
        return out / new.clamp_min(tiny).to(dtype), new

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
