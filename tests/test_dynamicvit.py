"""DynamicViT: the authors' two stages, and learning through hard decisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bench
from bench.core import Site
from bench.core.errors import BenchError
from bench.core.schedules import as_schedule
from methods.algorithms.predictor import keep_scores
from methods.dynamicvit import DynamicViT
from tests import tiny

GOLDEN = Path(__file__).parent / "golden" / "methods" / "dynamicvit.safetensors"
PATCHES = 196


def _site(x: torch.Tensor, layer: int) -> Site:
    protect = torch.zeros(x.shape[:2], dtype=torch.bool)
    protect[:, 0] = True
    none = x[:, None, :, :0]
    return Site(x, none, none, none, torch.ones_like(x[..., :1]), protect, layer, 12)


def test_two_stages_of_the_authors() -> None:
    g = load_file(GOLDEN)
    weights = {
        f"vision.{layer}.{name.partition('.')[2]}": value
        for stage, layer in ((0, 3), (1, 6))
        for key, value in g.items()
        if (name := key.removeprefix("in.")).startswith(f"predictor{stage}.")
    }
    method = DynamicViT(predictor=weights)
    schedule = as_schedule(method, keep_rate=0.7)
    x, position = g["in.x"], torch.arange(PATCHES + 1)[None]
    for stage, layer in ((0, 3), (1, 6)):
        free = x.shape[1] - 1
        r = schedule(layer, 12, free, PATCHES)
        score = keep_scores(x[:, 1:], method.at(_site(x, layer)))
        torch.testing.assert_close(score, g[f"out.stage{stage}.pred_score"], atol=1e-4, rtol=0)
        plan = method.plan(_site(x, layer), r)
        x, _ = plan.apply(x, torch.ones_like(x[..., :1]))
        position = position.gather(1, plan.keep)
        assert torch.equal(position[:, 1:], g[f"out.stage{stage}.kept_idx"])
        torch.testing.assert_close(x, g[f"out.stage{stage}.x"], atol=1e-4, rtol=0)


def test_it_learns_which_tokens_help_and_keeps_it(tmp_path: Path) -> None:
    model = tiny.timm_vit()
    method = DynamicViT()
    learned = method.learn({"vision": (4, model.embed_dim)})
    x = tiny.images(4)
    with bench.reduced(model, method, keep_rate=0.5):
        model(x).square().sum().backward()
    used = {name for name, value in learned.items() if value.grad is not None}
    assert {name.split(".")[1] for name in used} == {"1", "2", "3"}
    assert all(learned[name].grad.abs().sum() > 0 for name in used if name.endswith("4.weight"))
    path = tmp_path / "dynamicvit.safetensors"
    save_file({f"predictor.{k}": v.detach() for k, v in learned.items()}, path)
    with torch.no_grad():
        with bench.reduced(model, method, keep_rate=0.5):
            expected = model(x)
        with bench.reduced(model, "dynamicvit", predictor=path, keep_rate=0.5):
            assert torch.equal(model(x), expected)


def test_without_a_predictor_it_refuses() -> None:
    model = tiny.timm_vit()
    refuses = pytest.raises(BenchError, match="predictor for no layer, not for vision.1")
    with refuses, bench.reduced(model, "dynamicvit", keep_rate=0.5):
        model(tiny.images(1))
    with bench.reduced(model, "dynamicvit", keep_rate=0.5, predictor="random"):
        assert model(tiny.images(1)).isfinite().all()
    with pytest.raises(BenchError, match="no file"):
        DynamicViT(predictor="missing.safetensors")


def test_empty_slots_say_nothing_to_the_others() -> None:
    weights = {f"vision.3.{k}": v for k, v in DynamicViT().learn({"vision": (12, 48)}).items()}
    weights = {k.removeprefix("vision.3."): v.detach() for k, v in weights.items()}
    method = DynamicViT(predictor=weights)
    x = torch.randn(2, 20, 48)
    whole = _site(x, 3)
    size = whole.size.clone()
    size[:, 15:] = 0
    padded = Site(x, whole.q, whole.k, whole.v, size, whole.protect, 3, 12)
    alone = _site(x[:, :15], 3)
    assert torch.equal(method.plan(padded, 10).keep, method.plan(alone, 5).keep)
