"""Families: which adapter a model gets, one-line families, adapters of other packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import blip_models
import pytest
import tiny
import torch
import vlm_models
from torch import nn
from transformers import ViTConfig, ViTModel

import bench
from bench.core.errors import BenchError
from bench.engine import families, tower
from bench.engine.families import Adapter, adapter_for, adapters, supported
from bench.engine.families.hf import FAMILIES
from bench.engine.families.timm_vit import TimmTower


@pytest.fixture
def anew() -> Iterator[None]:
    """Adapters are looked for in this test, and again after it."""
    adapters.cache_clear()
    yield
    adapters.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, *targets: Any) -> None:
    """Let other packages name these in their metadata."""

    class Named:
        def __init__(self, target: Any) -> None:
            self.value, self.load = "theirs", lambda: target

    monkeypatch.setattr(families, "entry_points", lambda group: [Named(t) for t in targets])


def models_of_the_kit() -> dict[str, Any]:
    made = {family: build for family, (build, _) in vlm_models.MODELS.items()}
    return {**tiny.MODELS, **blip_models.MODELS, **made}


@pytest.mark.parametrize("family", models_of_the_kit())
def test_each_model_has_one_adapter(family: str) -> None:
    model = models_of_the_kit()[family]()
    knows = [a for a in adapters() if type(model).__name__ in a.classes or a.matches(model)]
    assert adapter_for(model) in knows
    assert adapter_for(model).towers(model)


def test_who_names_the_class_goes_ahead_of_who_searches_inside() -> None:
    """A LLaVA holds a CLIP, and is none."""
    model = vlm_models.llava()
    (searches,) = [a for a in adapters() if a.matches(model)]
    assert list(searches.towers(model)) == ["vision"]
    assert adapter_for(model) is not searches
    assert list(adapter_for(model).towers(model)) == ["vision", "projector", "language"]


class OneMoreModel(ViTModel):
    """A class that the table of families does not know."""


def test_a_family_of_a_known_kind_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = OneMoreModel(ViTConfig(**shape, num_hidden_layers=4, image_size=32, patch_size=4))
    with pytest.raises(BenchError, match="no adapter for .*OneMoreModel"):
        adapter_for(model)
    line = replace(FAMILIES["ViTModel"], title="One More")
    monkeypatch.setitem(FAMILIES, "OneMoreModel", line)
    assert "transformers One More" in supported()
    pixels = {"pixel_values": tiny.images(2)}
    with bench.reduced(model.eval(), "tome", r=8):
        assert bench.trace(model, **pixels).tokens["vision"][-1] == (41, 33)


class Theirs(nn.Module):
    """A model of another package, which keeps its blocks in a timm ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.timm_vit()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class TheirAdapter(Adapter):
    """Theirs."""

    supports = ("their ViT",)
    classes = ("Theirs",)

    def towers(self, model: Any) -> dict[str, tower.Tower]:
        return {"vision": TimmTower(model.inner)}


class Rival(TheirAdapter):
    """Another one for the same class."""


def test_adapters_of_other_packages(monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    module = ModuleType(__name__)
    vars(module).update(TheirAdapter=TheirAdapter, Adapter=Adapter)
    for target in (TheirAdapter, module):
        adapters.cache_clear()
        install(monkeypatch, target)
        assert "their ViT" in supported()
        assert isinstance(adapter_for(Theirs()), TheirAdapter)
        model, x = Theirs(), tiny.images(2)
        with bench.reduced(model, "tome", r=8):
            assert bench.trace(model, x).tokens["vision"][-1] == (41, 33)


def test_two_adapters_of_one_class_are_an_error(
    monkeypatch: pytest.MonkeyPatch, anew: None
) -> None:
    install(monkeypatch, TheirAdapter, Rival)
    with pytest.raises(BenchError, match="two adapters know Theirs, .*uninstall one"):
        adapter_for(Theirs())


def test_what_is_no_adapter_is_an_error(monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    install(monkeypatch, ModuleType("empty"))
    with pytest.raises(BenchError, match="'theirs' of the entry-point group .* is no subclass of"):
        supported()


def test_a_tower_knows_no_pass() -> None:
    """Not even for type checkers: it sees the protocol `Run`."""
    assert tower.__file__ is not None
    with open(tower.__file__, encoding="utf-8") as file:
        nodes = list(ast.walk(ast.parse(file.read())))
    named = [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    assert [name for name in named if name and name.startswith("bench.engine")] == []
