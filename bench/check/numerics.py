"""Properties: half precision, torch.compile, gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.check.passes import close
from bench.check.probe import Broken, NotApplicable, Probe
from bench.core import Learner
from bench.core.kinds import is_adaptive
from bench.engine.reduce import reduced


def half(probe: Probe) -> str:
    """In bfloat16 it runs, stays bfloat16 and is finite; in float32 likewise."""
    subject, reducer = probe.subject, probe.make()
    model = copy.deepcopy(subject.model).to(torch.bfloat16)
    inputs = {
        name: t.to(torch.bfloat16) if t.is_floating_point() else t
        for name, t in subject.inputs.items()
    }
    with torch.no_grad(), reduced(model, reducer, **probe.budget(reducer)):
        out = subject.run(inputs, model)
    if out.dtype != torch.bfloat16:
        raise Broken(f"a bfloat16 model answers in {out.dtype}")
    for name, value in {"bfloat16": out, "float32": probe.own.out}.items():
        if not value.isfinite().all():
            raise Broken(f"the model's answer in {name} is not finite")
    return ""


def compiles(probe: Probe) -> str:
    """The decision and its application are one graph to torch.compile, with the same result."""
    if is_adaptive(probe.method):
        raise NotApplicable("how many tokens it keeps depends on the sample")
    calls = probe.decided()[0].calls
    if not probe.case.compiles:
        raise NotApplicable("tried on one image and one text tower, since it costs most")
    site, r, reducer = calls[0].site, calls[0].r, probe.make()

    def step(x: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        plan = reducer.plan(replace(site, x=x, q=q, k=k, v=v, size=size), r)
        return (plan.keep, *plan.apply(x, size))

    given = (site.x, site.q, site.k, site.v, site.size)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = step(*given)
        # without code generation: it needs a C++ compiler, and tracing is what methods break
        got = torch.compile(step, fullgraph=True, backend="eager")(*given)
    if not torch.equal(got[0], expected[0]):
        raise Broken("compiled, it keeps other tokens")
    for name, a, b in zip(("tokens", "sizes"), got[1:], expected[1:], strict=True):
        if not close(a, b):
            raise Broken(f"compiled, its {name} differ by {float((a - b).abs().max()):.2g}")
    return "one graph"


def gradient(probe: Probe) -> str:
    """Gradients reach the input, and what the method learns, and are finite."""
    subject = probe.subject
    reducer, learned = probe.make_learning()
    entered: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        entered.append(x.detach().requires_grad_())
        return entered[0]

    with (
        torch.enable_grad(),
        subject.at_first_block(leaf),
        reduced(subject.model, reducer, **probe.budget(reducer)),
    ):
        out = subject.run()
        wanted = {"the input": entered[0], **learned}
        found = torch.autograd.grad(out.square().sum(), list(wanted.values()), allow_unused=True)
    gradients = dict(zip(wanted, found, strict=True))
    _finite(gradients)
    if gradients["the input"] is None or not gradients.pop("the input").any():
        raise Broken("no gradient reaches the input")
    if not learned:
        return ""
    if any(g is not None and g.any() for g in gradients.values()):
        return f"{len(learned)} learned"
    if isinstance(reducer, Learner) and _own_loss_reaches(probe, reducer, [*learned.values()]):
        return f"{len(learned)} learned, by its own loss alone"
    raise Broken(f"no gradient reaches any of its {len(learned)} learned tensors")


def _own_loss_reaches(probe: Probe, reducer: Learner, learned: Sequence[Tensor]) -> bool:
    """Whether the method's own loss, which may compare the towers, reaches what it learns."""
    model = probe.subject.model
    with torch.enable_grad(), reduced(model, reducer, **probe.budget(reducer)):
        loss = reducer.loss(model) if probe.subject.run_all() else None
    if loss is None:
        return False
    found = torch.autograd.grad(loss, learned, allow_unused=True)
    return any(g is not None and bool(g.any()) for g in found)


def _finite(gradients: Mapping[str, Tensor | None]) -> None:
    for name, value in gradients.items():
        if value is not None and not value.isfinite().all():
            raise Broken(f"the gradient of {name} is not finite")
