"""DynamicViT: the authors' two stages, and learning through hard decisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sites import image_site

import bench
from bench.core import Site
from bench.core.errors import BenchError
from methods.dynamicvit import DynamicViT
from tests import tiny

PATCHES = 196


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
    whole = image_site(x)
    size = whole.size.clone()
    size[:, 15:] = 0
    padded = Site(x, whole.q, whole.k, whole.v, size, whole.protect, 3, 12)
    alone = image_site(x[:, :15])
    assert torch.equal(method.plan(padded, 10).keep, method.plan(alone, 5).keep)
