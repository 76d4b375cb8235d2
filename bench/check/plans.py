"""Properties: protected tokens survive, and sizes account for every token."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.check.probe import Broken, Call, Probe, made_by
from bench.core.kinds import Appender
from bench.core.site import LanguageSite


def protected(probe: Probe) -> str:
    """Class, prefix, end-of-text and appended tokens stay, unmixed, where readers find them."""
    for seen in probe.decided(_survive):
        appends = seen.reducer.appends if isinstance(seen.reducer, Appender) else 0
        for call, slots, _ in seen.reductions(probe.tower.name):
            _stand_still(call, slots, appends, call.site.prefix)
    return ""


def _survive(call: Call) -> None:
    plan, protect, layer = call.plan, call.site.protect, call.site.layer
    kept = torch.zeros_like(protect, dtype=torch.long)
    kept = kept.scatter_add(1, plan.keep.clamp(min=0), (plan.keep >= 0).long())
    lost = (protect & (kept == 0)).nonzero()
    if len(lost):
        sample, token = lost[0].tolist()
        raise Broken(f"layer {layer} loses protected token {token} of sample {sample}")
    if plan.src is not None and plan.dst is not None:
        if protect.gather(1, plan.src).any():
            raise Broken(f"layer {layer} merges a protected token into another one")
        if protect.gather(1, plan.keep.clamp(min=0)).gather(1, plan.dst).any():
            raise Broken(f"layer {layer} merges a token into a protected one")


def _stand_still(call: Call, slots: Tensor, appends: int, prefix: int) -> None:
    plan, layer, front = call.plan, call.site.layer, torch.arange(prefix)
    if not torch.equal(slots[:, :prefix], front.expand(len(slots), -1)):
        raise Broken(f"layer {layer} moves the prefix tokens from places {front.tolist()}")
    n = plan.keep.shape[1] + made_by(plan)
    if appends and not (slots[:, -appends:] == torch.arange(n - appends, n)).all():
        raise Broken(f"layer {layer} moves the appended tokens from the end")


def mass(probe: Probe) -> str:
    """Sizes say how many input tokens a token stands for: none is lost or counted twice."""
    for seen in probe.decided():
        first = [c.site.size.sum(1) for c in seen.calls if c.site.layer == seen.calls[0].site.layer]
        whole = torch.stack(first).amax(0)  # of packed images, the largest
        for call, slots, size in seen.reductions(probe.tower.name):
            start = call.site.start if isinstance(call.site, LanguageSite) else None
            most = whole if start is None else start.size.sum(1)
            if call.plan.size is None:
                _conserved(call, slots, size)
            else:
                _stated(call, size, most)
    return "stated" if probe.own.calls[0].plan.size is not None else "conserved"


def _conserved(call: Call, slots: Tensor, size: Tensor) -> None:
    before = call.site.size.sum((1, 2))
    dropped = (call.site.size[..., 0] * (slots < 0)).sum(1)
    wrong = ((size.sum((1, 2)) + dropped - before).abs() > 1e-3).nonzero()
    if len(wrong):
        b = int(wrong[0])
        raise Broken(
            f"layer {call.site.layer} makes {float(size[b].sum()):g} tokens kept and "
            f"{float(dropped[b]):g} dropped out of {float(before[b]):g}"
        )


def _stated(call: Call, size: Tensor, most: Tensor) -> None:
    layer, plan = call.site.layer, call.plan
    if not size.isfinite().all():
        raise Broken(f"layer {layer} states a size that is not finite")
    stood = call.site.size[..., 0].gather(1, plan.keep.clamp(min=0)) > 0
    filled = (plan.keep >= 0) & stood
    if (size[:, : plan.keep.shape[1], 0][filled] <= 0).any():
        raise Broken(f"layer {layer} states size 0 or less for a token that is there")
    if (size.sum(1) > most + 1e-3).any():
        raise Broken(
            f"layer {layer} states sizes of {float(size.sum(1).max()):g} in sum, more than the "
            f"{float(most.max()):g} input tokens"
        )
