"""Which tokens go where: budgets at their layers and in their towers, counted by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import tiny
import torch

import bench
from bench.core import Plan, Reducer, Site
from bench.core.errors import BenchError
from bench.engine.forward import Pass


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(method: str | Reducer, **budget: Any) -> list[tuple[int, int]]:
    """Tokens before and after each of four blocks; 64 patches and a class token come in."""
    model = tiny.timm_vit()
    with bench.reduced(model, method, **budget):
        return bench.trace(model, tiny.images()).tokens["vision"]


def test_budgets_act_at_their_layers_alone() -> None:
    assert tokens("random", r=8, layers=[1, 3]) == [(65, 65), (65, 57), (57, 57), (57, 49)]
    half_at_2 = [(65, 65), (65, 65), (65, 33), (33, 33)]
    assert tokens("random", keep_rate=0.5, layers=[2]) == half_at_2
    assert tokens("random", keep_rate=0.5, layers=[0.7]) == half_at_2  # 0.7 x 4 blocks = 2.8
    assert tokens("random", keep_rate=[1.0, 0.5], layers=[0, 2]) == half_at_2
    with pytest.raises(BenchError, match=r"layers \[4\] are outside this model's blocks 0 to 3"):
        tokens("random", keep_rate=0.5, layers=[4])


def test_a_share_of_the_first_tokens_leaves_the_class_token_out() -> None:
    """0.9 of 64 patches is 57 and a bit; 0.9 of all 65 tokens would be 58 and a bit."""
    assert tokens("topk", keep_rate=0.9, layers=[1])[1] == (65, 58)


def test_a_budget_without_a_mapping_is_the_image_towers() -> None:
    model = tiny.clip()
    given = tiny.inputs(model)
    with bench.reduced(model, "tome", r=2):
        seen = bench.trace(model, **given).tokens
        assert seen["vision"] == [(65, 63), (63, 61), (61, 59), (59, 57)]
        assert model.text_model(given["input_ids"]).last_hidden_state.shape[1] == 14
    assert all(before == after for before, after in seen.get("text", []))


class FrontAtOne(Reducer):
    """Keeps the front, at block 1 unless told otherwise."""

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5, "layers": (1,)}

    def plan(self, site: Site, r: int) -> Plan:
        n = site.x.shape[1]
        return Plan(torch.arange(n - r).expand(len(site.x), -1))


def test_a_methods_own_layers_are_its_default() -> None:
    assert tokens(FrontAtOne()) == [(65, 65), (65, 33), (33, 33), (33, 33)]
    assert tokens(FrontAtOne(), keep_rate=0.75) == [(65, 65), (65, 49), (49, 49), (49, 49)]


def test_a_text_without_its_padding_is_the_same_text() -> None:
    """A causal mask of fewer tokens hides what comes later, and nothing else."""
    tower = tiny.clip().text_model
    ids = tiny.token_ids(3)[1:]  # they end two and four tokens before the last
    model = tiny.clip()
    plain = tower(ids).pooler_output
    with bench.reduced(model, FrontAtOne(), r={"text": 1}, layers=[0, 1]):
        assert bench.trace(model.text_model, ids).tokens["text"][-1] == (12, 12)
        reduced = model.text_model(ids).pooler_output
    torch.testing.assert_close(reduced, plain, atol=1e-5, rtol=1e-5)


def test_dropped_positions_show_the_mean_of_the_patches_by_size() -> None:
    """A class token (9), a patch (1) that stands for three, one (5) for itself; one is gone."""
    at_work = SimpleNamespace(
        tower=SimpleNamespace(prefix=1),
        size=torch.tensor([[[1.0], [3.0], [1.0]]]),
        slot=torch.tensor([[0, 1, 2, 1, -1, 1]]),
    )
    shown = Pass.restore(at_work, torch.tensor([[[9.0], [1.0], [5.0]]]))  # type: ignore[arg-type]
    assert shown[0, :, 0].tolist() == [9, 1, 5, 1, (3 * 1 + 5) / 4, 1]
