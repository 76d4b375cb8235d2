"""Methods inside a language model that are younger than those of `test_vlm_inside`: VTW, PACT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import vlm_models as tiny
from test_vlm_inside import cases, close, golden, language_site, span

import bench
from bench.core import BenchError
from bench.core.schedules import as_schedule
from methods.vtw import VTW, divergences, withdrawal_block

# --- VTW --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("vtw"))
def test_vtw_golden(case: str) -> None:
    given, out, params = golden("vtw", case)
    if params["stage"] == "findk":
        full, withdrawn = given["logits_full"], given["logits_withdrawn"]
        close(divergences(full, withdrawn), out["kl_mean_per_layer"])
        assert withdrawal_block(full, withdrawn, eta=params["eta"]) == int(out["k"])
        return
    x, n = given["hidden_states"], params["image_token_nums"]
    image = span(params["L"], params["system_token_nums"], n)
    method = VTW(keep_positions=params["pe_type"] == "keep")
    schedule = as_schedule(method, keep_rate=0.0, layers=(params["k"],))
    r = method.feasible(schedule(params["k"], 32, n, n), n, None)
    plan = method.plan(language_site(x, image), r)
    assert torch.equal(plan.apply(x, torch.ones(1, len(x[0]), 1))[0], out["hidden_states_after"])
    position = given["position_ids"].gather(1, plan.keep)
    if method.renumbers:
        position = given["position_ids"][:, : position.shape[1]]
    assert torch.equal(position, out["position_ids_after"])


def test_vtw_says_where_no_block_will_do() -> None:
    full = torch.tensor([[4.0, 0.0]])
    with pytest.raises(BenchError, match=r"eta=0.003; the smallest of blocks 5 to 6 is"):
        withdrawal_block(full, -full[:, None].expand(1, 2, 2))


def test_only_a_method_that_can_keep_none_is_asked_to() -> None:
    assert as_schedule(VTW(), keep_rate=0)(9, 12, 36, 36) == 36
    with pytest.raises(BenchError, match=r"keep_rate must be in \(0, 1\]"):
        as_schedule(bench.core.registry.method("fastv")(), keep_rate=0)


@torch.no_grad()
@pytest.mark.parametrize("params", [{}, {"keep_positions": False}, {"keep_rate": 0.5}])
@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT", "BLIP-2", "Qwen2-VL"])
def test_vtw_in_whole_models(family: str, params: dict[str, Any]) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(3)
    with bench.reduced(model, "vtw", **params):
        together = tiny.answers(model, batch, 4)
        each = torch.cat([tiny.answers(model, tiny.alone(batch, i), 4) for i in range(3)])
        seen = bench.trace(model, **tiny.alone(batch, 0)).tokens["language"]
    assert torch.equal(together, each)
    words = int((tiny.alone(batch, 0)["input_ids"] != tiny.IMAGE).sum())
    assert [n for n, _ in seen[3:]] == [words] * (len(seen) - 3)
