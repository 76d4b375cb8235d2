"""Methods in the blocks of a language model."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from sites import close, language_site, rms_norm, span, turned
from torch import Tensor

from bench.core.schedules import as_schedule
from bench.core.site import LanguageSite
from golden_checks.cases import Case
from methods.algorithms.language import raters, words_after
from methods.algorithms.set_order import in_set_order
from methods.dart import DART
from methods.fastv import FastV
from methods.pact import PACT
from methods.pyramiddrop import PyramidDrop
from methods.sparsevlm import SparseVLM
from methods.sparsevlm_plus import SparseVLMPlus
from methods.vtw import VTW, divergences, withdrawal_block


def check_fastv(case: Case) -> None:
    given, out, params, _ = case
    x, n = given["hidden_states"], params["fast_v_image_token_length"]
    image = span(params["L"], params["fast_v_sys_length"], n)
    s = language_site(x, image, given["q"], given["k"])
    close(s.attention(), given["attention"])
    close(s.anchor_attention()[image], out["image_scores"])
    for rate in (params["fast_v_attention_rank"] / n, 1 - params["fastv_r"]):
        r = as_schedule(FastV(), keep_rate=rate, layers=(2,))(2, 4, n, n)
        assert r == n - params["fast_v_attention_rank"]
    plan = FastV().plan(s, r)
    assert torch.equal(plan.keep[0], out["keep_indexs"])
    assert torch.equal(plan.keep, out["position_ids"])
    assert torch.equal(plan.apply(x, s.size)[0], out["hidden_states_kept"])


def check_pyramiddrop(case: Case) -> None:
    given, out, params, _ = case
    x, H = given["features_stage0"], params["H"]
    B, N, _ = x.shape
    starts, words = params["image_token_posi"], params["prompt_len_without_image"]
    n = first = params["image_tokens"][0]
    schedule = as_schedule(PyramidDrop(), **PyramidDrop.budget)
    for stage, layer in enumerate(params["layer_list"]):
        length = torch.tensor(words) + n
        image = torch.cat([span(N, start, n) for start in starts])
        position = torch.arange(N).expand(B, N)
        size = (position < length[:, None]).float()[..., None]
        if stage:  # the authors' padding stands at 0
            position = position * size[..., 0]

        def ahead(x: Tensor = x, at: Tensor = position, i: int = stage) -> tuple[Tensor, Tensor]:
            y = rms_norm(x, given[f"input_layernorm_weight_stage{i}"])
            both = (y @ given[f"{p}_proj_weight_stage{i}"].T for p in ("q", "k"))
            q, k = (turned(t.unflatten(2, (H, -1)).transpose(1, 2), at) for t in both)
            return q, k

        q, k = ahead()
        for a, name in ((q, "query"), (k, "key")):
            for b in range(B):
                real = slice(int(length[b]))
                close(a[b, :, real], out[f"stage{stage}.{name}_states_post_rope"][b, :, real])
        other = torch.zeros_like(x)[:, None]
        s = language_site(x, image, other, other, size=size, anchor=length - 1, ahead=ahead)
        score = replace(s, q=q, k=k).anchor_attention()
        r = schedule(layer, 32, n, first)
        plan = PyramidDrop().plan(s, r)
        for b in range(B):
            close(score[b, image[b]], out[f"stage{stage}.b{b}.image_scores"])
            kept = plan.keep[b][image[b, plan.keep[b]]]
            at = out[f"stage{stage}.b{b}.kept_visual_positions_in_stage_input"]
            assert kept.tolist() == at.tolist()
        assert out[f"stage{stage}.n_visual_in_out"].flatten()[-1] in (n, n - r)
        x, new = plan.apply(x, size)
        close(x * new, out[f"stage{stage}.features"])
        n, N = n - r, N - r
    assert n == int(first * params["image_token_ratio_list"][-1])


def check_dart(case: Case) -> None:
    given, out, params, _ = case
    x, k, n = given["layer_output_hidden_states"], given["key_states"], params["image_token_length"]
    image = span(params["L"], params["image_token_start_index"], n)

    def norm(x: Tensor) -> Tensor:
        return rms_norm(x, given["final_norm_weight"], params["final_norm_eps"])

    s = language_site(x, image, k, k, norm=norm)
    close(k.abs().sum((1, 3))[image], out["key_L1_image"])
    behind = words_after(s.protect, s.size)
    close(k.abs().sum((1, 3))[behind], out["key_L1_text"])
    pivots = torch.cat(
        [out["pivot_image_positions_topk_order"], out["pivot_text_positions_topk_order"]]
    )
    order = in_set_order(pivots[None], torch.tensor([8]))
    assert torch.equal(pivots[order[0]], out["pivot_processing_order"])
    rate = 1 - params["reduction_ratio"]
    if params["max_num_trunction"] is not None:
        rate = params["max_num_trunction"] / n
    wanted = as_schedule(DART(), keep_rate=rate, layers=(2,))(2, 4, n, n)
    r = DART().feasible(wanted, n, None)
    plan = DART().plan(s, r)
    assert torch.equal(plan.keep[0], out["keep_indexs"])
    assert torch.equal(plan.keep[0][image[0, plan.keep[0]]], out["retained_image_tokens_sorted"])
    assert torch.equal(plan.apply(x, s.size)[0], out["hidden_states_kept"])


def check_sparsevlm(case: Case) -> None:
    given, out, params, _ = case
    x, before, n = given["input_embeds"], params["v_token_start"], params["n_visual"]
    words = params["n_text_after"]
    start = language_site(x, span(x.shape[1], before, n))
    score, rates = raters(start.x, start.protect, start.size, before + words)
    close(score[:, before:], out["text_rater_scores"])
    assert (score[:, :before] == 0).all() and not rates[:, :before].any()
    where = rates[0, before:].nonzero().flatten()
    assert torch.equal(where, out["text_rater_index_rel_to_text_start"])
    if params["USE_VERSION"] == "2_0":
        sparsevlm_plus(start, case)
        return
    for stage, left in enumerate(params["sparse_token_list"]):
        q, k, x = (given[f"{name}_stage{stage}"] for name in ("q", "k", "layer_output"))
        image = span(x.shape[1], before, n)
        s = language_site(x, image, q, k, start=start)
        close(s.attention(), given[f"attention_stage{stage}"])
        close(SparseVLM().rated(s)[image], out[f"stage{stage}.relation_vis_text"][0])
        plan = SparseVLM().plan(s, n - left)
        assert torch.equal(plan.keep, out[f"stage{stage}.select_token_idx"])
        assert plan.extra is not None
        again = plan.extra[0].any(0).nonzero().flatten()
        recycled = out[f"stage{stage}.recycled_visual_positions"]
        assert torch.equal(again, recycled.sort().values + before)
        cluster = plan.extra[0].argmax(0)[recycled + before]
        assert torch.equal(cluster, out[f"stage{stage}.cluster_assignment_of_recycled"][0])
        new, size = plan.apply(x, s.size)
        merged = new[:, left + before + words :]
        close(merged, out[f"stage{stage}.merged_tokens"])
        assert int(size.sum()) == left + before + words + len(again)
        at = left + before
        placed = torch.cat([new[:, :at], merged, new[:, at : at + words]], 1)
        close(placed, out[f"stage{stage}.new_hidden_states"])
        n = left + merged.shape[1]
        assert n == int(out[f"stage{stage}.v_token_num"])


def sparsevlm_plus(start: LanguageSite, case: Case) -> None:
    given, out, params, _ = case
    n, at = params["n_visual"], torch.arange(start.x.shape[1])[None]
    method = SparseVLMPlus()
    for stage, left in enumerate(params["sparse_token_list"]):
        q, k, x = (given[f"{name}_stage{stage}"] for name in ("q", "k", "layer_output"))
        image = span(x.shape[1], params["v_token_start"], n)
        s = language_site(x, image, q, k, start=start, turned=partial(turned, position=at))
        close(method.rated(s)[image], out[f"stage{stage}.relation_vis_text"][0])
        plan = method.plan(s, n - left)
        assert torch.equal(plan.keep, out[f"stage{stage}.select_token_idx"])
        assert plan.extra is None
        assert torch.equal(plan.apply(x, s.size)[0], out[f"stage{stage}.new_hidden_states"])
        at, n = at.gather(1, plan.keep), int(out[f"stage{stage}.v_token_num"])
        assert n == left
        assert torch.equal(at, out[f"stage{stage}.new_position_ids"])


def check_vtw(case: Case) -> None:
    given, out, params, _ = case
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


def pact_site(given: dict[str, Tensor], base: float) -> LanguageSite:
    q, k, at = given["q"], given["k"], given["position_ids"]
    return language_site(
        given["hidden_states"], given["is_image"], q, k, unrotated=lambda: (q, k),
        ahead=lambda: (turned(q, at, base), turned(k, at, base)),
    )  # fmt: skip


def pact_of(config: dict[str, Any]) -> PACT:
    """The method with the authors' parameters by their own names."""
    known = {f.name for f in fields(PACT)}
    return PACT(**{k: v for k, v in config.items() if k in known})


