"""What the properties mean where a multimodal language model answers prompts."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.check import both_ways, isolation, passes
from bench.check import counts as counted
from bench.check.answer import Answer, AnswerProbe, alike, answer, holding, of_answers
from bench.check.counts import Row, left_of
from bench.check.multimodal import PAD
from bench.check.probe import Broken, Interrupted, NotApplicable, Probe
from bench.core.kinds import Appender, DecodeReducer, InputReducer
from bench.engine.families.prefix import PrefixTower
from bench.engine.reduce import reduced


def nothing(probe: Probe) -> str:
    """With nothing to remove, the answer is the plain one, alone and in a batch."""
    here, reducer = of_answers(probe), probe.make()
    passes.nothing(probe)
    tower, budgets = probe.tower.name, [probe.budget(reducer, "nothing")]
    if not isinstance(reducer, Appender | InputReducer):  # at work, and asked for nothing
        budgets.append({"r": {tower: _none_goes}})
    one = probe.case.alone(probe.subject.inputs, 0)
    alone = answer(probe.subject.model, one)
    for budget in budgets:
        for inputs, plain in ((None, here.plain), (one, alone)):
            if not torch.equal(here.answer(probe.make(), budget, inputs).tokens, plain.tokens):
                raise Broken("removing nothing changes the answer")
    return "bit for bit"


def _none_goes(layer: int, depth: int, tokens: int, initial: int) -> int:
    return 0


def counts(probe: Probe) -> str:
    """The language model's blocks and its cache have as many tokens as are left."""
    here = of_answers(probe)
    if probe.tower.name != "language":
        counted.counts(probe)
    return "; ".join(_lengths(here, one) for one in here.answers)


def _lengths(probe: AnswerProbe, one: Answer) -> str:
    step, decoded = one.steps[0], len(one.steps) - 1
    for layer, rows in enumerate(left_of(probe, one)):
        want = max(len(row.image) for row in rows)  # no padding that every sample has
        if step.widths[layer] != want:
            raise Broken(f"block {layer} should see {want} tokens, and sees {step.widths[layer]}")
        if not probe.encodes and one.caches[layer] != want + decoded:
            raise Broken(
                f"block {layer} should have cached {want + decoded} tokens, "
                f"and has {one.caches[layer]}"
            )
    if probe.encodes and set(one.caches) != {want}:
        raise Broken(f"the decoder should read {want} tokens, and reads {one.caches}")
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


def positions(probe: Probe) -> str:
    """Tokens that are left have their own positions, or those of a prompt without the others."""
    here = of_answers(probe)
    if here.encodes:
        return both_ways.positions(here)
    for one in here.answers:
        blocks = left_of(here, one)
        for layer in range(len(one.steps[0].angles)):
            known = _angles(here, layer)
            for b, row in enumerate(blocks[layer]):
                prompt, after = (step.angles[layer] for step in one.steps[:2])
                got = torch.cat([prompt[b % len(prompt)], after[b % len(after)]])
                number = torch.cat([row.position, row.position[-1:] + 1])
                far = (got[-len(number) :] - known[b][number]).abs().amax(-1)
                if (far >= 1e-5).any():
                    j = int((far >= 1e-5).nonzero()[0])
                    raise Broken(
                        f"block {layer} has token {j} of sample {b} elsewhere than at its "
                        f"position {int(number[j])}"
                    )
    return "renumbered" if here.renumbers else ""


def _angles(probe: AnswerProbe, layer: int) -> list[Tensor]:
    """For each sample (P,D): what stands for its positions 0 to P - 1 in the plain model."""
    prompt, after = (step.angles[layer] for step in probe.plain.steps[:2])
    return [
        torch.cat([prompt[b % len(prompt)][filled], after[b % len(after)]])
        for b, filled in enumerate(probe.plain.steps[0].mask)
    ]


def causal(probe: Probe) -> str:
    """Every token sees all that is left before it, and nothing else but what its model lets it."""
    here = of_answers(probe)
    if here.encodes:
        return both_ways.seen(here)
    for one in here.answers:
        for layer, rows in enumerate(left_of(here, one)):
            for number, step in enumerate(one.steps[:2]):
                expected = torch.tensor([len(row.image) + number for row in rows])
                keys = one.steps[0].widths[layer] + number
                ahead = _ahead(here, rows, keys, number)[:, keys - step.widths[layer] :]
                _masked(layer, step.masks[layer], ahead, expected)
    if not here.prefix:
        _deaf_to_what_follows(here)
    return ""


