"""Property: what a new token sees of the cache, where a method hides keys of it."""

from __future__ import annotations

import torch

from bench.check.answer import decisions, of_answers
from bench.check.plans import survive
from bench.check.probe import Broken, Call, NotApplicable, Probe
from bench.core.kinds import DecodeReducer


def hidden(probe: Probe) -> str:
    """A new token sees the words, and so many of the image's keys as the schedule leaves, or all.

    Raises:
        NotApplicable: the method hides none.
    """
    here = of_answers(probe)
    if not issubclass(probe.method, DecodeReducer):
        raise NotApplicable("it hides no cached keys")
    calls = [call for one in here.answers for call in decisions(one)]
    if not calls:
        raise Broken("it is never asked about a new token")
    for call in calls:
        _shows(call)
    all_seen = sum(call.plan.keep.shape[1] == call.site.k.shape[2] for call in calls)
    return f"all keys at {all_seen} of {len(calls)} tokens" if all_seen else ""


def _shows(call: Call) -> None:
    """Raise Broken where a decision is no choice of keys, or is another than asked for."""
    keep, keys, layer = call.plan.keep, call.site.k.shape[2], call.site.layer
    if len(keep) != 1 or keep.is_floating_point():
        raise Broken(f"layer {layer} keeps {tuple(keep.shape)} {keep.dtype}, not (1,S) positions")
    if (keep < 0).any() or (keep >= keys).any():
        raise Broken(f"layer {layer} shows key {int(keep.max())}, and the last is {keys - 1}")
    if len(torch.unique(keep)) < keep.shape[1]:
        raise Broken(f"layer {layer} shows a key twice")
    survive(call)
    if keep.shape[1] not in (keys - call.r, keys):
        raise Broken(
            f"layer {layer} should show {keys - call.r} of {keys} keys, and shows {keep.shape[1]}"
        )
    if call.in_place:
        raise Broken(f"layer {layer} writes into {call.in_place[0]} of the site")
