"""Properties of passes: nothing removed is nothing changed; batch; order; numbers of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.check.probe import Broken, NotApplicable, Probe, Seen
from bench.core import Learner, Plan, Reducer, Site
from bench.core.kinds import is_adaptive
from bench.engine.families.placed import PlacedPass
from bench.engine.reduce import reduced
from bench.engine.tower import override


def close(a: Tensor, b: Tensor) -> bool:
    """Equal in float32, up to another order of summation."""
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def nothing(probe: Probe) -> str:
    """With nothing to remove, the model answers bit for bit as without the method."""
    subject, reducer = probe.subject, probe.make()
    with torch.no_grad(), reduced(subject.model, reducer, **probe.budget(reducer, "nothing")):
        answer = subject.run()
    expected = (probe.case.batch, *subject.plain.shape[1:])
    if answer.shape != expected:
        raise Broken(f"the model answers {tuple(answer.shape)}, not {expected}")
    if not torch.equal(answer, subject.plain):
        far = float((answer - subject.plain).abs().max())
        raise Broken(f"removing nothing changes the model's answer by {far:.2g}")
    return "bit for bit"


def batch(probe: Probe) -> str:
    """A sample is reduced alone as it is in a batch: same decisions, same numbers."""
    together = probe.default
    with torch.no_grad():
        for i in range(probe.case.batch):
            inputs = probe.case.alone(probe.subject.inputs, i)
            alone = probe.watch(probe.make(), inputs=inputs)
            for one, all_ in zip(alone.calls, together.calls, strict=True):
                part = differs(decision(one.plan, 0), decision(all_.plan, i))
                if part:
                    raise Broken(
                        f"layer {one.site.layer} decides {part} of sample {i} otherwise alone than "
                        f"in a batch of {probe.case.batch}"
                    )
            far = float((alone.out[0] - together.out[i]).abs().max())
            if not close(alone.out[0], together.out[i]):
                raise Broken(f"sample {i} comes out {far:.2g} otherwise alone than in a batch")
    return ""


def decision(plan: Plan, i: int) -> dict[str, list[Any]]:
    """What a plan does with one sample."""
    parts = {"keep": [n for n in plan.keep[i].tolist() if n >= 0]}  # empty slots are the batch's
    if plan.src is not None and plan.dst is not None:
        parts |= {"src": plan.src[i].tolist(), "dst": plan.dst[i].tolist()}
    if plan.extra is not None:
        parts["extra"] = (plan.extra[i] != 0).tolist()
    return parts


def differs(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> str:
    """In which part two decisions differ, or ""."""
    return next((name for name in one if one[name] != other.get(name)), "")


def permutation(probe: Probe) -> str:
    """Whether another order of the patches, positions embedded, gives the same: stated, not asked.

    A method that declares `equivariant` (bool) is held to it.
    """
    if probe.tower.name == "text":
        raise NotApplicable("the order of a text means something")
    if issubclass(probe.tower.pass_class, PlacedPass):
        raise NotApplicable("blocks are told where each token is")
    measured = not probe.resizes and _is_equivariant(probe)
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
    expected = _groups(probe, probe.default, order)
    return torch.equal(groups, expected) and close(moved.out, probe.default.out)


def _groups(probe: Probe, seen: Seen, order: Tensor) -> Tensor:
    """(B,N,N) which input tokens end up in one output token, in this order of the inputs."""
    at = seen.trace.position(probe.tower.name)
    if at is None:
        return torch.eye(len(order))[None]
    at = at[:, order]
    return (at[:, :, None] == at[:, None]) & (at >= 0)[:, None]


def half(probe: Probe) -> str:
    """In bfloat16 and float16 it runs, stays what it is and is finite; nothing is float64."""
    for dtype in (torch.bfloat16, torch.float16):
        out = _in_half(probe, dtype)
        if out.dtype != dtype:
            raise Broken(f"a {_short(dtype)} model answers in {_short(out.dtype)}")
        _finite("the model's answer", out)
    _finite("the model's answer", probe.default.out)
    for call in probe.default.calls:
        for name, value in vars(call.plan).items():
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                    raise Broken(f"layer {call.site.layer} answers with {name} in float64")
    return ""


def _in_half(probe: Probe, dtype: torch.dtype) -> Tensor:
    model, inputs = probe.subject.in_dtype(dtype)
    reducer = probe.make()
    decide = reducer.plan

    def watched(site: Site, r: int) -> Plan:
        plan = decide(site, r)
        # an answer may hide it: a language model leaves out image tokens that are not numbers
        _finite(f"what layer {site.layer} makes of the tokens", plan.apply(site.x, site.size)[0])
        return plan

    with (
        torch.no_grad(),
        override(reducer, "plan", watched),
        reduced(model, reducer, **probe.budget(reducer)),
    ):
        return probe.subject.run(inputs, model)


def _finite(what: str, out: Tensor) -> None:
    if not out.isfinite().all():
        raise Broken(f"{what} in {_short(out.dtype)} is not finite")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compiles(probe: Probe) -> str:
    """The decision and its application are one graph to torch.compile, with the same result."""
    if is_adaptive(probe.method):
        raise NotApplicable("how many tokens it keeps depends on the sample")
    probe.decided()
    if not probe.case.thorough:
        raise NotApplicable("tried on one tower of each kind, since it costs most")
    return probe.at_first_decision(_compiled)


def _compiled(reducer: Reducer, site: Site, r: int) -> str:
    def step(x: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        plan = reducer.plan(replace(site, x=x, q=q, k=k, v=v, size=size), r)
        return (plan.keep, *plan.apply(x, size))

    tensors = (site.x, site.q, site.k, site.v, site.size)
    torch._dynamo.reset()
    expected = step(*tensors)
    # without code generation: it needs a C++ compiler, and tracing is what methods break
    got = torch.compile(step, fullgraph=True, backend="eager")(*tensors)
    if not torch.equal(got[0], expected[0]):
        raise Broken("compiled, it keeps other tokens")
    for name, a, b in zip(("tokens", "sizes"), got[1:], expected[1:], strict=True):
        if not close(a, b):
            raise Broken(f"compiled, its {name} differ by {float((a - b).abs().max()):.2g}")
    return "one graph"


def gradient(probe: Probe) -> str:
    """Gradients reach the input and what the method learns, are finite, and change no decision."""
    reducer, learned = probe.make_learning()
    entered: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        entered.append(x.detach().requires_grad_())
        return entered[-1]

    with torch.enable_grad(), probe.subject.at_first_block(leaf):
        seen = probe.watch(reducer)
        wanted = {"the input": entered[0], **learned}
        loss = seen.out.square().sum()
        slopes = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        # what is being learned may be drawn, and the last bits of a pass depend on what it records
        recorded = probe.watch(_frozen(probe))
        unrecorded = _frozen(probe)
        with override(unrecorded, "plan", torch.no_grad()(unrecorded.plan)):
            plain = probe.watch(unrecorded)
    _decides_alike(plain, recorded)
    gradients = dict(zip(wanted, slopes, strict=True))
    for name, value in gradients.items():
        if value is not None and not value.isfinite().all():
            raise Broken(f"the gradient of {name} is not finite")
    if gradients["the input"] is None or not gradients.pop("the input").any():
        raise Broken("no gradient reaches the input")
    if not learned:
        return ""
    if any(g is not None and g.any() for g in gradients.values()):
        return f"{len(learned)} learned"
    if isinstance(reducer, Learner) and _own_loss_reaches(probe, reducer, [*learned.values()]):
        return f"{len(learned)} learned, by its own loss alone"
    raise Broken(f"no gradient reaches any of its {len(learned)} learned tensors")


def _frozen(probe: Probe) -> Reducer:
    reducer, learned = probe.make_learning()
    for tensor in learned.values():
        tensor.requires_grad_(False)
    return reducer


def _decides_alike(plain: Seen, recorded: Seen) -> None:
    """With gradients recorded a method decides as without, given the same tokens."""
    for one, other in zip(plain.calls, recorded.calls, strict=True):
        for i in range(len(one.plan.keep)):
            part = differs(decision(one.plan, i), decision(other.plan, i))
            if part:
                raise Broken(f"with gradients on, layer {one.site.layer} decides {part} otherwise")


def _own_loss_reaches(probe: Probe, reducer: Learner, learned: Sequence[Tensor]) -> bool:
    """Whether the method's own loss, which may compare the towers, reaches what it learns."""
    model = probe.subject.model
    with torch.enable_grad(), reduced(model, reducer, **probe.budget(reducer)):
        loss = None
        if probe.subject.shapes.keys() == {"vision", "text"}:
            probe.case.run_all(model)
            loss = reducer.loss(model)
    if loss is None:
        return False
    slopes = torch.autograd.grad(loss, learned, allow_unused=True)
    return any(g is not None and bool(g.any()) for g in slopes)
