"""One method on one tower: passes are run and everything the method decided is noted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bench.check.cases import Case, Inputs
from bench.check.subject import Subject
from bench.core import BenchError, Learner, Plan, Reducer, Site, Unsupported, observing
from bench.core.kinds import InputReducer
from bench.core.site import DecodeSite
from bench.engine.reduce import reduced
from bench.engine.tower import override
from bench.engine.tracing import Trace

NOTHING: dict[str, float] = {"r": 0, "keep_rate": 1.0}
# Hard on a method: uneven, and nearly everything goes. Shares leave a token even of a text.
HARD_RATE = 0.4
HARD = {  # tokens a block, of so many
    "vision": (64, [24, 23, 9, 4]),
    "text": (12, [5, 4, 1, 1]),
    "projector": (64, [50]),
    "language": (64, [0, 30, 0, 20, 0, 8, *[0] * 6]),
}


class Broken(Exception):
    """A property does not hold; the message says what is wrong."""


class NotApplicable(Exception):
    """A property means nothing here; the message says why."""


class Interrupted(Exception):
    """Something else in a program went wrong in the middle of a pass."""


def made_by(plan: Plan) -> int:
    """How many tokens a plan appends that are made of others."""
    return 0 if plan.extra is None else plan.extra.shape[1]


@dataclass
class Call:
    """One decision: what the method saw, what it was asked, what it answered."""

    site: Site
    r: int
    plan: Plan
    in_place: tuple[str, ...]  # tensors of the site that it wrote into


@dataclass
class Seen:
    """One reduced forward pass."""

    reducer: Reducer
    budget: dict[str, Any]
    out: Tensor = field(init=False)
    calls: list[Call] = field(default_factory=list)
    decoded: list[Call] = field(default_factory=list)  # decisions about new tokens of an answer
    trace: Trace = field(default_factory=Trace)
    entered: list[int] = field(default_factory=list)  # tokens of each sequence at the first block

    def reductions(self, tower: str) -> list[tuple[Call, Tensor, Tensor]]:
        """Each call with (B,N) output slots of its tokens and (B,M,1) sizes afterwards."""
        slots, sizes = self.trace.layer_slots[tower], self.trace.sizes[tower]
        if not slots:  # where the harness notes none, the plan says what it means
            sites = [(call, call.site) for call in self.calls]
            return [(c, c.plan.slots(s.x.shape[1]), c.plan.apply(s.x, s.size)[1]) for c, s in sites]
        return [(c, p[1], s[1]) for c, p, s in zip(self.calls, slots, sizes, strict=True)]


class Probe:
    """A method (class and parameters) on a case's model."""

    def __init__(self, method: type[Reducer], case: Case, params: Mapping[str, Any]) -> None:
        """Build the model; the method is made anew for every question."""
        self.method, self.params = method, dict(params)
        self.subject = Subject(case)
        self.case, self.tower = case, self.subject.tower
        self.latest: Seen | None = None

    def make(self, **more: Any) -> Reducer:
        """A new instance, with what it learns made for this model."""
        return self.make_learning(**more)[0]

    def make_learning(self, **more: Any) -> tuple[Reducer, dict[str, nn.Parameter]]:
        """A new instance, and what it learns by name."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            reducer = self.method(**{**self.params, **more})
            shapes = {n: s for n, s in self.subject.shapes.items() if n in reducer.towers}
            learned = reducer.learn(shapes) if isinstance(reducer, Learner) else {}
        return reducer, dict(learned)

    def budget(self, reducer: Reducer, kind: str = "default") -> dict[str, Any]:
        """Its "default", a "hard" one or "nothing", for this tower alone."""
        name, value = next(iter(reducer.budget.items()))
        if kind == "nothing":
            value = NOTHING[name]
        elif kind == "hard":
            out_of, counts = HARD[self.tower.name]
            hard = [n * self.subject.removable // out_of for n in counts]
            value = hard if name == "r" else HARD_RATE
        return {name: {self.tower.name: value}}

    def watch(
        self,
        reducer: Reducer,
        budget: dict[str, Any] | None = None,
        inputs: Inputs | None = None,
        run: Callable[[Inputs], Tensor] | None = None,
    ) -> Seen:
        """Run one pass and note what happens; gradients are recorded where they are switched on.

        `run` is what is run in place of the case's pass.
        """
        seen = self.latest = Seen(reducer, self.budget(reducer) if budget is None else budget)
        plan = reducer.plan

        def noting(site: Site, r: int) -> Plan:
            tensors = {n: t for n, t in vars(site).items() if isinstance(t, Tensor)}
            before = {name: t.clone() for name, t in tensors.items()}
            decision = plan(site, r)
            changed = tuple(n for n, t in tensors.items() if not torch.equal(t, before[n]))
            calls = seen.decoded if isinstance(site, DecodeSite) else seen.calls
            calls.append(Call(site, r, decision, changed))
            return decision

        with (
            override(reducer, "plan", noting),
            reduced(self.subject.model, reducer, **seen.budget),
            self.subject.counting() as seen.entered,
            observing(seen.trace),
        ):
            seen.out = (run or self.subject.run)(self.subject.inputs if inputs is None else inputs)
        return seen

    def at_first_decision(self, examine: Callable[[Reducer, Site, int], str]) -> str:
        """What `examine` says of the method, its first site and the number to remove.

        It is asked in the middle of a pass, where a site can still compute what it offers.

        Raises:
            NotApplicable: there are no plans.
        """
        self.decided()
        reducer, asked, says = self.make(), self.make(), []

        def look(site: Site, r: int) -> Plan:
            says.append(examine(asked, site, r))
            raise Interrupted

        with (
            torch.no_grad(),
            contextlib.suppress(Interrupted),
            override(reducer, "plan", look),
            reduced(self.subject.model, reducer, **self.budget(reducer)),
        ):
            self.subject.run()
        return says[0]

    @cached_property
    def default(self) -> Seen:
        """A pass at the method's default budget."""
        with torch.no_grad():
            return self.watch(self.make())

    @property
    def latest_calls(self) -> list[Call]:
        """The decisions of the latest pass, which may have broken off."""
        return self.latest.calls if self.latest else []

    @property
    def resizes(self) -> bool:
        """Whether the method makes images smaller, in place of removing tokens."""
        return issubclass(self.method, InputReducer)

    @property
    def refusals(self) -> type[BenchError]:
        """What it may raise at the hard budget: what it learned may serve the default alone."""
        return BenchError if issubclass(self.method, Learner) else Unsupported

    @cached_property
    def passes(self) -> list[Seen]:
        """Passes at the default and, unless the method refuses it, the hard budget."""
        if self.resizes or not self.default.calls:
            return [self.default]
        reducer = self.make()
        with torch.no_grad(), contextlib.suppress(self.refusals):
            return [self.default, self.watch(reducer, self.budget(reducer, "hard"))]
        return [self.default]

    def decided(self, examine: Callable[[Call], None] = lambda _: None) -> list[Seen]:
        """The passes, for properties of plans.

        Args:
            examine: looks at each decision; also at those of a pass that broke off, since a bad
                decision is why it did.

        Raises:
            NotApplicable: there are no plans.
        """
        if self.resizes:
            raise NotApplicable("it acts on the image, before there are tokens")
        try:
            passes = self.passes
        except Exception:
            for call in self.latest_calls:
                examine(call)
            raise
        for call in (call for seen in passes for call in seen.calls):
            examine(call)
        if not self.default.calls:
            raise NotApplicable("it never removes a token")
        return passes