def _ahead(probe: AnswerProbe, rows: list[Row], keys: int, decoded: int) -> Tensor:
    """(B,K,K) what may be seen: what is before a token, and what belongs together with it.

    That is the prompt, or an image, of models that look both ways there.
    """
    seen = torch.ones(keys, keys, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
    if not isinstance(probe.subject.towers["language"], PrefixTower):
        return seen
    for pairs, row in zip(seen, rows, strict=True):
        at = slice(keys - decoded - len(row.image), keys - decoded)
        pairs[: at.start] = True  # what padding sees is of no interest
        run = row.image.diff(prepend=~row.image[:1]).cumsum(0) * row.image - (~row.image).long()
        run = torch.zeros_like(run) if probe.prefix else run
        pairs[at, at] |= (run[:, None] == run) & (run >= 0)
    return seen


def _masked(layer: int, mask: Tensor | None, before: Tensor, left: Tensor) -> None:
    """A block's mask shows what is `before` (B,Q,K), and hides padding and empty slots alone."""
    queries, keys = before.shape[1:]
    filled = torch.arange(keys) >= keys - left[:, None]
    if mask is None:  # the kernel's own triangle, which sees all that stands before
        if not filled.all():
            raise Broken(f"block {layer} has no mask, and there is padding")
        return
    seen = (mask if mask.dtype == torch.bool else mask >= 0)[:, 0].expand(len(left), -1, -1)
    real = filled[:, keys - queries :, None]
    for wrong, says in (
        (seen & ~before, "lets token {1} of sample {0} see {2}, which comes later"),
        (seen & ~filled[:, None] & real, "lets token {1} of sample {0} see the empty slot {2}"),
        (~seen & before & filled[:, None] & real, "hides from token {1} of sample {0} its {2}"),
    ):
        if wrong.any():
            raise Broken(f"block {layer} " + says.format(*wrong.nonzero()[0].tolist()))


def _deaf_to_what_follows(probe: AnswerProbe) -> None:
    """With another last word and the same decisions, all that stands before is as it was."""
    model: Any = probe.subject.model

    def all_scores(inputs: Any) -> Tensor:
        return model(**inputs).logits  # type: ignore[no-any-return]

    with torch.no_grad():
        seen = probe.watch(probe.make(), run=all_scores)
        reducer = probe.make()
        with holding(reducer, seen):
            other = probe.watch(reducer, None, _other_word(probe), all_scores)
    far = float((seen.out - other.out)[:, :-1].abs().max())
    if not far < 1e-4:
        raise Broken(f"another last word changes the scores before it by {far:.2g}")


def _other_word(probe: AnswerProbe) -> dict[str, Tensor]:
    ids = probe.subject.inputs["input_ids"].clone()
    ids[:, -1] = (ids[:, -1] + 7) % 80 + 1 + PAD
    return {**probe.subject.inputs, "input_ids": ids}


def generation(probe: Probe) -> str:
    """Decoding with the cache equals decoding without it, where the prompt is reduced again.

    A method that goes by the words decides otherwise with a word more; it is held to what it
    decided first.
    """
    here = of_answers(probe)
    if issubclass(probe.method, DecodeReducer):
        raise NotApplicable("it hides cached keys, which there are none of without a cache")
    cached, free = here.answers[0], here.answer(probe.make(), cache=False, new=2)
    far = (free.scores - cached.scores[:, :2]).abs().amax((0, 2))
    if not alike(free.scores[:, 0], cached.scores[:, 0]):
        raise Broken(f"the first token's scores are {float(far[0]):.2g} off uncached")
    if alike(free.scores[:, 1], cached.scores[:, 1]):
        return ""
    if not _goes_by_words(here):
        raise Broken(f"the second token's scores are {float(far[1]):.2g} off without the cache")
    reducer = probe.make()
    with holding(reducer, cached.seen):
        held = here.answer(reducer, cache=False, new=2)
    if not alike(held.scores, cached.scores[:, :2]):
        off = float((held.scores - cached.scores[:, :2]).abs().max())
        raise Broken(f"the second token's scores are {off:.2g} off with the same tokens left")
    return "it goes by the words: from the second token on, with the same tokens left"


def _goes_by_words(probe: AnswerProbe) -> bool:
    """Whether another last word changes what is kept."""
    with torch.no_grad():
        one = probe.watch(probe.make())
        other = probe.watch(probe.make(), inputs=_other_word(probe))
    pairs = zip(one.calls, other.calls, strict=True)
    return any(not torch.equal(a.plan.keep, b.plan.keep) for a, b in pairs)


def state(probe: Probe) -> str:
    """As elsewhere; also after an answer that breaks off, and in a copy made inside."""
    here, subject = of_answers(probe), probe.subject
    isolation.state(probe)
    reducer, expected = probe.make(), here.answers[0].scores
    with (
        contextlib.suppress(Interrupted),
        reduced(subject.model, reducer, **probe.budget(reducer)),
    ):
        _break_off(here)
        if not torch.equal(answer(subject.model, subject.inputs).scores, expected):
            raise Broken("an answer that broke off changes the next one")
        twin = copy.deepcopy(subject.model)
        answer(subject.model, subject.others)  # the original is elsewhere by now
        if not torch.equal(answer(twin, subject.inputs).scores, expected):
            raise Broken("a copy of the model made inside answers otherwise")
        _break_off(here)
        raise Interrupted
    isolation.unchanged(subject)
    if not torch.equal(answer(subject.model, subject.inputs).scores, here.plain.scores):
        raise Broken("the model answers otherwise afterwards than before")
    return ""


def _break_off(probe: AnswerProbe) -> None:
    """Break an answer off at its second token, or where a decoder begins it."""
    towers: Any = probe.subject.towers
    tower = towers["decoder"] if probe.encodes else towers["language"]

    def interrupt(_: nn.Module, args: Any) -> None:
        if args[0].shape[1] == 1:
            raise Interrupted

    with (
        tower.blocks[-1].register_forward_pre_hook(interrupt),
        contextlib.suppress(Interrupted),
    ):
        answer(probe.subject.model, probe.subject.inputs)


# what these properties mean where prompts are answered
HERE: dict[str, Callable[[Probe], str]] = {
    "nothing": nothing,
    "counts": counts,
    "batch": batch,
    "permutation": permutation,
    "state": state,
}
