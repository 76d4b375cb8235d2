"""An answer of a multimodal language model, and what its blocks got on the way, noted by hooks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.check.cases import Case, Inputs
from bench.check.multimodal import IMAGE, VIDEO
from bench.check.probe import Call, NotApplicable, Probe, Seen
from bench.core import Plan, Reducer, Site
from bench.core.kinds import LanguageReducer
from bench.engine.families import adapter_for
from bench.engine.families.t5 import EncoderTower
from bench.engine.masks import visible
from bench.engine.tower import override

NEW = 3  # tokens of an answer


@dataclass
class Step:
    """One pass of the language model: over the prompt, or over the next token.

    Attributes:
        embeds: (B,N,C) what it was given; rows of NaN stand for what an earlier tower removed.
        mask: (B,N) False in padding.
        widths: how many tokens each block's attention got.
        masks: its mask, block by block.
        angles: (B,M,D) what tells it positions, block by block; of a table of positions one entry.
        pairs: (B,H,M,M) the bias by which an encoder knows positions, block by block.
    """

    embeds: Tensor
    mask: Tensor
    widths: list[int] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    angles: list[Tensor] = field(default_factory=list)
    pairs: list[Tensor] = field(default_factory=list)


@dataclass
class Answer:
    """Tokens (B,T), their scores (B,T,V), the length of each block's cache, the passes.

    Where an encoder reads the prompt, the cache is what the decoder's blocks read of it.
    """

    tokens: Tensor
    scores: Tensor
    caches: list[int]
    steps: list[Step]
    seen: Seen | None = None  # what the method did


def answer(model: Any, inputs: Inputs, *, cache: bool = True, new: int = NEW) -> Answer:
    """Answer greedily, and note what the blocks get."""
    with torch.no_grad(), _noting(adapter_for(model).towers(model)["language"]) as steps:
        out = model.generate(
            **inputs,
            max_new_tokens=new,
            do_sample=False,
            use_cache=cache,
            suppress_tokens=[IMAGE, VIDEO],  # an answer in words, as of a trained model
            output_logits=True,
            return_dict_in_generate=True,
        )
    name = "cache" if "cache" in out else "past_key_values"  # as transformers before 5.24 has it
    kept = out[name] if cache else None
    layers = getattr(kept, "cross_attention_cache", kept).layers if kept is not None else ()
    lengths = [layer.keys.shape[2] for layer in layers if layer.keys is not None]
    return Answer(out.sequences[:, -new:], torch.stack(out.logits, 1), lengths, steps)


@contextlib.contextmanager
def _noting(tower: Any) -> Iterator[list[Step]]:
    steps: list[Step] = []

    def begin(_: nn.Module, args: Any, kw: Mapping[str, Any]) -> None:
        x, mask = kw.get("inputs_embeds"), kw.get("attention_mask")
        if x is None:
            x = kw["input_ids"][..., None].float()
        steps.append(Step(x.detach(), _filled(mask, x)))

    def encode(_: nn.Module, args: Any, kw: Mapping[str, Any], out: Any) -> None:
        steps[-1].widths.append(args[0].shape[1])
        steps[-1].masks.append(kw["mask"])
        steps[-1].pairs.append(out[1])

    def attend(_: nn.Module, args: Any, kw: Mapping[str, Any]) -> None:
        steps[-1].widths.append(kw["hidden_states"].shape[1])
        steps[-1].masks.append(kw.get("attention_mask"))
        if kw.get("position_embeddings") is not None:
            steps[-1].angles.append(torch.cat(kw["position_embeddings"], -1))

    def embed(_: nn.Module, args: Any, out: Tensor) -> None:
        steps[-1].angles.append(out)

    attentions = [attrgetter(tower.attn_parts[1])(block) for block in tower.blocks]
    with contextlib.ExitStack() as stack:
        stack.enter_context(tower.part.register_forward_pre_hook(begin, with_kwargs=True))
        for module in attentions:
            if isinstance(tower, EncoderTower):
                stack.enter_context(module.register_forward_hook(encode, with_kwargs=True))
            else:
                stack.enter_context(module.register_forward_pre_hook(attend, with_kwargs=True))
        if hasattr(tower.part, "embed_positions"):
            stack.enter_context(tower.part.embed_positions.register_forward_hook(embed))
        yield steps


def _filled(mask: Any, x: Tensor) -> Tensor:
    """(B,N) False in padding, by a mask of any form."""
    mask = mask["full_attention"] if isinstance(mask, dict) else mask
    if mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool)
    return (mask if mask.dim() == 2 else visible(mask)).bool()


class AnswerProbe(Probe):
    """A method on a multimodal language model."""

    def __init__(self, method: type[Reducer], case: Case, params: Mapping[str, Any]) -> None:
        """Let the model answer before the method is made."""
        super().__init__(method, case, params)
        if self.subject.answer is None:
            self.subject.answer = answer(self.subject.model, self.subject.inputs)
        self.plain: Answer = self.subject.answer

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads the prompt, and looks both ways."""
        return isinstance(self.subject.towers["language"], EncoderTower)

    @property
    def prefix(self) -> bool:
        """Whether all of a prompt is seen from everywhere in it."""
        step = self.plain.steps[0]
        mask, first = step.masks[0], int(step.mask[0].to(torch.int8).argmax())
        seen = mask is not None and mask[0, 0, first, -1]
        return bool(seen if mask is None or mask.dtype == torch.bool else seen == 0)

    @property
    def renumbers(self) -> bool:
        """Whether positions count on without gaps behind a removal."""
        tower: Any = self.subject.towers["language"]
        inside = issubclass(self.method, LanguageReducer) and self.method.renumbers
        return bool(inside and tower.renumbers)

    def answer(
        self,
        reducer: Reducer,
        budget: Mapping[str, Any] | None = None,
        inputs: Inputs | None = None,
        **how: Any,
    ) -> Answer:
        """An answer with the method at work."""
        answers: list[Answer] = []

        def run(asked: Inputs) -> Tensor:
            answers.append(answer(self.subject.model, asked, **how))
            return answers[0].scores

        seen = self.watch(reducer, None if budget is None else dict(budget), inputs, run)
        return replace(answers[0], seen=seen)

    @cached_property
    def answers(self) -> list[Answer]:
        """At the default and, where the method does not refuse it, the hard budget."""
        reducer, answers = self.make(), [self.answer(self.make())]
        if self.resizes or not (_calls(answers[0]) or decisions(answers[0])):
            return answers
        with contextlib.suppress(self.refusals):
            answers.append(self.answer(reducer, self.budget(reducer, "hard")))
        return answers


