"""The conformance kit: every method passes it, and what is broken fails by its property's name."""

from __future__ import annotations

import ast
import copy
import io
import json
import os
import sys
import tokenize
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from commands import Server
from test_walls import PLAIN_WORDS, ROOT
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bench.check.cases import CASES, Case
from bench.check.kit import FAILED, NOT_APPLICABLE, OK, PROPERTIES, Finding, check
from bench.check.subject import Subject
from bench.cli import app
from bench.core import Learner, Plan, Reducer, Site, Unsupported, registry
from bench.core.kinds import Adaptive, DecodeReducer, LanguageReducer, ProjectorReducer
from bench.core.registry import methods
from bench.engine.families.decoder import LanguagePass
from bench.engine.families.language import LanguageTower
from bench.engine.forward import Pass
from bench.engine.reduce import reduced
from bench.engine.tower import original, override

VIT, TEXT, PROJECTOR, LANGUAGE = (
    next(c for c in CASES if c.name == name)
    for name in ("timm ViT", "CLIP text", "LLaVA projector", "LLaVA language")
)
CODE_LINES = 62
CHEAP = [name for name in PROPERTIES if name not in ("compile", "meta")]


shared = cache(Subject)


@pytest.fixture(autouse=True)
def _one_model_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built once for all tests but those that leave them other than they were."""
    monkeypatch.setattr("bench.check.probe.Subject", shared)


@cache
def findings(name: str) -> list[Finding]:
    return list(check(name))


@pytest.mark.parametrize("name", methods())
def test_every_method_conforms(name: str) -> None:
    failed = [finding for finding in findings(name) if finding.status == FAILED]
    assert not [finding.line() for finding in failed]


class Shortest(Reducer):
    """A good method: the tokens of least norm go."""

    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}

    def plan(self, site: Site, r: int) -> Plan:
        return Plan(self.chosen(site, self.score(site), r))

    def score(self, site: Site) -> torch.Tensor:
        return site.x.norm(dim=-1).masked_fill(site.protect, float("inf"))

    def chosen(self, site: Site, score: torch.Tensor, r: int) -> torch.Tensor:
        order = score.argsort(dim=1, descending=True, stable=True)
        return order[:, : score.shape[1] - r].sort(1).values


class PatchesTheLibrary(Shortest):
    def __init__(self) -> None:
        nn.GELU.forward = lambda self, x: x  # type: ignore[method-assign]


class DropsOneMore(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        return Plan(self.chosen(site, self.score(site), r + 1))


class PromisesTooMuch(Shortest):
    def feasible(self, r: int, tokens: int, grid: Any) -> int:
        return tokens + 1


class KeepsTooMany(Shortest, Adaptive):
    def plan(self, site: Site, r: int) -> Plan:
        return Plan(self.chosen(site, self.score(site), r - 1), padded=True)


class DropsTheClass(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        return site.x.norm(dim=-1).masked_fill(site.protect, 0)


class MovesTheClass(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        return Plan(super().plan(site, r).keep.flip(1))


class MergesIntoTheClass(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        gone = self.score(site).argsort(dim=1, stable=True)[:, :r]
        return Plan(super().plan(site, r).keep, gone, torch.zeros_like(gone))


class CountsTwice(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        return replace(super().plan(site, r), extra=torch.ones_like(site.x[:, None, :, 0]))


class StatesTooMuch(Shortest):
    factor: ClassVar[float] = 2.0

    def plan(self, site: Site, r: int) -> Plan:
        keep = super().plan(site, r).keep
        return Plan(keep, size=torch.full((*keep.shape, 1), self.factor))


class StatesHalf(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        return replace(plan, size=plan.apply(site.x, site.size)[1] / 2)


class StatesNothing(StatesTooMuch):
    factor: ClassVar[float] = 0.0


class StatesNaN(StatesTooMuch):
    factor: ClassVar[float] = float("nan")


class Sums(Shortest):
    """What is dropped is summed up in two tokens, by these weights of all, and declared so."""

    shares: ClassVar[tuple[float, float]] = (1, 0)
    said: ClassVar[dict[str, Any]] = {}

    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        gone = torch.ones_like(site.x[..., 0]).scatter(1, plan.keep, 0)
        some = gone * (gone.cumsum(1) <= 3)
        one, other = self.shares
        rows = torch.stack([one * some, other * some], 1) + torch.stack([0 * gone, gone - some], 1)
        return replace(plan, extra=rows, **self.said)


class SplitsInSecret(Sums):
    shares: ClassVar[tuple[float, float]] = (0.5, 0.5)


class SaysSoft(Sums):
    said: ClassVar[dict[str, Any]] = {"soft": True}


class SaysTooMany(Sums):
    shares: ClassVar[tuple[float, float]] = (0, 0)


class SaysTooFew(Sums):
    said: ClassVar[dict[str, Any]] = {"members": 3}


class StatesHalfOfItsSums(Sums):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        size = plan.apply(site.x, site.size)[1]
        size[:, plan.keep.shape[1] :] /= 2
        return replace(plan, size=size)


class SaysWhatIsNot(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        return replace(super().plan(site, r), soft=True)


class ComparesWhatHasValues(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        if not site.x.is_meta:
            site.x @ site.x.transpose(1, 2)
        return super().score(site)


class KeepsOneMoreWithoutValues(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        return Plan(self.chosen(site, self.score(site), r - site.x.is_meta))


class ExceedsItsBound(KeepsOneMoreWithoutValues, Adaptive):
    def plan(self, site: Site, r: int) -> Plan:
        return Plan(self.chosen(site, self.score(site), r + site.x.is_meta), padded=True)


class KeepsTwice(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        keep = super().plan(site, r).keep
        return Plan(torch.cat([keep[:, :-1], keep[:, -2:-1]], 1))


class KeepsOutside(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        return Plan(super().plan(site, r).keep + r * len(site.x))


class HidesAGap(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        keep = super().plan(site, r).keep
        return Plan(torch.cat([keep[:, :-1], torch.full_like(keep[:, :1], -1)], 1))


class MergesWhatItKeeps(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        keep = super().plan(site, r).keep
        return Plan(keep, keep[:, 2:3], torch.ones_like(keep[:, :1]))


class MergesIntoNothing(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        gone = self.score(site).argsort(dim=1, stable=True)[:, :r]
        return Plan(super().plan(site, r).keep, gone, torch.full_like(gone, 10**6))


class WeighsTheWrongTokens(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        return replace(plan, mix=(torch.ones_like(plan.keep[:, :1], dtype=torch.float), None))


class ComparesSamples(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        norm = site.x.norm(dim=-1)
        return (norm - norm.mean(0)).masked_fill(site.protect, float("inf"))


class BlendsSamples(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        return replace(plan, mix=(site.x.mean().expand(plan.keep.shape), None))


class ClaimsToIgnorePlaces(Shortest):
    equivariant: ClassVar[bool] = True

    def score(self, site: Site) -> torch.Tensor:
        return -torch.arange(site.x.shape[1]).expand(site.protect.shape)


class ClaimsPlacesMatter(Shortest):
    equivariant: ClassVar[bool] = False


class Remembers(Shortest):
    def __init__(self) -> None:
        self.first: dict[int, torch.Tensor] = {}

    def score(self, site: Site) -> torch.Tensor:
        return self.first.setdefault(site.layer, super().score(site))


class WritesIntoTheTokens(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        site.x.mul_(2)
        return super().score(site)


class SortsUnstably(Shortest):
    def chosen(self, site: Site, score: torch.Tensor, r: int) -> torch.Tensor:
        order = score.argsort(dim=1, descending=True)
        return order[:, : score.shape[1] - r].sort(1).values


class PicksUnstably(Shortest):
    def chosen(self, site: Site, score: torch.Tensor, r: int) -> torch.Tensor:
        return score.topk(score.shape[1] - r, dim=1).indices.sort(1).values


class KeepsTheLast(Shortest):
    """Stable, and the wrong way round: of tokens that tie the last stay."""

    def chosen(self, site: Site, score: torch.Tensor, r: int) -> torch.Tensor:
        return score.argsort(dim=1, stable=True)[:, r:].sort(1).values


class MergesTheLast(Shortest):
    """Merges each second token into the one ahead of it, the last pairs first."""

    max_share: ClassVar[float] = 0.4
    budget: ClassVar[dict[str, Any]] = {"r": 8}

    def plan(self, site: Site, r: int) -> Plan:
        gone = torch.arange(2, site.x.shape[1], 2)[-r:].expand(len(site.x), r)
        stays = torch.ones_like(site.protect).scatter(1, gone, False).to(torch.int8)
        keep = stays.argsort(dim=1, descending=True, stable=True)[:, :-r]
        return Plan(keep, gone, torch.searchsorted(keep, gone) - 1)


class WritesBehindTheBack(Shortest):
    """As no counter of versions sees it."""

    def score(self, site: Site) -> torch.Tensor:
        site.x.data.mul_(2)
        return super().score(site)


class SetsThreads(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        torch.set_num_threads(1)
        return super().plan(site, r)


class AllowsTF32(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        torch.backends.cuda.matmul.allow_tf32 = True
        return super().plan(site, r)


class ChangesTheDefaultType(Shortest):
    def __init__(self) -> None:
        torch.set_default_dtype(torch.float64)


class RollsDice(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        return torch.rand(site.protect.shape).masked_fill(site.protect, 2)


class DrawsInVain(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        torch.rand(1)
        return super().score(site)


class CountsItsInstances(Shortest):
    made: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.made.append(0)
        self.number = len(self.made)

    def score(self, site: Site) -> torch.Tensor:
        place = torch.arange(site.x.shape[1]) * self.number % 7
        return place.expand(site.protect.shape).masked_fill(site.protect, 7)


class GoesThroughNumpy(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        norm = torch.from_numpy(abs(site.x.detach().numpy()).sum(-1))
        return norm.masked_fill(site.protect, float("inf"))


class Overflows(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        huge = torch.full(plan.keep.shape, 1e38 if site.x.dtype == torch.bfloat16 else 1.0)
        return replace(plan, mix=(huge, None))


class OverflowsInFloat16(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        one = torch.full(plan.keep.shape, 1e3, dtype=site.x.dtype) ** 2 / 1e6
        return replace(plan, mix=(one, None))


class AnswersInFloat64(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        return replace(plan, mix=(torch.ones(plan.keep.shape, dtype=torch.float64), None))


class DecidesOtherwiseInTraining(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        sign = -1 if torch.is_grad_enabled() else 1
        return (sign * site.x.norm(dim=-1)).masked_fill(site.protect, float("inf"))


class AsksForANumber(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        sign = 1 if site.x.sum().item() > 0 else -1
        return (sign * site.x.norm(dim=-1)).masked_fill(site.protect, float("inf"))


class ActsOtherwiseCompiled(Shortest):
    def score(self, site: Site) -> torch.Tensor:
        sign = -1 if torch.compiler.is_compiling() else 1
        return (sign * site.x.norm(dim=-1)).masked_fill(site.protect, float("inf"))


@dataclass(frozen=True)
class LearnsInVain(Shortest, Learner):
    table: dict[str, nn.Parameter] = field(default_factory=dict)
    learns: ClassVar[str] = "table"

    def learn(self, shapes: Any) -> dict[str, nn.Parameter]:
        return {tower: nn.Parameter(torch.ones(shape)) for tower, shape in shapes.items()}


class HasNoSlopeAtZero(Shortest):
    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        zero = (site.x - site.x).sum(-1).gather(1, plan.keep)
        return replace(plan, mix=(1 + zero.sqrt(), None))


BROKEN = [
    ("nothing", PatchesTheLibrary, "removing nothing changes the model's answer by"),
    ("counts", DropsOneMore, "layer 1 should keep 46 tokens, and keeps 45"),
    ("counts", PromisesTooMuch, "feasible(19, 64) says 65, not 0 to 64"),
    ("counts", KeepsTooMany, "layer 1 may keep 46 tokens at most, and a sample keeps 47"),
    ("protected", DropsTheClass, "layer 1 loses protected token 0 of sample 0"),
    ("protected", MovesTheClass, "layer 1 moves the prefix tokens from places [0]"),
    ("protected", MergesIntoTheClass, "layer 1 merges a token into a protected one"),
    ("mass", CountsTwice, "layer 1 makes 111 tokens kept and 0 dropped out of 65"),
    ("mass", StatesTooMuch, "states sizes of 92 in sum, more than the 65 input tokens"),
    ("mass", StatesHalf, "layer 1 states size 0.5 for token 0, which was 1, and 0 joins it"),
    ("mass", StatesHalfOfItsSums, "states sizes of 9.5 in sum for tokens made of 19"),
    ("mass", StatesNothing, "states size 0 or less for a token that is there"),
    ("mass", StatesNaN, "states a size that is not finite"),
    ("indices", KeepsTwice, "layer 1: keep names a token twice"),
    ("indices", KeepsOutside, "layer 1: keep points outside of the 65 tokens"),
    ("indices", HidesAGap, "keep has -1 (an empty slot), and the plan does not say padded"),
    ("indices", MergesWhatItKeeps, "src names a token that is kept, or one twice"),
    ("indices", MergesIntoNothing, "dst points outside of the 46 slots kept"),
    ("indices", CountsTwice, "extra is made of a token that is kept or merged elsewhere"),
    ("indices", SplitsInSecret, "makes a token part of several, and the plan does not say soft"),
    ("indices", SaysSoft, "it says soft, and no token is part of several"),
    ("indices", SaysTooMany, "extra is made of [16, 16, 16] tokens, and [19, 19, 19] are declared"),
    ("indices", SaysTooFew, "extra is made of [19, 19, 19] tokens, and [3, 3, 3] are declared"),
    ("indices", SaysWhatIsNot, "it declares soft or members, and has no extra"),
    ("indices", WeighsTheWrongTokens, "mix[0] has shape (3, 1), not (3, 46)"),
    ("batch", ComparesSamples, "layer 1 decides keep of sample 0 otherwise alone than in a batch"),
    ("batch", BlendsSamples, "otherwise alone than in a batch"),
    ("ties", PicksUnstably, "layer 1 leaves ties to a sort that is not stable"),
    ("ties", KeepsTheLast, "layer 1 keeps the last of the tokens that tie"),
    ("ties", MergesTheLast, "layer 0 merges the last of the pairs that tie"),
    ("permutation", ClaimsToIgnorePlaces, "equivariant = True and is position-dependent"),
    ("permutation", ClaimsPlacesMatter, "equivariant = False and is equivariant"),
    ("state", Remembers, "the method remembers: a pass over other samples changes the next one"),
    ("state", WritesIntoTheTokens, "layer 1 writes into site.x"),
    ("state", WritesBehindTheBack, "layer 1 writes into site.x"),
    ("state", ChangesTheDefaultType, "it changes a setting of PyTorch's: default dtype"),
    ("deterministic", RollsDice, "it draws from torch's global random state"),
    ("deterministic", CountsItsInstances, "two passes differ by"),
    ("half", GoesThroughNumpy, "TypeError: Got unsupported ScalarType BFloat16"),
    ("half", Overflows, "what layer 2 makes of the tokens in bfloat16 is not finite"),
    ("compile", AsksForANumber, "data-dependent"),
    ("compile", ActsOtherwiseCompiled, "compiled, it keeps other tokens"),
    ("gradient", LearnsInVain, "no gradient reaches any of its 1 learned tensors"),
    ("gradient", HasNoSlopeAtZero, "the gradient of the input is not finite"),
    ("meta", AsksForANumber, "meta tensors"),
    ("meta", ComparesWhatHasValues, "MACs: "),
    ("meta", KeepsOneMoreWithoutValues, "block 1: 47 without values, 46 with them"),
    ("meta", ExceedsItsBound, "block 1: 45 without values, 46 with them"),
]


@pytest.mark.parametrize(
    ("prop", "broken", "says"), BROKEN, ids=lambda v: getattr(v, "__name__", v)
)
def test_what_is_broken_fails(
    prop: str, broken: type[Reducer], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.GELU, "forward", nn.GELU.forward)  # put back what a method patches
    if broken is PatchesTheLibrary:
        monkeypatch.setattr("bench.check.probe.Subject", Subject)
    (finding,) = check(broken, cases=[VIT], properties=[prop])
    assert finding.status == FAILED, finding
    assert says in finding.line()
    assert finding.line().startswith(f"{broken.__name__}: {prop} failed on timm ViT: ")


class Inside(Shortest, LanguageReducer):
    """A good method in a language model."""

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5, "layers": (2,)}


class Ahead(Shortest, ProjectorReducer):
    """A good method ahead of a language model."""

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}


SABOTAGE = [
    ("counts", DropsOneMore),
    ("protected", DropsTheClass),
    ("mass", StatesHalf),
    ("batch", ComparesSamples),
    ("ties", SortsUnstably),
    ("ties", KeepsTheLast),
    ("state", Remembers),
    ("state", WritesBehindTheBack),
    ("state", SetsThreads),
    ("state", AllowsTF32),
    ("deterministic", DrawsInVain),
    ("half", OverflowsInFloat16),
    ("half", AnswersInFloat64),
    ("compile", ActsOtherwiseCompiled),
    ("gradient", DecidesOtherwiseInTraining),
]
named = pytest.mark.parametrize(
    ("prop", "fault"), SABOTAGE, ids=lambda v: getattr(v, "__name__", v)
)


@named
def test_sabotage_is_named_and_nothing_else(prop: str, fault: type[Reducer]) -> None:
    tried = [name for name in PROPERTIES if name in (prop, *CHEAP)]
    found = check(fault, cases=[VIT], properties=tried)
    assert [f.property for f in found if f.status == FAILED] == [prop]


@named
@pytest.mark.parametrize(
    ("case", "good"), [(PROJECTOR, Ahead), (LANGUAGE, Inside)], ids=["projector", "language"]
)
def test_sabotage_around_a_language_model_is_named(
    prop: str, fault: type[Reducer], case: Case, good: type
) -> None:
    (finding,) = check(type(fault.__name__, (fault, good), {}), cases=[case], properties=[prop])
    assert finding.status == FAILED, finding


class DropsOneMoreInside(Inside):
    def plan(self, site: Site, r: int) -> Plan:
        return Plan(self.chosen(site, self.score(site), r + 1))


class DropsWords(Inside):
    def score(self, site: Site) -> torch.Tensor:
        return site.x.norm(dim=-1).masked_fill(site.protect, 0)


class CountsPadding(Inside):
    def score(self, site: Site) -> torch.Tensor:
        place = torch.arange(site.x.shape[1]) * 7 % 11.0
        return place.expand(site.protect.shape).masked_fill(site.protect, float("inf"))


class DoesNotRenumber(Inside):
    renumbers: ClassVar[bool] = True

    def __init__(self) -> None:
        self.renumbers = False  # type: ignore[misc]


class BlendsWordsIn(Inside):
    def plan(self, site: Site, r: int) -> Plan:
        last = torch.zeros_like(site.x[:, None, :, 0])
        last[..., -1] = 1
        return replace(super().plan(site, r), extra=last)


class TakesTurns(Inside):
    def __init__(self) -> None:
        self.turns: list[int] = []

    def score(self, site: Site) -> torch.Tensor:
        self.turns.append(1)
        norm = site.x.norm(dim=-1) * (-1) ** len(self.turns)
        return norm.masked_fill(site.protect, float("inf"))


class LeavesTheVocabulary(Inside):
    """Something that the model computes with is gone for good."""

    def plan(self, site: Site, r: int) -> Plan:
        vars(site.norm)["variance_epsilon"] = 1.0
        return super().plan(site, r)


class HidesWords(DecodeReducer):
    """Hides the first word of a prompt, in place of one of the image's keys."""

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5, "layers": (2,)}

    def plan(self, site: Site, r: int) -> Plan:
        fixed, image = site.split()
        return Plan(torch.cat([fixed[:, 1:], image[:, : image.shape[1] - r + 1]], 1))


