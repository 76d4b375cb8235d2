"""Properties of decisions: protected tokens survive, sizes account for every token, indices fit.

What a plan declares without values (`soft`, `members`) is true of its values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.check.probe import Broken, Call, Probe, made_by
from bench.core import Plan
from bench.core.kinds import Appender
from bench.core.site import LanguageSite


def protected(probe: Probe) -> str:
    """Class, prefix, end-of-text and appended tokens stay, unmixed, where readers find them."""

    def examine(call: Call) -> None:
        survive(call)
        # of several prefix tokens the harness restores the order, and of all where that counts
        if call.site.prefix == 1 and not probe.tower.ordered and call.plan.keep[:, 0].any():
            raise _prefix_moved(call)

    for seen in probe.decided(examine):
        appends = seen.reducer.appends if isinstance(seen.reducer, Appender) else 0
        for call, slots, _ in seen.reductions(probe.tower.name):
            _stand_still(call, slots, appends)
    return ""


def survive(call: Call) -> None:
    """Raise Broken where a decision loses a protected token, or merges one."""
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


def _prefix_moved(call: Call) -> Broken:
    site = call.site
    return Broken(f"layer {site.layer} moves the prefix tokens from places {[*range(site.prefix)]}")


def _stand_still(call: Call, slots: Tensor, appends: int) -> None:
    plan, layer, front = call.plan, call.site.layer, torch.arange(call.site.prefix)
    if not torch.equal(slots[:, : len(front)], front.expand(len(slots), -1)):
        raise _prefix_moved(call)
    n = plan.keep.shape[1] + made_by(plan)
    if appends and not (slots[:, -appends:] == torch.arange(n - appends, n)).all():
        raise Broken(f"layer {layer} moves the appended tokens from the end")


def misfit(calls: Sequence[Call]) -> str:
    """What is wrong with the first decision that no pass can survive, or ""."""
    for call in calls:
        try:
            _fits(call)
            survive(call)
        except Broken as wrong:
            return str(wrong)
    return ""


def mass(probe: Probe) -> str:
    """Sizes say how many input tokens a token stands for: none is lost or counted twice."""
    for seen in probe.decided():
        first = [c.site.size.sum(1) for c in seen.calls if c.site.layer == seen.calls[0].site.layer]
        largest = torch.stack(first).amax(0)  # of packed images
        for call, slots, size in seen.reductions(probe.tower.name):
            start = call.site.start if isinstance(call.site, LanguageSite) else None
            most = largest if start is None else start.size.sum(1)
            if call.plan.size is None:
                _conserved(call, slots, size)
            else:
                _stated(call, call.plan.size, most)
    return "stated" if probe.default.calls[0].plan.size is not None else "conserved"


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
    _accounted(call, size, filled)


def _accounted(call: Call, size: Tensor, filled: Tensor) -> None:
    """A kept token stands for what it did, give or take what joins it; a sum for its parts."""
    layer, plan, before = call.site.layer, call.plan, call.site.size[..., 0]
    at, joins = plan.keep.clamp(min=0), torch.zeros_like(size[..., 0])
    if plan.src is not None and plan.dst is not None:
        joins.scatter_add_(1, plan.dst, before.gather(1, plan.src).to(joins))
    stood, M = before.gather(1, at), at.shape[1]
    off = filled & ((size[:, :M, 0] - stood).abs() > joins[:, :M] + 1e-3)
    if off.any():
        b, j = off.nonzero()[0].tolist()
        raise Broken(
            f"layer {layer} states size {float(size[b, j]):g} for token {int(at[b, j])}, which was "
            f"{float(stood[b, j]):g}, and {float(joins[b, j]):g} joins it"
        )
    if plan.extra is None:
        return
    made, parts = size[:, M:].sum((1, 2)), ((plan.extra != 0).any(1) * before).sum(1)
    wrong = ((made - parts).abs() > 1e-3).nonzero()
    if len(wrong):
        b = int(wrong[0])
        raise Broken(
            f"layer {layer} states sizes of {float(made[b]):g} in sum for tokens made of "
            f"{float(parts[b]):g}"
        )


def indices(probe: Probe) -> str:
    """Indices are in range, no token goes two ways, shapes fit; texts stay in order."""
    for seen in probe.decided(_fits):
        if probe.tower.name == "text":
            for call, slots, _ in seen.reductions(probe.tower.name):
                _ordered(call, slots)
    return ""


def _fits(call: Call) -> None:
    problem = _misfit(call.plan, *call.site.x.shape[:2])
    weightless = call.site.size[..., 0] == 0
    if call.site.tower == "text":  # nor does the end of a text see the words behind it
        weightless = torch.ones_like(weightless)
    problem = problem or _misdeclared(call.plan, weightless)
    if problem:
        raise Broken(f"layer {call.site.layer}: {problem}")


def _misfit(plan: Plan, B: int, N: int) -> str:
    keep, M = plan.keep, plan.keep.shape[-1]
    if keep.shape != (B, M) or keep.dtype != torch.long:
        return f"keep is {keep.dtype} {tuple(keep.shape)}, not int64 ({B}, M)"
    filled = keep >= 0
    if not plan.padded and not filled.all():
        return "keep has -1 (an empty slot), and the plan does not say padded"
    if (keep < -1).any() or (keep >= N).any():
        return f"keep points outside of the {N} tokens"
    used = torch.zeros(B, N, dtype=torch.long).scatter_add(1, keep.clamp(min=0), filled.long())
    if (used > 1).any():
        return "keep names a token twice"
    if (plan.src is None) != (plan.dst is None):
        return "src and dst go together"
    if plan.src is not None and plan.dst is not None:
        problem = _misfit_merge(plan.src, plan.dst, filled, used)
        if problem:
            return problem
    return _misshapen(plan, B, N)


def _misfit_merge(src: Tensor, dst: Tensor, filled: Tensor, used: Tensor) -> str:
    (B, N), M = used.shape, filled.shape[1]
    if src.shape != dst.shape or len(src) != B:
        return f"src is {tuple(src.shape)} and dst {tuple(dst.shape)}"
    if (src < 0).any() or (src >= N).any():
        return f"src points outside of the {N} tokens"
    if (dst < 0).any() or (dst >= M).any():
        return f"dst points outside of the {M} slots kept"
    if (used + torch.zeros_like(used).scatter_add(1, src, torch.ones_like(src)) > 1).any():
        return "src names a token that is kept, or one twice"
    return "" if filled.gather(1, dst).all() else "dst points to an empty slot"


def _misshapen(plan: Plan, B: int, N: int) -> str:
    M = plan.keep.shape[1]
    R = (B, 0 if plan.src is None else plan.src.shape[1])
    weights = {
        "gain[0]": (plan.gain and plan.gain[0], R),
        "gain[1]": (plan.gain and plan.gain[1], R),
        "mix[0]": (plan.mix and plan.mix[0], (B, M)),
        "mix[1]": (plan.mix and plan.mix[1], R),
        "extra": (plan.extra, (B, made_by(plan), N)),
        "size": (plan.size, (B, M + made_by(plan), 1)),
    }
    for name, (tensor, shape) in weights.items():
        if isinstance(tensor, Tensor) and tensor.shape != shape:
            return f"{name} has shape {tuple(tensor.shape)}, not {shape}"
    if plan.mix is not None and plan.mix[1] is None and plan.src is not None:
        return "mix has no weights for the merged tokens"
    return ""


def _misdeclared(plan: Plan, weightless: Tensor) -> str:
    """What a plan says wrongly of `extra`; tokens that are `weightless` may be no part of it."""
    if plan.extra is None:
        undeclared = not plan.soft and plan.members is None
        return "" if undeclared else "it declares soft or members, and has no extra"
    part = plan.extra != 0
    shared = bool((part.sum(1) > 1).any())
    if plan.soft:
        one_alone = part.shape[1] == 1
        return "" if shared or one_alone else "it says soft, and no token is part of several"
    if shared:
        return "extra makes a token part of several, and the plan does not say soft"
    free = torch.ones_like(weightless).scatter(1, plan.keep.clamp(min=0), plan.keep < 0)
    if plan.src is not None:
        free = free.scatter(1, plan.src, False)
    used = part.any(1)
    if (used & ~free).any():
        return "extra is made of a token that is kept or merged elsewhere"
    made_of = used.sum(1)
    declared = free.sum(1) if plan.members is None else torch.full_like(made_of, plan.members)
    if (made_of > declared).any() or (made_of + (free & weightless).sum(1) < declared).any():
        return f"extra is made of {made_of.tolist()} tokens, and {declared.tolist()} are declared"
    return ""


def _ordered(call: Call, slots: Tensor) -> None:
    keep = call.plan.keep
    for row, slot in zip(keep, slots, strict=True):
        survivors = row[row >= 0].sort().values
        if (slot[survivors].diff() <= 0).any():
            raise Broken(f"layer {call.site.layer}: survivors of a text change their order")