def of_answers(probe: Probe) -> AnswerProbe:
    """The probe, where there are answers.

    Raises:
        NotApplicable: there are none.
    """
    if not isinstance(probe, AnswerProbe):
        raise NotApplicable("no prompt is answered here")
    return probe


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal in float32; another kernel of attention sums in another order, block after block."""
    return torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def _calls(answer: Answer) -> Sequence[Call]:
    return answer.seen.calls if answer.seen else ()


def decisions(answer: Answer) -> Sequence[Call]:
    """What the method decided about new tokens."""
    return answer.seen.decoded if answer.seen else ()


@contextlib.contextmanager
def holding(reducer: Reducer, seen: Seen | None) -> Iterator[None]:
    """Let the method decide in each pass as it did in an earlier one, whatever it sees.

    Words that have come since at the end of the prompt stay.
    """
    assert seen is not None
    earlier = itertools.cycle(seen.calls)

    def plan(site: Site, r: int) -> Plan:
        call = next(earlier)
        n = call.site.x.shape[1]
        return _with_words(call.plan, n, site.x.shape[1] - n)

    with override(reducer, "plan", plan):
        yield


def _with_words(plan: Plan, n: int, more: int) -> Plan:
    """The plan for `n` tokens where `more` words follow."""
    B, M = plan.keep.shape
    mix, extra, size = plan.mix, plan.extra, plan.size
    if size is not None:
        size = torch.cat([size[:, :M], size.new_ones(B, more, 1), size[:, M:]], 1)
    return replace(
        plan,
        keep=torch.cat([plan.keep, torch.arange(n, n + more).expand(B, more)], 1),
        mix=mix and (F.pad(mix[0], (0, more), value=1.0), mix[1]),
        extra=None if extra is None else F.pad(extra, (0, more)),
        size=size,
    )