class HidesOneMore(HidesWords):
    """Hides one more of the image's keys than it is asked to."""

    def plan(self, site: Site, r: int) -> Plan:
        fixed, image = site.split()
        return Plan(torch.cat([fixed, image[:, r + 1 :]], 1))


BROKEN_INSIDE = [
    ("counts", DropsOneMoreInside, "layer 2 should keep 28 tokens, and keeps 27"),
    ("protected", DropsWords, "layer 2 loses protected token 0 of sample 0"),
    ("batch", CountsPadding, "otherwise alone than in a batch"),
    (
        "positions",
        DoesNotRenumber,
        "block 2 has token 7 of sample 0 elsewhere than at its position 7",
    ),
    ("causal", BlendsWordsIn, "another last word changes the scores before it by"),
    ("generation", TakesTurns, "the second token's scores are"),
    ("hidden", HidesWords, "layer 2 loses protected token 0 of sample 0"),
    ("hidden", HidesOneMore, "layer 2 should show 29 of 47 keys, and shows 28"),
    (
        "state",
        LeavesTheVocabulary,
        "the model's model.language_model.norm.variance_epsilon is changed",
    ),
]


@pytest.mark.parametrize(
    ("prop", "broken", "says"), BROKEN_INSIDE, ids=lambda v: getattr(v, "__name__", v)
)
def test_what_is_broken_in_a_language_model_fails(
    prop: str, broken: type[Reducer], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken is LeavesTheVocabulary:
        monkeypatch.setattr("bench.check.probe.Subject", Subject)
    (finding,) = check(broken, cases=[LANGUAGE], properties=[prop])
    assert finding.status == FAILED, finding
    assert says in finding.says


class Renumbers(Inside):
    renumbers: ClassVar[bool] = True


def sees_all(self: Any, x: torch.Tensor, filled: Any) -> torch.Tensor:
    return torch.ones(len(x), 1, x.shape[1], x.shape[1], dtype=torch.bool)


def sees_padding(self: Any, filled: Any, right: Any = LanguagePass._with_next) -> torch.Tensor:
    return torch.ones_like(right(self, filled))


def one_too_far(self: Any, x: torch.Tensor, position: torch.Tensor, _: Any) -> dict[str, Any]:
    angles = self.part.rotary_emb(x, position_ids=position + 1)
    return {"position_ids": position, "position_embeddings": angles}


def notes_for_the_original_alone(self: Any, run: Any, stack: Any) -> None:
    embed = self.model.get_input_embeddings()

    def noting(ids: torch.Tensor) -> Any:
        run.input_ids = ids
        return original(embed)(ids)

    stack.enter_context(override(embed, "forward", noting))
    whole = partial(run.forward, original(self.part))
    stack.enter_context(override(self.part, "forward", whole))


HARNESS_AT_FAULT = [
    ("causal", LanguageTower, "causal_mask", sees_all, "lets token 0 of sample 0 see 1, which"),
    (
        "causal",
        LanguagePass,
        "_with_next",
        sees_padding,
        "token 0 of sample 0 see the empty slot 0",
    ),
    (
        "positions",
        LanguageTower,
        "rotary",
        one_too_far,
        "block 2 has token 0 of sample 0 elsewhere",
    ),
    ("state", LanguageTower, "install_more", notes_for_the_original_alone, "a copy of the model"),
]


@pytest.mark.parametrize(("prop", "owner", "name", "wrong", "says"), HARNESS_AT_FAULT)
def test_what_the_harness_gets_wrong_in_a_language_model_is_found(
    prop: str, owner: type, name: str, wrong: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    (finding,) = check(Renumbers, cases=[LANGUAGE], properties=[prop])
    assert finding.status == FAILED and says in finding.says, finding


def test_every_property_has_a_method_that_breaks_it() -> None:
    assert {prop for prop, _, _ in [*BROKEN, *BROKEN_INSIDE]} == set(PROPERTIES)


def test_a_good_method_passes_everything() -> None:
    found = list(check(Shortest, cases=[VIT, TEXT]))
    assert len(found) == 2 * len(PROPERTIES)
    answers = {"positions", "causal", "generation", "hidden"}
    excused = {(f.property, f.case) for f in found if f.status == NOT_APPLICABLE}
    assert excused == {(p, c.name) for p in answers for c in (VIT, TEXT)} | {
        ("permutation", TEXT.name)
    }
    assert {f.status for f in found} == {OK, NOT_APPLICABLE}
    says = {f.property: f.says for f in found if f.case == VIT.name}
    assert says["permutation"] == "equivariant"
    assert says["counts"] == "65 to 24; 65 to 6"


@pytest.mark.parametrize("case", [c for c in CASES if c.tower == "language"], ids=lambda c: c.name)
def test_a_good_method_inside_a_language_model_passes_everything(case: Case) -> None:
    found = list(check(Renumbers, cases=[case]))
    excused = {"permutation", "hidden"} | (set() if case.thorough else {"compile"})
    assert {f.property: f.status for f in found if f.status != OK} == dict.fromkeys(
        excused, NOT_APPLICABLE
    )
    says = {f.property: f.says for f in found}
    if case is LANGUAGE:
        assert says["counts"] == "46 to 28; 46 to 25" and says["positions"] == "renumbered"


def test_a_method_that_goes_by_the_words_is_held_to_its_decisions() -> None:
    (finding,) = check("fastv", cases=[LANGUAGE], properties=["generation"])
    assert finding.status == OK
    assert finding.says.startswith("it goes by the words")


def test_a_method_learns_by_its_own_loss() -> None:
    """Nothing attends to a cross token at the end of a causal text; its loss trains it."""
    (finding,) = check("crossget", cases=[TEXT], properties=["gradient"])
    assert (finding.status, finding.says) == (OK, "2 learned, by its own loss alone")


def test_parameters_reach_the_method() -> None:
    (finding,) = check("random", cases=[VIT], properties=["deterministic"], seed=3)
    assert (finding.status, finding.says) == (OK, "seeded")
    (finding,) = check("random", cases=[VIT], properties=["deterministic"], sead=3)
    assert finding.status == FAILED
    assert "sead" in finding.says


def test_texts_out_of_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness keeps them in order; without that the kit complains."""
    monkeypatch.setattr(Pass, "_ordered", lambda self, plan: plan)
    (finding,) = check(MovesTheClass, cases=[TEXT], properties=["indices"])
    assert finding.says == "layer 1: survivors of a text change their order"


def test_what_stays_in_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Pass.begin

    def leaving(self: Pass, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        self.tower.blocks[0].seen = len(x)  # type: ignore[assignment]
        return begin(self, x, mask)

    monkeypatch.setattr(Pass, "begin", leaving)
    monkeypatch.setattr("bench.check.probe.Subject", Subject)
    (finding,) = check(Shortest, cases=[VIT], properties=["state"])
    assert finding.says == "the model's blocks.0.seen is changed afterwards"


@pytest.mark.parametrize("case", [VIT, TEXT], ids=lambda case: case.name)
def test_a_copy_made_inside_is_reduced_alike(case: Case) -> None:
    subject = Subject(case)
    with torch.no_grad(), reduced(subject.model, "tome", r={case.tower: 3}):
        twin = copy.deepcopy(subject.model)
        expected = subject.run()
        subject.run(subject.others)  # the original is elsewhere by now
        assert torch.equal(subject.run(model=twin), expected)


def test_the_attention_tap_goes_with_the_last_run() -> None:
    first, second = Subject(TEXT), Subject(TEXT)
    names = set(ALL_ATTENTION_FUNCTIONS.keys())
    budget = {TEXT.tower: 3}
    with torch.no_grad():
        one, two = (reduced(subject.model, "tome", r=budget) for subject in (first, second))
        one.__enter__()
        two.__enter__()
        expected = second.run()
        one.__exit__(None, None, None)
        assert torch.equal(second.run(), expected)
        two.__exit__(None, None, None)
    assert set(ALL_ATTENTION_FUNCTIONS.keys()) == names


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run_bench.py", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_command_prints_a_table_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.check.table.check", lambda cls: findings(cls.name))
    assert call(monkeypatch, "fastervlm") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PROPERTIES)
    assert "method 'fastervlm' acts in a projector tower, not in 'text'" in out
    assert "every property holds wherever it applies" in out
    assert call(monkeypatch, "fastervlm", "visionzip", "--json") == 0  # which few towers suit
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 * len(PROPERTIES) * len(CASES)
    assert rows[0].keys() == {"method", "property", "case", "status", "says"}


class Refuses(Shortest):
    name: ClassVar[str] = "refuses"

    def plan(self, site: Site, r: int) -> Plan:
        raise Unsupported("not in the mood")


def test_refusing_everything_is_no_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_METHODS", {**registry.methods(), "refuses": Refuses})
    assert call(monkeypatch, "refuses") == 1
    out, err = capsys.readouterr()
    acted_in = sum(case.tower in Refuses.towers for case in CASES)
    assert f"n/a: not in the mood ({acted_in} towers)" in out
    assert "refuses: failed: it refuses every kind of tower" in err
    assert "every property holds" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "name a method, or give --all"), (["poool"], "did you mean 'pool'")],
)
def test_command_mistakes(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert says in capsys.readouterr().err


PLUGIN = '''
import torch
from bench.core import Plan, Reducer, register

@register("theirs", source="elsewhere")
class Theirs(Reducer):
    """Keeps the first tokens of a text."""
    towers = ("text",)
    def plan(self, site, r):
        n = site.x.shape[1]
        place = torch.arange(n, device=site.x.device)
        score = place.expand(len(site.x), n).masked_fill(site.protect, -1)
        return Plan(score.argsort(dim=1, stable=True)[:, : n - r].sort(1).values)

class Broken(Theirs):
    def plan(self, site, r):
        return Plan(super().plan(site, r + 1).keep)
'''


def test_methods_of_other_packages(tmp_path: Path, repo: Path, commands: Server) -> None:
    """Registered by entry point for the command line; by class or name in their own tests."""
    (tmp_path / "their_package.py").write_text(PLUGIN)
    info = tmp_path / "their_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[crossget_bench.methods]\ntheirs = their_package\n")
    (tmp_path / "test_theirs.py").write_text(
        "from bench.check.pytest_plugin import conformance\n"
        "from their_package import Broken\n"
        "test_good = conformance('theirs')\n"
        "test_broken = conformance(Broken)\n"
    )
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "text and counts"]
    for command, code, says in (
        ([repo / "run_bench.py", "check", "theirs"], 0, "every property holds"),
        (tests, 1, "counts failed on CLIP text: layer 0 should"),
    ):
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{repo}"}
        done = commands.run(*command, cwd=tmp_path, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        assert says in done.stdout
    assert "5 failed, 5 passed" in done.stdout


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bench" / "engine").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_harness_names_no_method(path: Path) -> None:
    names = set(methods()) - PLAIN_WORDS
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Constant) and node.value in names), node.value


@pytest.mark.parametrize("name", methods())
def test_a_method_is_a_short_file(name: str, repo: Path) -> None:
    path = repo / "methods" / f"{name.replace('-', '_')}.py"
    assert code_lines(path.read_text(encoding="utf-8")) <= CODE_LINES


def test_code_lines_are_counted_without_words() -> None:
    source = '"""Doc."""\n\nimport a  # why\n\ndef f():\n    """Doc.\n\n    More.\n    """\n'
    assert code_lines(source + "    # why\n    return a(\n        1\n    )\n") == 5


def code_lines(source: str) -> int:
    """Lines with code on them: no docstrings, comments, blank lines."""
    words = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    blank = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    used = {
        line
        for token in tokens
        if tokenize.tok_name[token.type] not in blank
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(used - words)
