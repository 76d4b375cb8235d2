"""Properties of whole passes: nothing removed is nothing changed; batch; order of the patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.check.probe import Broken, NotApplicable, Probe, Seen
from bench.core import Plan
from bench.core.kinds import InputReducer
from bench.engine.reduce import reduced


def close(a: Tensor, b: Tensor) -> bool:
    """Equal in float32, up to another order of summation."""
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def nothing(probe: Probe) -> str:
    """With nothing to remove, the model answers bit for bit as without the method."""
    subject, reducer = probe.subject, probe.make()
    with torch.no_grad(), reduced(subject.model, reducer, **probe.budget(reducer, "nothing")):
        _same(subject.run(), subject.plain, "removing nothing")
        asked = (probe.case.batch, *subject.plain.shape[1:])
        if subject.plain.shape != asked:
            raise Broken(f"the model answers {tuple(subject.plain.shape)}, not {asked}")
    return "bit for bit"


def _same(got: Tensor, expected: Tensor, what: str) -> None:
    if got.shape != expected.shape:
        raise Broken(f"{what} gives shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    if not torch.equal(got, expected):
        far = float((got - expected).abs().max())
        raise Broken(f"{what} changes the model's answer by {far:.2g}")


def batch(probe: Probe) -> str:
    """A sample is reduced alone as it is in a batch: same decisions, same numbers."""
    together = probe.own
    with torch.no_grad():
        for i in range(probe.case.batch):
            inputs = probe.case.alone(probe.subject.inputs, i)
            alone = probe.watch(probe.make(), inputs=inputs)
            for one, all_ in zip(alone.calls, together.calls, strict=True):
                part = _differs(_decision(one.plan, 0), _decision(all_.plan, i))
                if part:
                    raise Broken(
                        f"layer {one.site.layer} decides {part} of sample {i} otherwise alone than "
                        f"in a batch of {probe.case.batch}"
                    )
            far = float((alone.out[0] - together.out[i]).abs().max())
            if not close(alone.out[0], together.out[i]):
                raise Broken(f"sample {i} comes out {far:.2g} otherwise alone than in a batch")
    return ""


def _decision(plan: Plan, i: int) -> dict[str, list[Any]]:
    found = {"keep": [n for n in plan.keep[i].tolist() if n >= 0]}  # empty slots are the batch's
    if plan.src is not None and plan.dst is not None:
        found |= {"src": plan.src[i].tolist(), "dst": plan.dst[i].tolist()}
    if plan.extra is not None:
        found["extra"] = (plan.extra[i] != 0).tolist()
    return found


def _differs(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> str:
    return next((name for name in one if one[name] != other.get(name)), "")


def permutation(probe: Probe) -> str:
    """Whether another order of the patches, positions embedded, gives the same: stated, not asked.

    A method that declares `equivariant` (bool) is held to it.
    """
    if probe.tower.name == "text":
        raise NotApplicable("the order of a text means something")
    measured = not issubclass(probe.method, InputReducer) and _is_equivariant(probe)
    declared = getattr(probe.method, "equivariant", None)
    stated = "equivariant" if measured else "position-dependent"
    if declared is not None and declared != measured:
        raise Broken(f"it declares equivariant = {declared} and is {stated}")
    return stated


def _is_equivariant(probe: Probe) -> bool:
    subject, prefix = probe.subject, probe.tower.prefix
    n = subject.tokens
    shuffled = torch.randperm(n - prefix, generator=torch.Generator().manual_seed(0)) + prefix
    order = torch.cat([torch.arange(prefix), shuffled])
    with torch.no_grad(), subject.at_first_block(lambda x: x[:, order]):
        moved = probe.watch(probe.make())
    groups = _groups(probe, moved, torch.arange(n))
    expected = _groups(probe, probe.own, order)
    return torch.equal(groups, expected) and close(moved.out, probe.own.out)


def _groups(probe: Probe, seen: Seen, order: Tensor) -> Tensor:
    """(B,N,N) which input tokens end up in one output token, in this order of the inputs."""
    at = seen.trace.position(probe.tower.name)
    if at is None:
        return torch.eye(len(order))[None]
    at = at[:, order]
    return (at[:, :, None] == at[:, None]) & (at >= 0)[:, None]
