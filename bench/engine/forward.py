"""A reduced forward pass through one tower: sizes, protected tokens, positions, attention bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import Plan, Reducer, Schedule, Site, observe
from bench.core.errors import BenchError
from bench.core.tensors import take
from bench.engine.tower import Tower

_CHANNEL_PAD = 8  # flash kernels want head widths in steps of 8


@dataclass(frozen=True)
class Part:
    """A method at work in a tower, and how many tokens it removes where."""

    reducer: Reducer
    schedule: Schedule


class Pass:
    """The state of one tower during a forward pass: sizes, protected tokens, positions."""

    def __init__(self, tower: Tower, parts: Sequence[Part]) -> None:
        """Nothing is known about the input yet; `begin` sets the state at the first block.

        Raises:
            BenchError: two of the methods append tokens of their own.
        """
        self.tower, self.parts = tower, parts
        appending = [part.reducer for part in parts if part.reducer.appends]
        if len(appending) > 1:
            names = " and ".join(f"'{reducer.name}'" for reducer in appending)
            raise BenchError(f"{names} both append tokens of their own: one a tower is possible")
        self.guest = appending[0] if appending else None
        self.appends = self.guest.appends if self.guest else 0
        self.before = [part for part in parts if part.reducer.before]
        self.after = [part for part in parts if not part.reducer.before]
        self.adaptive = any(part.reducer.adaptive for part in parts)
        self.proportional = any(part.reducer.proportional for part in parts)
        self.depth = len(tower.blocks)
        self.input_ids: Tensor | None = None
        self.attention_path = "plain"
        self.changed = self.merged = self.padded = False  # who reads its tokens may come first
        self.layer = self.draw = 0
        self.upstream: Mapping[str, Pass] = {}  # the passes of the model's other towers
        self.qkv: tuple[Tensor, Tensor, Tensor] | None = None
        self.bias: Tensor | None = None
        self.scale: float | None = None

    def number_batch(self) -> None:
        """Note the number of the batch that begins; 0 unless batches are numbered."""
        self.draw = 0
        for counts in observe.DRAWS[-1:]:
            self.draw = counts.get(self, 0)
            counts[self] = self.draw + 1

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Start a sequence (B,N,C): sizes of 1, prefix and anchor protected, tokens appended."""
        self.number_batch()
        B, N, _ = x.shape
        tower, appends = self.tower, self.appends
        self.initial = N
        self.nominal = max(N - tower.n_protected, 0)  # removable tokens by the schedule's count
        self.padded = mask is not None and tower.masked
        self.changed = self.merged = self.reduced = False
        self.anchor = tower.anchor(self, x)
        self.grid = tower.grid(N - tower.prefix)
        self.size = torch.ones(B, N, 1, device=x.device)
        if self.padded:
            self.size = _visible(mask)[..., None]  # padding stands for nothing: it has size 0
            x = x * self.size.to(x.dtype)
            self.padded = not bool(self.size.all()) if not torch.compiler.is_compiling() else True
        position = torch.arange(N, device=x.device)
        self.protect = (position < tower.prefix).expand(B, N)
        if tower.name == "text" and self.anchor is not None:
            self.protect = self.protect | (position == self.anchor[:, None])
        self.slot: Tensor | None = position.expand(B, N)
        if self.guest:
            x = torch.cat([x, self.guest.append(x, self.anchor, tower.name)], 1)
            self.size = torch.cat([self.size, self.size.new_ones(B, appends, 1)], 1)
            self.protect = torch.cat([self.protect, self.protect.new_ones(B, appends)], 1)
            self.changed = True
        return x

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """One block: attend, reduce, feed. (B,N,C) -> (B,M,C)."""
        mask = kw.pop("attention_mask", args[0] if args else None)
        x = self.before_attention(layer, x, mask)
        n_in = x.shape[1]
        x = self.tower.attend(block, x, self, self._mask(mask, x), self._arguments(kw, x))
        x = self.after_attention(layer, x)
        x = self.feed(block, x)
        for observer in observe.OBSERVERS:
            observer.block(self.tower.name, layer, n_in, x.shape[1])
        return self._finish(x) if layer == self.depth - 1 else x

    def before_attention(self, layer: int, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What happens to a block's input: the sequence begins, methods act ahead of the block."""
        self.layer = layer
        if layer == 0:
            x = self.begin(x, mask)
        if self.guest:
            x = self.guest.refresh(x, self.anchor, layer, self.tower.name)
        for part in self.before:
            x = self._step(part, layer, x)
        return x

    def after_attention(self, layer: int, x: Tensor) -> Tensor:
        """What happens between a block's halves: methods act."""
        for part in self.after:
            x = self._step(part, layer, x)
        if not self.before:  # who reads it at the next block?
            self.qkv = self.bias = None  # not held while the MLP runs: it would raise the peak
        return x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """The second half of a block. (B,M,C) -> (B,M,C)."""
        return self.tower.feed(block, x)

    def _arguments(self, kw: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """What the model passes to its blocks beside tokens and mask, for the present tokens."""
        return kw

    def _step(self, part: Part, layer: int, x: Tensor) -> Tensor:
        """Reduce by as many tokens as the schedule says and the method can."""
        reducer = part.reducer
        initial = max(self.initial - self.tower.n_protected, 0)
        free = max(x.shape[1] - self.tower.n_protected - self.appends, 0)
        if not self.adaptive:
            self.nominal = free
        wanted = part.schedule(layer, self.depth, self.nominal, initial)
        r = reducer.feasible(wanted, self.nominal, self.grid) if wanted > 0 else 0
        r = min(r, self.nominal - self.tower.reads_patches)  # one stays
        if r <= 0:
            return x
        self.nominal -= r
        r = free - self.nominal
        return self._reduce(reducer, layer, x, r) if r > 0 or reducer.adaptive else x

    def _reduce(self, reducer: Reducer, layer: int, x: Tensor, r: int) -> Tensor:
        for observer in observe.OBSERVERS:
            observer.enter("reduction")
        n = x.shape[1]
        plan = self._ordered(reducer.plan(self._site(layer, x), r))
        x, self.size = plan.apply(x, self.size)
        self._follow(plan, n, layer)
        for observer in observe.OBSERVERS:
            observer.exit("reduction")
            observer.kept(self.size)
        return x

    def _site(self, layer: int, x: Tensor) -> Site:
        q, k, v = self.qkv or (x[:, None, :, :0],) * 3
        return Site(
            x,
            q,
            k,
            v,
            self.size,
            self.protect,
            layer,
            self.depth,
            n_protected=self.tower.n_protected + self.appends,
            tower=self.tower.name,
            scale=self.scale,
            bias=self.bias,
            anchor=self.anchor,
            prefix=self.tower.prefix,
            grid=self.grid,
            whole=not self.reduced,
            draw=self.draw,
        )

    def _ordered(self, plan: Plan) -> Plan:
        """Prefix tokens stay in front; where order means something, all survivors keep theirs."""
        order = plan.keep
        if plan.padded:  # empty slots stay at the end
            order = order.masked_fill(order < 0, torch.iinfo(order.dtype).max)
        if self.tower.ordered:
            return plan.reorder(order)
        return plan.reorder(order.clamp(max=self.tower.prefix)) if self.tower.prefix > 1 else plan

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        """Carry protection, anchor, grid and (where someone reads them) positions along."""
        self.changed = self.reduced = True
        self.grid = plan.grid
        self.merged = self.merged or plan.src is not None or plan.size is not None
        self.padded = self.padded or plan.padded
        self.protect = self.protect.gather(1, plan.keep.clamp(min=0))
        if plan.padded:
            self.protect = self.protect & (plan.keep >= 0)
        if plan.extra is not None:
            new = self.protect.new_zeros(self.protect.shape[0], plan.extra.shape[1])
            self.protect = torch.cat([self.protect, new], 1)
        watchers = [o for o in observe.OBSERVERS if hasattr(o, "slots")]
        if not (watchers or self.tower.restores):
            return
        slots = plan.slots(n)
        for observer in watchers:
            observer.slots(self.tower.name, layer, slots, self.size, plan.soft)
        assert self.slot is not None
        self.slot = torch.where(self.slot < 0, -1, slots.gather(1, self.slot.clamp(min=0)))
        if self.anchor is not None:
            self.anchor = slots.gather(1, self.anchor[:, None])[:, 0]

    def _finish(self, x: Tensor) -> Tensor:
        """Appended tokens leave the sequence after the last block."""
        if self.appends:
            x, self.size = self._without_appended(x), self._without_appended(self.size)
        return x

    def _without_appended(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] - self.appends]

    def restore(self, x: Tensor) -> Tensor:
        """(B,M,C) -> (B,N,C): every input position shows the token that stands for it.

        Dropped positions show the size-weighted mean of the patches, so that a plain mean over
        positions is the size-weighted mean over survivors.
        """
        assert self.slot is not None
        size = self.size[:, self.tower.prefix :].to(x.dtype)
        mean = (x[:, self.tower.prefix :] * size).sum(1, keepdim=True) / size.sum(1, keepdim=True)
        index = torch.where(self.slot < 0, x.shape[1], self.slot)
        return take(torch.cat([x, mean], 1), index)

    # --- attention -----------------------------------------------------------------------------

    def size_bias(self, dtype: torch.dtype) -> Tensor | None:
        """(B,1,1,N) to add to the logits: log size (proportional attention), -inf on padding."""
        if not (self.padded or (self.merged and self.proportional)):
            return None
        size = self.size if self.proportional else (self.size > 0).float()
        return size.log().to(dtype).transpose(1, 2)[:, None]

    def _mask(self, given: Tensor | None, x: Tensor) -> Tensor | None:
        """The causal mask of the present length; the model's own while nothing has changed."""
        if not self.changed or not self.tower.masked:
            return given
        return _triangle(x, x.shape[1]) if self.tower.causal else None

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        inner: Callable[..., Tensor],
        fused: bool,
    ) -> Tensor:
        """The tower's attention with the size bias in it; notes q, k, v for the method.

        On a GPU a mask would knock fused attention off its flash kernel; there the bias travels as
        one more channel of q and k, which is exact: `q.k + (1/scale) * (log size)`, scaled.
        """
        self.qkv, self.scale = (q, k, v), scale
        bias = self.size_bias(q.dtype) if self.changed else None
        self.bias = _sum(additive(mask, q.dtype), bias)
        if mask is None and self.tower.causal:  # the kernel masks by itself; methods must see it
            self.bias = _sum(_triangle(q, q.shape[2]), bias)
        if bias is None:
            return inner(q, k, v, mask, scale)
        if fused and mask is None and (q.is_cuda or self.attention_path == "channel"):
            self.attention_path = "channel"
            return channel_attention(q, k, v, bias, scale)
        self.attention_path = "mask"
        return inner(q, k, v, self.bias, scale)


def channel_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """SDPA with a per-key bias (B,1,1,N) carried as an extra channel instead of a mask."""
    D = q.shape[-1]
    q = F.pad(F.pad(q, (0, 1), value=1 / scale), (0, _CHANNEL_PAD - 1))
    column = bias.transpose(-2, -1).expand(*k.shape[:3], 1)
    k = F.pad(torch.cat([k, column], -1), (0, _CHANNEL_PAD - 1))
    v = F.pad(v, (0, _CHANNEL_PAD))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :D]


def _triangle(like: Tensor, n: int) -> Tensor:
    """(1,1,n,n) to add to the logits: nobody sees what comes later."""
    return like.new_full((n, n), float("-inf")).triu(1)[None, None]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as it is added to logits: what a boolean one hides gets -inf."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))


def _visible(mask: Any) -> Tensor:
    """(B,1,N,N) attention mask -> (B,N) 1.0 where the last query may see the key."""
    last: Tensor = mask[:, 0, -1]
    return (last if last.dtype == torch.bool else last == 0).float()
