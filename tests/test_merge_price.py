"""A merge has one price, whether it is done by indices or by a matrix, with values or without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import tiny
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

import bench
from bench.check import multimodal
from bench.core import Plan, Reducer, Site
from bench.core.learner import needs_training
from bench.core.registry import methods
from bench.measure.counts import MacCount
from bench.measure.macs import count_macs
from bench.models.noise import noise

B, N, C = 2, 8, 4


class Applied(nn.Module):
    """A plan, as a model that can be counted."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def forward(self, x: Tensor) -> Tensor:
        return self.plan.apply(x, torch.ones_like(x[..., :1]))[0]


def rows(*members: tuple[int, ...]) -> Tensor:
    """(B,E,N) means of these tokens."""
    weights = torch.zeros(B, len(members), N)
    for row, own in enumerate(members):
        weights[:, row, list(own)] = 1 / len(own)
    return weights


def each(*indices: int) -> Tensor:
    """(B,...) the same in each sample."""
    return torch.tensor(indices).expand(B, -1)


# the same merge by indices and by a matrix, and how many tokens disappear in it
ALL_GO = (
    Plan(each(0, 2, 3), src=each(1, 4, 5, 6, 7), dst=each(1, 1, 2, 2, 2)),
    Plan(each(0), extra=rows((2, 1, 4), (3, 5, 6, 7))),
    5,
)
SOME_ARE_DROPPED = (
    Plan(each(0, 2, 3), src=each(1, 5), dst=each(1, 2)),
    Plan(each(0), extra=rows((2, 1), (3, 5)), members=4),
    2,
)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("merge", [ALL_GO, SOME_ARE_DROPPED], ids=["all", "some"])
def test_the_same_merge_costs_the_same_by_indices_and_by_a_matrix(merge: Any, device: str) -> None:
    indices, matrix, gone = merge
    x = torch.randn(B, N, C)
    torch.testing.assert_close(Applied(indices)(x), Applied(matrix)(x))
    for plan in (indices, matrix):
        count = count_macs(Applied(on(plan, device)), x.to(device))
        assert count.total == B * gone * C and count.by_op == {"merge": B * gone * C}


def test_fvcore_has_two_prices_for_it() -> None:
    """Which is why counts under reduction are not its: it sees operators, not what they are for."""
    indices, matrix, _ = ALL_GO
    theirs = [
        FlopCountAnalysis(Applied(plan), torch.randn(B, N, C)).unsupported_ops_warnings(False)
        for plan in (indices, matrix)
    ]
    assert [count.by_operator().get("matmul", 0) for count in theirs] == [0, B * 2 * N * C]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_soft_assignment_costs_its_product(device: str) -> None:
    weights = torch.rand(B, 3, N).softmax(-1)
    soft = Plan(each(0), extra=weights, soft=True)
    count = count_macs(Applied(on(soft, device)), torch.randn(B, N, C).to(device))
    assert count.by_op == {"merge": B * 3 * N * C}
    mixed = replace(soft, src=each(1, 2), dst=each(0, 0))
    assert mixed.macs(torch.randn(B, N, C)) == B * (2 + 3 * N) * C


def test_tokens_that_are_dropped_cost_nothing() -> None:
    count = count_macs(Applied(Plan(each(0, 3, 5))), torch.randn(B, N, C))
    assert count.total == 0 and count.by_op == {}


def on(plan: Plan, device: str) -> Plan:
    moved = {k: v.to(device) for k, v in vars(plan).items() if isinstance(v, Tensor)}
    return replace(plan, **moved)


@dataclass(frozen=True)
class SumsUp(Reducer):
    """The last tokens become one, by indices or by a matrix."""

    by_matrix: bool = False

    before: ClassVar[bool] = True
    towers: ClassVar[tuple[str, ...]] = ("vision", "projector", "language")
    max_share: ClassVar[float] = 1.0

    def plan(self, site: Site, r: int) -> Plan:
        fixed, free = site.split()
        stay, gone = free[:, : -r - 1], free[:, -r - 1 :]
        first = torch.cat([fixed, stay], 1)
        if not self.by_matrix:
            keep = torch.cat([first, gone[:, :1]], 1)
            to = torch.full_like(gone[:, 1:], keep.shape[1] - 1)
            return Plan(keep, gone[:, 1:], to)
        weights = torch.zeros_like(site.x[..., 0]).scatter(1, gone, 1 / (r + 1))
        return Plan(first, extra=weights[:, None])


WHERE = {"vision": [0, 5, 0, 0], "projector": [5], "language": [0, 5]}


@pytest.mark.parametrize("tower", WHERE)
@pytest.mark.parametrize("build", [multimodal.llava, multimodal.qwen2_vl])
def test_a_pass_costs_the_same_either_way_and_says_what_merging_cost(
    tower: str, build: Any
) -> None:
    model = build(blocks=2)
    counts: list[MacCount] = []
    for by_matrix in (False, True):
        with bench.reduced(model, SumsUp(by_matrix), r={tower: WHERE[tower]}):
            counts.append(count_macs(model, **noise(model, words=3)))
    a, b = counts
    width = 32 * (4 if tower == "projector" and build is multimodal.qwen2_vl else 1)
    assert a.by_op["merge"] == b.by_op["merge"] == a.reduction == b.reduction == 5 * width
    assert a.total == b.total


def test_the_methods_pay_it() -> None:
    model, images = tiny.timm_vit(), tiny.images(3)
    with bench.reduced(model, "tome", r=7):
        merged = count_macs(model, images)
    assert merged.by_op["merge"] == 3 * 4 * 7 * 32
    with bench.reduced(model, "evit", keep_rate=0.5, layers=[1]):
        fused = count_macs(model, images)
    assert fused.by_op["merge"] == 3 * 31 * 32  # 32 of 64 patches become one
    assert fused.reduction_by_module["blocks.1"] == fused.reduction >= fused.by_op["merge"]
    with bench.reduced(model, "topk", keep_rate=0.5, layers=[1]):
        assert "merge" not in count_macs(model, images).by_op


def test_sparsevlm_pays_for_what_it_recycles_not_for_what_it_drops() -> None:
    model = multimodal.llava(blocks=2)
    with bench.reduced(model, "sparsevlm", keep_rate={"language": 0.5}, layers={"language": [1]}):
        count = count_macs(model, **noise(model, words=3))
    recycled, clusters = int(0.3 * 18) + 1, 1
    assert count.by_op["merge"] == (recycled - clusters) * 32


def test_dense_assignments_are_declared() -> None:
    dense = {"patchmerger": {"vision": 0.5}, "prumerge": {"projector": 0.5}}
    model = multimodal.llava(blocks=2)
    for name, rate in dense.items():
        cls = methods()[name]
        params: dict[str, Any] = (
            {"queries": "random"} if needs_training(cls) else {"adaptive": False}
        )
        with bench.reduced(model, name, keep_rate=rate, **params):
            count = count_macs(model, **noise(model, words=3))
        assert count.by_op["merge"] >= 18 * 36 * 32  # tokens made x tokens x channels
