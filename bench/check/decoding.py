"""Properties of a language model's pass: positions, masks, and decoding with the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.check.answer import AnswerProbe, alike, holding, of_answers
from bench.check.left import left_of
from bench.check.multimodal import PAD
from bench.check.probe import Broken, Probe
from bench.core.kinds import LanguageReducer


def positions(probe: Probe) -> str:
    """Tokens that are left have their own positions, or those of a prompt without the others."""
    here = of_answers(probe)
    known = _angles(here)
    for given in here.answers:
        blocks = left_of(here, given)
        for layer in range(len(given.steps[0].angles)):
            for b, row in enumerate(blocks[layer]):
                prompt, after = (step.angles[layer] for step in given.steps[:2])
                got = torch.cat([prompt[b % len(prompt)], after[b % len(after)]])
                number = torch.cat([row.position, row.position[-1:] + 1])
                wrong = (~_rows_alike(got[-len(number) :], known[b][number])).nonzero()
                if len(wrong):
                    j = int(wrong[0])
                    raise Broken(
                        f"block {layer} has token {j} of sample {b} elsewhere than at its "
                        f"position {int(number[j])}"
                    )
    tower: Any = probe.subject.towers["language"]
    renumbers = issubclass(probe.method, LanguageReducer) and probe.method.renumbers
    return "renumbered" if renumbers and tower.renumbers else ""


def _angles(probe: AnswerProbe) -> list[Tensor]:
    """For each sample (P,D): what stands for its positions 0 to P - 1 in the plain model."""
    prompt, after = (step.angles[0] for step in probe.plain.steps[:2])
    filled = probe.plain.steps[0].mask
    return [
        torch.cat([prompt[b % len(prompt)][here], after[b % len(after)]])
        for b, here in enumerate(filled)
    ]


def _rows_alike(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b).abs() < 1e-5).all(-1)


def causal(probe: Probe) -> str:
    """Every token sees all that is left before it, and nothing else."""
    here = of_answers(probe)
    for given in here.answers:
        for layer, rows in enumerate(left_of(here, given)):
            for number, step in enumerate(given.steps[:2]):
                left = torch.tensor([len(row.image) + number for row in rows])
                keys = given.steps[0].widths[layer] + number
                _masked(layer, step.masks[layer], (step.widths[layer], keys), left)
    _deaf_to_what_follows(here)
    return ""


def _masked(layer: int, mask: Tensor | None, shape: tuple[int, int], left: Tensor) -> None:
    """A block's mask is lower triangular and hides padding and empty slots, and only these."""
    queries, keys = shape
    filled = torch.arange(keys) >= keys - left[:, None]
    if mask is None:  # the kernel's own triangle, which sees all that stands before
        if not filled.all():
            raise Broken(f"block {layer} has no mask, and there is padding")
        return
    seen = (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand(len(left), -1, -1)
    before = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
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
        with holding(reducer, seen.calls):
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
    cached, free = here.answers[0], here.answer(probe.make(), cache=False, new=2)
    first, second = (free.scores[:, i] - cached.scores[:, i] for i in (0, 1))
    if not alike(free.scores[:, 0], cached.scores[:, 0]):
        raise Broken(f"the first token's scores are {float(first.abs().max()):.2g} off uncached")
    if alike(free.scores[:, 1], cached.scores[:, 1]):
        return ""
    far = float(second.abs().max())
    if not _goes_by_words(here):
        raise Broken(f"the second token's scores are {far:.2g} off without the cache")
    reducer = probe.make()
    with holding(reducer, cached.calls):
        held = here.answer(reducer, cache=False, new=2)
    if not alike(held.scores, cached.scores[:, :2]):
        far = float((held.scores - cached.scores[:, :2]).abs().max())
        raise Broken(f"the second token's scores are {far:.2g} off with the same tokens left")
    return "it goes by the words: from the second token on, with the same tokens left"


def _goes_by_words(probe: AnswerProbe) -> bool:
    """Whether another last word changes what is kept."""
    with torch.no_grad():
        one = probe.watch(probe.make())
        other = probe.watch(probe.make(), inputs=_other_word(probe))
    pairs = zip(one.calls, other.calls, strict=True)
    return any(not torch.equal(a.plan.keep, b.plan.keep) for a, b in pairs)
