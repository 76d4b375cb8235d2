"""A reduced forward pass through one tower: sizes, protected tokens, positions, attention bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import Plan, Site, observe
from bench.core.errors import BenchError
from bench.core.kinds import Appender, Gradual, is_adaptive
from bench.core.tensors import take
from bench.engine.attention import attention_left
from bench.engine.gradual import Trail
from bench.engine.masks import additive, both, channel_attention, triangle, visible
from bench.engine.reduction import Reduction
from bench.engine.tower import Tower


class Pass:
    """The state of one tower during a forward pass.

    Attributes:
        reductions: the methods at work; those of `before` act ahead of a block's attention.
        size: (B,N,1) how many input tokens each token stands for.
        protect: (B,N) bool, tokens that stay.
        slot: (B,N) present place of each input token, -1 for a dropped one; kept up to date in a
            tower that `restores`.
        anchor: (B,) present place of the token that is read out, or None.
        grid: (rows, columns) of the patches while they form one.
        nominal: removable tokens by the schedule's own count.
        changed: the sequence is no longer the input's (tokens were removed or appended).
        merged, reduced, padded: tokens were merged; removed; some slots may be empty.
        vacant: some sizes may be 0.
        draw: number of the batch, for random methods; 0 unless batches are numbered.
        trail: the score that a method carries through the blocks, if one does.
        upstream: the passes of the model's other towers.
        qkv, bias, scale: what the latest attention saw.
        attention_path: how sizes came into the latest attention: "plain", "mask" or "channel".
    """

    def __init__(self, tower: Tower, reductions: Sequence[Reduction]) -> None:
        """Nothing is known about the input yet; `begin` sets the state at the first block.

        Raises:
            BenchError: two of the methods append tokens of their own.
        """
        self.tower, self.reductions = tower, reductions
        reducers = [reduction.reducer for reduction in reductions]
        appenders = [reducer for reducer in reducers if isinstance(reducer, Appender)]
        if len(appenders) > 1:
            names = " and ".join(f"'{reducer.name}'" for reducer in appenders)
            raise BenchError(f"{names} both append tokens of their own: one a tower is possible")
        self.appender = appenders[0] if appenders else None
        self.appends = self.appender.appends if self.appender else 0
        self.before = [reduction for reduction in reductions if reduction.reducer.before]
        self.after = [reduction for reduction in reductions if not reduction.reducer.before]
        self.adaptive = any(is_adaptive(reducer) for reducer in reducers)
        self.proportional = any(reducer.proportional for reducer in reducers)
        self.depth = len(tower.blocks)
        self.input_ids: Tensor | None = None
        self.attention_path = "plain"
        # set here too: a decoder may ask for the size bias before any sequence has begun
        self.changed = self.merged = self.padded = False
        self.vacant = True  # unless it is known better
        self.layer = self.draw = 0
        self.trail = Trail()
        self.upstream: Mapping[str, Pass] = {}
        self.qkv: tuple[Tensor, Tensor, Tensor] | None = None
        self.bias: Tensor | None = None
        self.scale: float | None = None

    def number_batch(self) -> None:
        """Note the number of the batch that begins; 0 unless batches are numbered."""
        self.draw = observe.draw(self)

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Start a sequence (B,N,C): sizes of 1, prefix and anchor protected, tokens appended."""
        self.number_batch()
        B, N, _ = x.shape
        tower = self.tower
        self.initial = N
        self.nominal = max(N - tower.n_protected, 0)
        self.padded = mask is not None and tower.masked
        self.changed = self.merged = self.reduced = False
        self.trail, self.qkv = Trail(), None
        self.anchor = tower.anchor(self, x)
        self.grid = tower.grid(N - tower.prefix)
        self.size = torch.ones(B, N, 1, device=x.device)
        if self.padded:
            self.size = visible(mask)[..., None]  # padding stands for nothing: it has size 0
            x = x * self.size.to(x.dtype)  # whether there is any would have to be waited for
        self.vacant = self.padded
        position = torch.arange(N, device=x.device)
        self.protect = (position < tower.prefix).expand(B, N)
        if tower.name == "text" and self.anchor is not None:
            self.protect = self.protect | (position == self.anchor[:, None])
        self.slot: Tensor | None = position.expand(B, N)
        return self._with_appended(self.appender, x) if self.appender else x

    def _with_appended(self, appender: Appender, x: Tensor) -> Tensor:
        """(B,N,C) -> (B,N+appends,C), the new tokens protected and of size 1."""
        B, appends = len(x), self.appends
        x = torch.cat([x, appender.append(x, self.anchor, self.tower.name)], 1)
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
        """A block's input (B,N,C) -> (B,M,C): the sequence begins, methods act ahead of a block."""
        self.layer = layer
        if layer == 0:
            x = self.begin(x, mask)
        if self.appender:
            x = self.appender.refresh(x, self.anchor, layer, self.tower.name)
        for reduction in self.before:
            x = self._step(reduction, layer, x)
        return x

    def after_attention(self, layer: int, x: Tensor) -> Tensor:
        """Between a block's halves, (B,N,C) -> (B,M,C): methods act."""
        for reduction in self.after:
            x = self._step(reduction, layer, x)
        if not self.before:  # only methods ahead of the next block look at this one's attention
            self.qkv = self.bias = None  # held while the MLP runs it would raise the memory peak
        return x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """The second half of a block. (B,M,C) -> (B,M,C)."""
        return self.tower.feed(block, x)

    def _arguments(self, kw: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """What the model passes to its blocks beside tokens and mask, for the present tokens."""
        return kw

    def _step(self, reduction: Reduction, layer: int, x: Tensor) -> Tensor:
        """Reduce by as many tokens as the schedule says and the method can. (B,N,C) -> (B,M,C)."""
        initial = max(self.initial - self.tower.n_protected, 0)
        present = max(x.shape[1] - self.tower.n_protected - self.appends, 0)
        self.nominal = self.nominal if self.adaptive else present
        if isinstance(reduction.reducer, Gradual):
            where = layer, self.depth, self.nominal, initial, self.grid
            going, self.trail.remaining = reduction.still(*where)
            r = present - self.nominal + going
            self.nominal -= 0 if self.trail.remaining else going
            acts = r > 0 and self.trail.follow(reduction.reducer, self._site(layer, x))
            return self._reduce(reduction, layer, x, r) if acts else x
        r = reduction.count(layer, self.depth, self.nominal, initial, self.grid)
        r = min(r, self.nominal - self.tower.reads_patches)  # one stays
        if r <= 0:
            return x
        self.nominal -= r
        r = present - self.nominal
        acts = r > 0 or is_adaptive(reduction.reducer)
        return self._reduce(reduction, layer, x, r) if acts else x

    def _reduce(self, reduction: Reduction, layer: int, x: Tensor, r: int) -> Tensor:
        for observer in observe.OBSERVERS:
            observer.enter("reduction")
        n = x.shape[1]
        plan = self._ordered(reduction.reducer.plan(self._site(layer, x), r))
        x = self._applied(plan, x)
        self._follow(plan, n, layer)
        if self.qkv is not None and reduction is not [*self.after, *self.before][-1]:
            self.qkv, self.bias = attention_left(plan, self.qkv, self.bias)
        for observer in observe.OBSERVERS:
            observer.exit("reduction")
            observer.kept(self.size)
        return x

    def _applied(self, plan: Plan, x: Tensor) -> Tensor:
        """The tokens after a plan; sizes follow. (B,N,C) -> (B,M,C)."""
        x, self.size = plan.apply(x, self.size, self.vacant)
        return x

    def _site(self, layer: int, x: Tensor) -> Site:
        site = self.tower.site_class(
            x,
            *(self.qkv or (x[:, None, :, :0],) * 3),
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
        return self.trail.shown(site)

    def _ordered(self, plan: Plan) -> Plan:
        """Prefix tokens stay in front; where order means something, all survivors keep theirs."""
        order = plan.keep
        if plan.padded:  # empty slots stay at the end
            order = order.masked_fill(order < 0, torch.iinfo(order.dtype).max)
        if self.tower.ordered:
            return plan.reorder(order)
        return plan.reorder(order.clamp(max=self.tower.prefix)) if self.tower.prefix > 1 else plan

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        """Carry the state along to the tokens after a plan; positions where a reader needs them."""
        self._carry(plan)
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

    def _carry(self, plan: Plan) -> None:
        """Carry protection, grid and flags along."""
        self.changed = self.reduced = True
        self.grid = plan.grid
        self.merged = self.merged or plan.src is not None or plan.size is not None
        self.padded = self.padded or plan.padded
        self.vacant = self.padded or self.vacant or plan.size is not None
        self.trail.carry(plan)
        if self.tower.n_protected + self.appends <= self.tower.prefix:  # which stays in front
            self.protect = self.protect[:, : self.size.shape[1]]
            return
        self.protect = self.protect.gather(1, plan.keep.clamp(min=0) if plan.padded else plan.keep)
        if plan.padded:
            self.protect = self.protect & (plan.keep >= 0)
        if plan.extra is not None:
            new = self.protect.new_zeros(self.protect.shape[0], plan.extra.shape[1])
            self.protect = torch.cat([self.protect, new], 1)

    def _finish(self, x: Tensor) -> Tensor:
        """Appended tokens leave the sequence after the last block."""
        if self.appends:
            n = x.shape[1] - self.appends
            x, self.size = x[:, :n], self.size[:, :n]
        return x

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

    def size_bias(self, dtype: torch.dtype) -> Tensor | None:
        """(B,1,1,N) to add to the logits: log size (proportional attention), -inf on padding."""
        if not (self.padded or (self.merged and self.proportional)):
            return None
        size = self.size if self.proportional else (self.size > 0).float()
        return size.log().to(dtype).transpose(1, 2)[:, None]

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The causal mask of the present length; the model's own `mask` while nothing changed."""
        if not self.changed or not self.tower.masked:
            return mask
        return triangle(x, x.shape[1]) if self.tower.causal else None

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
        """The tower's attention with the size bias in it; notes q, k, v for the method."""
        self.qkv, self.scale = (q, k, v), scale
        bias = self.size_bias(q.dtype) if self.changed else None
        self.bias = both(additive(mask, q.dtype), bias)
        if mask is None and self.tower.causal:  # the kernel masks by itself; methods must see it
            self.bias = both(triangle(q, q.shape[2]), bias)
        if bias is None:
            return inner(q, k, v, mask, scale)
        if self._by_channel(q, fused and mask is None):
            return channel_attention(q, k, v, bias, scale)
        return inner(q, k, v, self.bias, scale)

    def _by_channel(self, q: Tensor, fused: bool) -> bool:
        """Whether sizes go through a kernel as channels of the keys, in place of a mask."""
        channel = fused and (q.is_cuda or self.attention_path == "channel")
        self.attention_path = "channel" if channel else "mask"
        return channel


def runs(model: nn.Module) -> list[Pass]:
    """Return the passes at work in a model: `reduced()` leaves a bound method on each block."""
    overrides = (module.__dict__.get("forward") for module in model.modules())
    owners = (getattr(getattr(call, "func", None), "__self__", None) for call in overrides)
    return list({id(owner): owner for owner in owners if isinstance(owner, Pass)}.values())
