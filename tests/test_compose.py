"""Several methods in one model: at several layers, and one a tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bench
from bench.core import Plan, Reducer, Site, registry
from bench.core.errors import BenchError
from bench.core.registry import method
from tests import tiny

EARLY_LATE = [
    ("evit", {"keep_rate": 0.5, "layers": [0]}),
    ("tome", {"r": 6, "layers": [2, 3]}),
]


@torch.no_grad()
def test_two_methods_at_two_places() -> None:
    model, x = tiny.timm_vit(), tiny.images()
    with bench.reduced(model, EARLY_LATE):
        tokens = bench.trace(model, x).tokens["vision"]
    # 1 + 64: half of the patches stay beside the class token and the fused token
    assert [out for _, out in tokens] == [34, 34, 28, 22]


@torch.no_grad()
def test_one_method_a_tower() -> None:
    model = tiny.clip()
    kw = tiny.inputs(model)
    with bench.reduced(model, [("topk", {"keep_rate": 0.7}), ("tome", {"r": {"text": 2}})]):
        both = bench.trace(model, **kw).tokens
    with bench.reduced(model, "topk", keep_rate=0.7):
        vision = bench.trace(model, **kw).tokens["vision"]
    with bench.reduced(model, "tome", r={"text": 2}):
        text = bench.trace(model, **kw).tokens["text"]
    assert both == {"vision": vision, "text": text}


@torch.no_grad()
def test_one_of_a_list_is_the_method_itself() -> None:
    model = tiny.clip()
    kw = tiny.inputs(model)
    arguments = {"r": {"vision": 8, "text": 2}}
    with bench.reduced(model, "crossget", **arguments):
        expected = tiny.run(model, kw)
    plain = tiny.run(model, kw)
    with bench.reduced(model, [("crossget", arguments), ("tome", {"r": 0})]):
        assert torch.equal(tiny.run(model, kw), expected)
    assert torch.equal(tiny.run(model, kw), plain)
    assert not torch.equal(expected, plain)


@torch.no_grad()
def test_as_a_method_of_a_suite() -> None:
    model, x = tiny.timm_vit(), tiny.images()
    of = [{"name": name, **arguments} for name, arguments in EARLY_LATE]
    with bench.reduced(model, EARLY_LATE):
        expected = model(x)
    with bench.reduced(model, "compose", of=of):
        assert torch.equal(model(x), expected)
    plain = model(x)
    with bench.reduced(model, "compose"):
        assert torch.equal(model(x), plain)
    assert not torch.equal(expected, plain)
    assert registry.source_hash("compose", {"of": of}) != registry.source_hash("compose", {})
    assert registry.source_hash("tome", {"r": 4}) == registry.source_hash("tome")


def test_mistakes_are_said() -> None:
    model = tiny.timm_vit()
    with pytest.raises(BenchError, match="both append tokens"):
        bench.reduced(model, [("crossget", {"r": 2}), ("crossget", {"r": 3})]).__enter__()
    with pytest.raises(BenchError, match="each has its own r="):
        bench.reduced(model, EARLY_LATE, r=3).__enter__()
    with pytest.raises(BenchError, match="unknown method 'tomme'"):
        bench.reduced(model, [("tomme", {})]).__enter__()
    with pytest.raises(BenchError, match="each entry of `of`"):
        method("compose")(of=["tome"])
    assert all("forward" not in block.__dict__ for block in model.blocks)


@torch.no_grad()
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("topk", {"keep_rate": 0.5, "layers": [1]}), ("tome", {"r": 4, "layers": [1]})),
        (("evit", {"keep_rate": 0.5, "layers": [1]}), ("topk", {"keep_rate": 0.5, "layers": [1]})),
        (("tome", {"r": 8, "layers": [1, 2]}), ("evit", {"keep_rate": 0.5, "layers": [1, 2]})),
        (("tome", {"r": 8, "layers": [1]}), ("dpc-knn", {"keep_rate": 0.5, "layers": [2]})),
    ],
    ids=("pruned then merged", "fused then pruned", "merged then fused", "ahead of the next block"),
)
def test_the_second_in_a_block_sees_what_the_first_left(first: Any, second: Any) -> None:
    """Its keys are those of the tokens that are left, in their order: a plain model's own."""
    model, x = tiny.timm_vit(), tiny.images()
    seen: list[tuple[Site, Plan]] = []

    def watched(name: str) -> Reducer:
        cls = registry.method(name)
        plan = cls.plan

        def noting(self: Any, site: Site, r: int) -> Plan:
            seen.append((site, plan(self, site, r)))
            return seen[-1][1]

        return type(name, (cls,), {"plan": noting})()

    with bench.reduced(model, [(watched(name), given) for name, given in (first, second)]):
        assert model(x).isfinite().all()
    (one, plan), (two, _) = seen[:2]
    kept = plan.keep.shape[1]
    assert two.k.shape[2] == two.x.shape[1] == two.attention().shape[-1]
    expected = torch.stack([k[:, keep] for k, keep in zip(one.k, plan.keep, strict=True)])
    assert torch.equal(two.k[:, :, :kept], expected)
    if plan.extra is not None:
        made = torch.einsum("ben,bhnd->bhed", plan.extra, one.v)
        assert torch.allclose(two.v[:, :, kept:], made, atol=1e-6)
