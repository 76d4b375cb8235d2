"""Property: tokens that tie are told apart by their position, the lower first, on any machine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.check.passes import decision, differs
from bench.check.probe import Broken, NotApplicable, Probe
from bench.core import Plan, Reducer, Site, Unsupported
from bench.core.kinds import Stochastic
from bench.core.site import LanguageSite

SORT, STABLE_SORT, TOPK = (
    torch.ops.aten.sort.default,
    torch.ops.aten.sort.stable,
    torch.ops.aten.topk.default,
)


def ties(probe: Probe) -> str:
    """Among tokens that are all alike a method decides by position, and starts with the first.

    It keeps the first, or, where it looks for pairs to merge, merges the first.
    """
    if issubclass(probe.method, Stochastic):
        raise NotApplicable("chance decides which tokens go")
    return probe.at_first_decision(_examine)


def _examine(reducer: Reducer, site: Site, r: int) -> str:
    alike = _all_alike(site)
    plan = reducer.plan(alike, r)
    with _UnstableSorts():  # type: ignore[no-untyped-call]
        other = reducer.plan(alike, r)
    for b in range(len(site.x)):
        if differs(decision(plan, b), decision(other, b)):
            raise Broken(f"layer {site.layer} leaves ties to a sort that is not stable")
    fewer = reducer.feasible(r // 2, site.x.shape[1] - site.n_protected, site.grid)
    if 0 < fewer < r:
        with contextlib.suppress(Unsupported):  # it may be made for one number of tokens
            _first_come_first(site, plan, reducer.plan(alike, fewer))
    return ""


def _all_alike(site: Site) -> Any:
    """The site with all tokens the same: of length 1, in one channel, so that sums are exact."""
    changes: dict[str, Any] = {n: _unit(getattr(site, n)) for n in ("x", "q", "k", "v")}
    if isinstance(site, LanguageSite):
        changes["ahead"] = lambda: tuple(_unit(t) for t in site.ahead())
    for name, value in ((f.name, getattr(site, f.name)) for f in fields(site)):
        if isinstance(value, Site):
            changes[name] = _all_alike(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Site):
            changes[name] = tuple(map(_all_alike, value))
    return replace(site, **changes)


def _unit(tokens: Tensor) -> Tensor:
    unit = torch.zeros_like(tokens)
    unit[..., :1] = 1
    return unit


def _first_come_first(site: Site, plan: Plan, easier: Plan) -> None:
    """See which tokens go too when more have to, and whether the method began at the other end.

    A method that chooses what to keep lets the last go first, up to the end; one that merges pairs
    begins in front, and leaves tokens behind those that go. Samples and pools do neither.
    """
    prunes = plan.src is None and plan.extra is None
    for b, protected in enumerate(site.protect):
        free = (~protected).nonzero()[:, 0].tolist()
        stays, more = (set(free) & set(p.keep[b].tolist()) for p in (plan, easier))
        old, new = set(free) - more, more - stays
        if not (old and new and stays) or not stays <= more:
            continue
        if plan.src is not None and max(new) < min(old) and max(stays) > min(new):
            raise Broken(f"layer {site.layer} merges the last of the pairs that tie")
        if prunes and min(new) > max(old) and min(stays) > max(new):
            raise Broken(f"layer {site.layer} keeps the last of the tokens that tie")


class _UnstableSorts(TorchDispatchMode):
    """A machine on which sorts that need not be stable bring what is equal in reverse order."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kw = dict(kwargs or {})
        if func is TOPK:
            return _first_of(*args, **kw)
        if func in (SORT, STABLE_SORT) and not kw.pop("stable", False):
            return _backwards(*args, **kw)
        return func(*args, **(kwargs or {}))


def _backwards(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    values, at = x.flip(dim).sort(dim=dim, descending=descending, stable=True)
    return values, x.shape[dim] - 1 - at


def _first_of(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, ...]:
    return tuple(t.narrow(dim, 0, k) for t in _backwards(x, dim, largest))
