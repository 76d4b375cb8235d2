"""What the properties mean where a multimodal language model answers prompts."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.check import counts as counted
from bench.check import isolation, passes
from bench.check.answer import Answer, AnswerProbe, alike, answer, of_answers
from bench.check.left import left_of
from bench.check.probe import Broken, NotApplicable, Probe
from bench.core.kinds import Appender, InputReducer
from bench.engine.reduce import reduced


def nothing(probe: Probe) -> str:
    """With nothing to remove, the answer is the plain one, alone and in a batch."""
    here, reducer = of_answers(probe), probe.make()
    passes.nothing(probe)
    tower, budgets = probe.tower.name, [probe.budget(reducer, "nothing")]
    if not isinstance(reducer, Appender | InputReducer):  # at work, and asked for nothing
        budgets.append({"r": {tower: _none_goes}})
    one = probe.case.alone(probe.subject.inputs, 0)
    with torch.no_grad():
        alone = answer(probe.subject.model, one)
    for budget in budgets:
        for inputs, plain in ((None, here.plain), (one, alone)):
            got = here.answer(probe.make(), budget, inputs)
            if not torch.equal(got.tokens, plain.tokens):
                raise Broken("removing nothing changes the answer")
    return "bit for bit"


def _none_goes(layer: int, depth: int, tokens: int, initial: int) -> int:
    return 0


def counts(probe: Probe) -> str:
    """The language model's blocks and its cache have as many tokens as are left."""
    here = of_answers(probe)
    if probe.tower.name != "language":
        counted.counts(probe)
    return "; ".join(_lengths(here, given) for given in here.answers)


def _lengths(probe: AnswerProbe, given: Answer) -> str:
    step, decoded = given.steps[0], len(given.steps) - 1
    padding = (~step.mask).sum(1).tolist()
    for layer, rows in enumerate(left_of(probe, given)):
        want = max(n + len(row.image) for n, row in zip(padding, rows, strict=True))
        if step.widths[layer] != want:
            raise Broken(f"block {layer} should see {want} tokens, and sees {step.widths[layer]}")
        if given.caches[layer] != want + decoded:
            raise Broken(
                f"block {layer} should have cached {want + decoded} tokens, "
                f"and has {given.caches[layer]}"
            )
    return f"{step.embeds.shape[1]} to {step.widths[-1]}"


def batch(probe: Probe) -> str:
    """A prompt is answered alone as it is in a padded batch."""
    together = of_answers(probe).answers[0]
    for i in range(probe.case.batch):
        one = probe.case.alone(probe.subject.inputs, i)
        alone = of_answers(probe).answer(probe.make(), inputs=one)
        if not torch.equal(alone.tokens[0], together.tokens[i]):
            raise Broken(f"prompt {i} is answered otherwise alone than in a batch")
        if not alike(alone.scores[0], together.scores[i]):
            far = float((alone.scores[0] - together.scores[i]).abs().max())
            raise Broken(f"prompt {i} comes out {far:.2g} otherwise alone than in a batch")
    return ""


def permutation(probe: Probe) -> str:
    """Not asked: order means something to a language model."""
    raise NotApplicable("a language model reads an image's tokens in their order")


def state(probe: Probe) -> str:
    """As elsewhere; also after an answer that breaks off, and in a copy made inside."""
    here, subject = of_answers(probe), probe.subject
    isolation.state(probe)
    reducer, expected = probe.make(), here.answers[0]
    with torch.no_grad(), reduced(subject.model, reducer, **probe.budget(reducer)):
        _break_off(here)
        if not torch.equal(answer(subject.model, subject.inputs).scores, expected.scores):
            raise Broken("an answer that broke off changes the next one")
        twin = copy.deepcopy(subject.model)
        answer(subject.model, subject.others)  # the original is elsewhere by now
        if not torch.equal(answer(twin, subject.inputs).scores, expected.scores):
            raise Broken("a copy of the model made inside answers otherwise")
    with (
        contextlib.suppress(isolation.Interrupted),
        torch.no_grad(),
        reduced(subject.model, reducer, **probe.budget(reducer)),
    ):
        _break_off(here)
        raise isolation.Interrupted
    isolation.unchanged(subject)
    with torch.no_grad():
        if not torch.equal(answer(subject.model, subject.inputs).scores, here.plain.scores):
            raise Broken("the model answers otherwise afterwards than before")
    return ""


def _break_off(probe: AnswerProbe) -> None:
    """Break an answer off at its second token."""
    tower: Any = probe.subject.towers["language"]

    def interrupt(_: nn.Module, args: Any) -> None:
        if args[0].shape[1] == 1:
            raise isolation.Interrupted

    handle = tower.blocks[-1].register_forward_pre_hook(interrupt)
    try:
        with contextlib.suppress(isolation.Interrupted):
            answer(probe.subject.model, probe.subject.inputs)
    finally:
        handle.remove()


# what these properties mean where prompts are answered
HERE: dict[str, Callable[[Probe], str]] = {
    "nothing": nothing,
    "counts": counts,
    "batch": batch,
    "permutation": permutation,
    "state": state,
}