def check_pact(case: Case) -> None:
    given, out, params, _ = case
    config, n = params["config"], params["n_image"]
    method, s = pact_of(config), pact_site(given, params["rope_base"])
    close(s.ahead()[1].transpose(1, 2).flatten(2), out["keys_used_for_distance"])
    rate = config.get("pruning_tokeep_percentage_value", 0.99)
    r = as_schedule(method, keep_rate=rate, layers=(4,))(4, 28, n, n)
    image = given["is_image"][0]
    if method.token_pruning:
        close(method.scores(s)[0, image], out["scores"])
        passed = method.scores(s)[0, image].argsort(descending=True)[: n - r].sort().values
        assert torch.equal(passed, out["kept_after_first_step"].nonzero()[:, 0])
    plan = method.plan(s, r)
    assert torch.equal(plan.keep[0], out["kept_positions"])
    x, size = plan.apply(s.x, s.size)
    close(x, out["hidden_states_reduced"])
    assert torch.equal(size[0, :, 0].long(), out["cluster_sizes"])
    torch.testing.assert_close(size[0, :, 0].log(), out["log_weights_float16"], atol=2e-3, rtol=0)
    slots = plan.slots(s.x.shape[1])[0, image]
    centres = torch.where(slots < 0, -1, plan.keep[0, slots] - int(image.nonzero()[0]))
    assert torch.equal(centres, out["cluster_centre_of_image_token"])
