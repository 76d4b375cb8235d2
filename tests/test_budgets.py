"""Budgets: the solved parameter is the nearest there is, and what cannot be reached is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bench
from bench.core.errors import BenchError
from bench.runs import budgets, checking, planning, spec
from tests import tiny


@pytest.mark.parametrize(("method", "knob"), [("tome", "r"), ("evit", "keep_rate")])
def test_no_neighbour_is_nearer_to_the_target(method: str, knob: str) -> None:
    model, x = tiny.timm_vit(), {"x": tiny.images(1)}
    plain = bench.count_macs(model, **x).total

    def cost(value: float) -> float:
        with bench.reduced(model, method, **{knob: value}):
            return 100 * bench.count_macs(model, **x).total / plain

    solved = budgets.solve(model, method, "60% gmacs", x)
    best = solved.params[knob]
    assert solved.percent == cost(best)
    step = 1 if knob == "r" else budgets.RATE_STEP
    for other in (best - step, best + step):
        assert abs(cost(other) - 60) >= abs(solved.percent - 60)


def test_tokens_are_the_mean_over_the_layers() -> None:
    model, x = tiny.clip(), tiny.inputs(tiny.clip(), 1)
    solved = budgets.solve(model, "tome", "50% tokens", x)
    with bench.reduced(model, "tome", **solved.params):
        vision = bench.trace(model, **x).tokens["vision"]
    assert 100 * sum(out for _, out in vision) / sum(65 for _ in vision) == solved.percent
    assert abs(solved.percent - 50) < 3


def test_a_model_without_values_will_do() -> None:
    with torch.device("meta"):
        model = tiny.timm_vit()
    on_cpu = budgets.solve(tiny.timm_vit(), "tome", "60% gmacs", {"x": tiny.images(1)})
    assert budgets.solve(model, "tome", "60% gmacs", {"x": tiny.images(1).to("meta")}) == on_cpu


def test_a_latency_is_the_inverse_of_a_speed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny.timm_vit(), {"x": tiny.images(1)}
    # as fast as there are few tokens left: 2.5 times at a keep rate of 0.4
    speedup = lambda model, method, params, inputs: 1 / params["keep_rate"]  # noqa: E731
    monkeypatch.setattr(budgets, "_speedup", speedup)
    solved = budgets.solve(model, "evit", "40% latency", x)
    assert solved.params == {"keep_rate": 0.4} and solved.percent == pytest.approx(40)


def test_latency_is_measured_and_other_parameters_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed = budgets.paired

    def paired(*sides: Callable[[], Any], **options: Any) -> Any:
        """Time both sides, and answer by their work: times jump where something else runs."""
        pair, work = timed(*sides, **options), []
        for run in sides:
            with FlopCounterMode(display=False) as counter:
                run()
            work.append(counter.get_total_flops())
        return replace(pair, speedup=replace(pair.speedup, median=work[0] / work[1]))

    monkeypatch.setattr(budgets, "paired", paired)
    model, x = tiny.timm_vit(img_size=64), {"x": tiny.images(8, 64)}
    params = {"fuse": False, "layers": [0]}
    solved = budgets.solve(model, "evit", "60% latency", x, params)
    assert solved.params.items() >= params.items()
    assert 0 < solved.percent < 100


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("half the gmacs", "write a percentage of gmacs, tokens, latency"),
        ("50% flops", "write a percentage"),
        ("0% gmacs", "above 0 and at most 100"),
        ("130% gmacs", "above 0 and at most 100"),
        (
            "1% gmacs",
            r"evit reaches \d+\.\d to 100.0 % of the gmacs .* 1 % is out of reach: earlier",
        ),
    ],
)
def test_what_cannot_be_is_said(target: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        budgets.solve(tiny.timm_vit(), "evit", target, {"x": tiny.images(1)})


def test_none_has_nothing_to_solve() -> None:
    with pytest.raises(BenchError, match="removes nothing"):
        budgets.solve(tiny.timm_vit(), "none", "50% gmacs", {"x": tiny.images(1)})


SUITE = {
    "name": "budgeted",
    "models": [{"name": "embedded:vit-fashion", "tasks": ["cost"]}],
    "methods": [
        {"name": "tome", "budget": ["60% gmacs", "1% gmacs"]},
        {"name": "dynamicvit", "budget": "60% gmacs"},
    ],
}


def test_a_suite_solves_once_and_says_what_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, file = spec.parse(SUITE, spec.Options()), tmp_path / "budgets.json"
    checking.check(suite, spec.Options())
    plan = planning.plan(suite, "here", file)
    baseline, reached, refused, learned = plan.cells
    assert baseline.cell.params == {} and baseline.refused is None
    assert set(reached.cell.params) == {"r"} and reached.cell.label.startswith("tome r=")
    assert refused.refused is not None and "1 % is out of reach" in refused.refused
    assert set(learned.cell.params) == {"keep_rate"}  # not the random weights it was solved with
    monkeypatch.setattr(budgets, "solve", None)
    again = planning.plan(suite, "here", file)
    assert [p.key for p in again.cells] == [p.key for p in plan.cells]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "tome", "budget": "half"}, "write a percentage"),
        ({"name": "tome", "budget": "50% gmacs", "r": 4}, "says what r is: give one"),
    ],
)
def test_a_suite_with_a_wrong_budget_is_refused(entry: dict[str, Any], said: str) -> None:
    suite = spec.parse({**SUITE, "methods": [entry]}, spec.Options())
    with pytest.raises(BenchError, match=said):
        checking.check(suite, spec.Options())
