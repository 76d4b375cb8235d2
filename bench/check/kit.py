"""The conformance kit: every property of a method, on every tower that it claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.check import answers, counts, hidden, isolation, meta, passes, plans, ties
from bench.check.answer import AnswerProbe
from bench.check.cases import CASES, Case, Prompted
from bench.check.probe import Broken, NotApplicable, Probe
from bench.check.settings import kept_settings
from bench.core import Reducer, Unsupported
from bench.core.kinds import VideoReducer
from bench.core.registry import method as lookup
from bench.measure.latency import using_threads

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "n/a"

PROPERTIES: dict[str, Callable[[Probe], str]] = {
    "nothing": passes.nothing,
    "counts": counts.counts,
    "protected": plans.protected,
    "mass": plans.mass,
    "indices": plans.indices,
    "batch": passes.batch,
    "ties": ties.ties,
    "permutation": passes.permutation,
    "positions": answers.positions,
    "causal": answers.causal,
    "generation": answers.generation,
    "hidden": hidden.hidden,
    "state": isolation.state,
    "deterministic": isolation.deterministic,
    "half": passes.half,
    "compile": passes.compiles,
    "gradient": passes.gradient,
    "meta": meta.meta,
}


@dataclass(frozen=True)
class Finding:
    """Whether a property holds in one case, with a line about it."""

    method: str
    property: str
    case: str
    status: str
    says: str

    def line(self) -> str:
        """All of it in one line."""
        return f"{self.method}: {self.property} {self.status} on {self.case}: {self.says}"


def check(
    method: str | type[Reducer],
    *,
    cases: Sequence[Case] = CASES,
    properties: Sequence[str] = tuple(PROPERTIES),
    **params: Any,
) -> Iterator[Finding]:
    """Try properties of a method, case by case.

    Args:
        method: a registered name, or a class.
        cases: where; default every kind of tower that is supported.
        properties: which; default all.
        **params: the method's own parameters.
    """
    cls = lookup(method) if isinstance(method, str) else method
    for case in cases:
        probe = open_case(cls, case, params)
        for name in properties:
            yield find(cls, case, probe, name)


def open_case(cls: type[Reducer], case: Case, params: Mapping[str, Any]) -> Probe | str:
    """The method on a case's model, or the line with which it refuses that model."""
    prompted = isinstance(case, Prompted)
    if isinstance(case, Prompted) and case.frames and not issubclass(cls, VideoReducer):
        return "tried on images: it does not compare frames"
    with using_threads(1), kept_settings():
        probe = (AnswerProbe if prompted else Probe)(cls, case, params)
        return _refusal(probe) or probe


def _refusal(probe: Probe) -> str:
    try:
        _ = probe.default
    except Unsupported as refusal:
        return str(refusal)
    except Exception:  # every property will meet it and say so
        return ""
    return ""


def find(cls: type[Reducer], case: Case, probe: Probe | str, name: str) -> Finding:
    """Try one property."""

    def finding(status: str, says: str) -> Finding:
        return Finding(cls.name or cls.__name__, name, case.name, status, says)

    if isinstance(probe, str):
        return finding(NOT_APPLICABLE, probe)
    holds = PROPERTIES[name]
    if isinstance(probe, AnswerProbe):
        holds = answers.HERE.get(name, holds)
    try:
        # on models as small as these more threads only wait
        with using_threads(1), kept_settings():
            return finding(OK, holds(probe))
    except NotApplicable as reason:
        return finding(NOT_APPLICABLE, str(reason))
    except Broken as wrong:
        return finding(FAILED, str(wrong))
    except Exception as error:  # a method may raise anything; the line is what its author needs
        bad = plans.misfit(probe.latest_calls)
        if bad:  # `indices` or `protected` says so
            return finding(NOT_APPLICABLE, f"no pass survives what is decided: {bad}")
        words = " ".join(str(error).split()) or "no message"
        return finding(FAILED, f"{type(error).__name__}: {words[:300]}")
