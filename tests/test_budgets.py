"""Budgets: the solved parameter is the nearest there is, and what cannot be reached is said."""

from __future__ import annotations

import pytest
import torch

import bench
from bench import budgets
from bench.errors import BenchError
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


def test_latency_is_measured_and_other_parameters_are_kept() -> None:
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
