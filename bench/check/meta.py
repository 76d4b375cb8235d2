"""Property: what is counted without values is what is counted with values."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.check.cases import Inputs
from bench.check.probe import Broken, Probe
from bench.core import Learner, Plan, Reducer, observing
from bench.core.kinds import is_adaptive
from bench.engine.reduce import reduced
from bench.engine.tracing import Trace
from bench.measure.closed_form import TOLERANCE
from bench.measure.macs import count_macs
from bench.measure.shapes import KnownShapes


@dataclass(frozen=True)
class Cost:
    """What one pass costs.

    Attributes:
        macs: MACs of the whole pass and of the reduction in it, where they were counted.
        tokens: by tower, tokens in the attention and in the MLP of each block; a language model's
            first number is the sequence that reaches it.
        windows: attention ran within windows, of which the image decides which lose tokens.
    """

    macs: Mapping[str, int]
    tokens: Mapping[str, list[tuple[int, int]]]
    windows: bool

    def figures(self, without: tuple[str, ...] = ()) -> dict[str, int]:
        """All numbers by what they are of; `without` names towers that are left out."""
        named = {
            f"tokens in the {part} of {tower} block {layer}": n
            for tower, blocks in self.tokens.items()
            for layer, counts in enumerate(blocks)
            for part, n in zip(("attention", "MLP"), counts, strict=True)
            if tower not in without
        }
        return named | {name: n for name, n in self.macs.items() if name not in without}


def meta(probe: Probe) -> str:
    """MACs and tokens on the meta device are those with values, or an upper bound of them.

    They can only be a bound where an image decides how many tokens it keeps. Where it decides which
    of its windows lose them, MACs are near: as near as two counters have to be. MACs are compared
    at the method's default budget; tokens also at the hard one, ahead of and in language models
    and on joined patches, where the engine itself takes another way without values, and on one
    image and one text tower.
    """
    subject, remarks = probe.subject, []
    projector = subject.towers.get("projector")
    joined = projector is not None and projector.joins > 1
    thorough = probe.case.thorough or joined or probe.case.tower in ("projector", "language")
    with probe.case.costed(subject.model, subject.valueless) as (inputs, shapes):
        for kind in ("default", "hard") if thorough else ("default",):
            with contextlib.suppress(*([probe.refusals] if kind == "hard" else [])):
                real = _cost(probe, subject.model, inputs, kind, probe.make())
                shape = _cost(probe, subject.valueless, shapes, kind, _valueless(probe))
                remarks.append(_agree(probe, real, shape))
    return ", ".join(dict.fromkeys(filter(None, remarks)))


def _valueless(probe: Probe) -> Reducer:
    """The method with what it learned on the meta device."""
    with torch.device("meta"):
        reducer = probe.make()
    if isinstance(reducer, Learner):
        tables: dict[str, Any] = reducer.tables
        tables.update((name, t.to("meta")) for name, t in tables.items() if isinstance(t, Tensor))
    return reducer


def _cost(probe: Probe, model: nn.Module, inputs: Inputs, kind: str, reducer: Reducer) -> Cost:
    part, macs = model.get_submodule(probe.case.part), {}
    with observing(Trace()) as seen, reduced(model, reducer, **probe.budget(reducer, kind)):
        if kind == "default":
            counted = count_macs(part, **inputs)
            macs = {"MACs": counted.total, "MACs of the reduction": counted.reduction}
        else:  # to count MACs takes several times as long as to run
            valueless = model is probe.subject.valueless
            with torch.no_grad(), KnownShapes() if valueless else contextlib.nullcontext():  # type: ignore[no-untyped-call, unused-ignore]
                part(**inputs)
    return Cost(macs, dict(seen.tokens), any(seen.pairs.values()))


def _agree(probe: Probe, real: Cost, shape: Cost) -> str:
    """How far the two agree, as far as they can.

    Raises:
        Broken: they should agree and do not.
    """
    adaptive, groups = is_adaptive(probe.method), _leaves_groups(probe)
    without = ("projector", "language", "MACs") if groups else ()
    values, shapes = real.figures(without), shape.figures(without)
    if values.keys() != shapes.keys():
        raise Broken(f"{len(shapes)} figures without values, and {len(values)} with them")
    for name, n in values.items():
        if name == "MACs" and real.windows and abs(shapes[name] - n) <= TOLERANCE * n:
            continue
        if shapes[name] < n or (shapes[name] > n and not adaptive):
            raise Broken(f"{name}: {shapes[name]:,} without values, {n:,} with them")
    if groups:
        _possible(probe, real, shape)
        return "the image decides which groups of patches are left"
    if values != shapes:
        return "an upper bound" if adaptive else "the image decides which windows lose tokens"
    return ""


def _leaves_groups(probe: Probe) -> bool:
    """Whether patches are dropped that go on in groups: the image says how many of these stay."""
    towers = probe.subject.towers
    if probe.case.tower != "vision" or "projector" not in towers or towers["projector"].joins == 1:
        return False
    return any(_drops(c.plan, c.site.x.shape[1]) for seen in probe.passes for c in seen.calls)


def _drops(plan: Plan, n: int) -> bool:
    merged = 0 if plan.src is None else plan.src.shape[1]
    return plan.extra is None and plan.keep.shape[1] + merged < n


def _possible(probe: Probe, real: Cost, shape: Cost) -> None:
    """See that so many patches can lie in as many groups as are counted, with values or not.

    A patch that others were merged into shows in the groups of all of them.
    """
    joins, prefix = probe.subject.towers["projector"].joins, probe.tower.prefix
    (first, _), (_, last) = real.tokens["vision"][0], shape.tokens["vision"][-1]
    first, last = first - prefix, last - prefix
    merges = any(call.plan.src is not None for seen in probe.passes for call in seen.calls)
    least, most = -(-last // joins), first // joins if merges else min(last, first // joins)
    for cost in (real, shape):
        groups = cost.tokens["projector"][0][0]
        if not least <= groups <= most:
            raise Broken(f"{last} patches are left in {groups} groups, not {least} to {most}")
