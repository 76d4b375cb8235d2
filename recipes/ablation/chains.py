"""The ablation of CrossGET: from bipartite matching to the whole method, one part after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.report.data.grouping import params_key
from bench.report.data.names import setting
from recipes.ablation.studies import Params, Setting, Study

METHOD, FOIL = "crossget", "tome"  # the method that is taken apart, and the one it grew out of
OFF = {"guided_matching": False, "guided_ensemble": False}
MATCH_POINTS = 2.0  # settings whose shares of the MACs are this close cost the same


@dataclass(frozen=True)
class Part:
    """One part of the method: which setting has it and all parts before it."""

    name: str
    method: str
    variant: Params
    weight: Callable[[float], bool]


def _any(weight: float) -> bool:
    return True


def _without(weight: float) -> bool:
    return weight == 0


def _with(weight: float) -> bool:
    return weight > 0


BIPARTITE, COMPLETE, MATCHING, ENSEMBLE, LOSS = PARTS = (
    Part("bipartite matching", FOIL, {}, _any),
    Part("complete graph", METHOD, OFF, _without),
    Part("+ cross-guided matching", METHOD, {"guided_ensemble": False}, _without),
    Part("+ cross-guided ensemble", METHOD, {}, _without),
    Part("+ alignment loss", METHOD, {}, _with),
)


@dataclass(frozen=True)
class Step:
    """A part's setting; None where it was not measured."""

    part: Part
    setting: Setting | None

    @property
    def trained(self) -> bool:
        """Whether this step was fine-tuned."""
        return self.setting is not None and bool(self.setting.trained)

    @property
    def untrained(self) -> bool:
        """Whether this step was measured without training; a loss cannot be."""
        return self.part is not LOSS and self.setting is not None and bool(self.setting.untrained)


@dataclass(frozen=True)
class Chain:
    """The steps at one budget, and the settings of the foil that cost what its ends cost."""

    budget: dict[str, Any]
    steps: tuple[Step, ...]
    towers: str
    share: float | None
    matched: Setting | None  # the foil at the MACs of the whole method

    @property
    def where(self) -> str:
        """Say which budget this is."""
        share = f"{self.share:.0f} % of the MACs, " if self.share is not None else ""
        return f"{setting(self.budget)} ({share}{self.towers or 'no tower reduced'})"

    def step(self, part: Part) -> Setting | None:
        """Return the setting of a part."""
        return self.steps[PARTS.index(part)].setting

    @property
    def missing(self) -> list[str]:
        """The steps that lack a measurement, each with what it lacks."""
        gaps = []
        for step in self.steps:
            lacks = [] if step.untrained or step.part is LOSS else ["untrained"]
            lacks += [] if step.trained else ["trained"]
            if lacks:
                gaps.append(f"{step.part.name.removeprefix('+ ')} ({' and '.join(lacks)})")
        return gaps

    @property
    def is_ablation(self) -> bool:
        """Whether two steps in a row were measured alike, so that some part can be judged."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return any((a.trained and b.trained) or (a.untrained and b.untrained) for a, b in pairs)

    @property
    def is_trained(self) -> bool:
        """Whether any step was fine-tuned."""
        return any(step.trained for step in self.steps)


def chains(study: Study) -> list[Chain]:
    """Return one chain for each budget of the method, the largest share of MACs first."""
    budgets = {params_key(s.budget): s.budget for s in study.settings if s.method == METHOD}
    found = [_chain(study, budget) for budget in budgets.values()]
    return sorted(found, key=lambda c: (c.towers, -(c.share or 0.0), params_key(c.budget)))


def _chain(study: Study, budget: dict[str, Any]) -> Chain:
    steps = tuple(Step(part, _find(study, part, budget)) for part in PARTS)
    own = [step.setting for step in reversed(steps[1:]) if step.setting]
    return Chain(budget, steps, own[0].towers, own[0].share, matched(study, own[0]))


def _find(study: Study, part: Part, budget: Params) -> Setting | None:
    """Return a part's setting: untrained from any, trained only with the weight that it asks."""
    like = [
        s
        for s in study.settings
        if s.method == part.method
        and params_key(s.budget) == params_key(budget)
        and s.variant == part.variant
    ]
    right = [s for s in like if s.weight is not None and part.weight(s.weight)]
    if right:
        return max(right, key=lambda s: s.weight or 0.0)
    untrained = [s for s in like if s.untrained] if part is not LOSS else []
    return replace(untrained[0], weight=None, trained={}) if untrained else None


def matched(study: Study, target: Setting | None) -> Setting | None:
    """Return the foil's setting that costs what `target` costs; None where none comes close."""
    if target is None or target.share is None:
        return None
    near = [
        (not s.trained, abs(s.share - target.share), i)
        for i, s in enumerate(study.settings)
        if s.method == FOIL and not s.variant and s.towers == target.towers
        if s.share is not None and abs(s.share - target.share) <= MATCH_POINTS
    ]
    return study.settings[min(near)[2]] if near else None
