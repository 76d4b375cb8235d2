"""Methods in the blocks of an image encoder."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from sites import close, image_site, language_site, span
from torch import Tensor

from bench.core import Reducer, take
from bench.core.registry import method
from bench.core.schedules import as_schedule
from bench.core.site import GradualSite
from bench.engine.reduction import Reduction
from golden_checks.cases import Case
from methods.algorithms.clustering import cluster_means, density_peaks, k_medoids
from methods.algorithms.predictor import keep_scores
from methods.algorithms.ranking import ranked_by_anchor
from methods.algorithms.sampling import sample_positional
from methods.ats import ATS
from methods.diffrate import DiffRate, prune_then_merge
from methods.dpc_knn import DPCKNN
from methods.dynamicvit import DynamicViT
from methods.flowcut import FlowCut
from methods.flowcut_language import FlowCutLanguage
from methods.kmedoids import KMedoids
from methods.pitome import PiToMe
from methods.tofu import ToFu
from methods.vid_tldr import VidTLDR, objectness

# --- pruning --------------------------------------------------------------------------------------


def check_evit(case: Case) -> None:
    given, out, params, variant = case
    evit: Reducer = method("evit")(fuse=variant == "fuse")
    s = image_site(given["x"], given["q"], given["k"])
    free = s.x.shape[1] - 1
    r = as_schedule(evit, keep_rate=params["keep_rate"])(3, 12, free, free)
    assert free - r == params["left_tokens"]
    plan = evit.plan(s, r)
    assert torch.equal(plan.keep[:, 1:], out["kept_idx"])
    close(plan.apply(s.x, s.size)[0], out["x"])
    assert (plan.extra is not None) == (variant == "fuse")
    if plan.extra is not None:
        dropped = [row.nonzero().flatten() for row in plan.extra[:, 0]]
        assert torch.equal(torch.stack(dropped), out["dropped_idx"])


def check_topk(case: Case) -> None:
    given, out, params, _ = case
    topk: Reducer = method("topk")()
    s = image_site(given["x"], given["q"], given["k"])
    free = s.x.shape[1] - 1
    r = as_schedule(topk, keep_rate=params["keep_rate"])(3, 12, free, params["init_n"])
    assert free - r == params["left_tokens"]
    plan = topk.plan(s, r)
    assert torch.equal(plan.keep[:, 1:], out["kept_idx"])
    close(plan.apply(s.x, s.size)[0], out["x"])


def check_dynamicvit(case: Case) -> None:
    given, out, params, _ = case
    weights = {
        f"vision.{layer}.{key.partition('.')[2]}": value
        for stage, layer in ((0, 3), (1, 6))
        for key, value in given.items()
        if key.startswith(f"predictor{stage}.")
    }
    dynamicvit = DynamicViT(predictor=weights)
    schedule = as_schedule(dynamicvit, keep_rate=params["token_ratio"][0])
    x, position = given["x"], torch.arange(params["N"])[None]
    for stage, layer in ((0, 3), (1, 6)):
        s = image_site(x, layer=layer)
        r = schedule(layer, 12, x.shape[1] - 1, params["init_n"])
        score = keep_scores(x[:, 1:], dynamicvit.at(s))
        torch.testing.assert_close(score, out[f"stage{stage}.pred_score"], atol=1e-4, rtol=0)
        plan = dynamicvit.plan(s, r)
        x, _ = plan.apply(x, s.size)
        position = position.gather(1, plan.keep)
        assert torch.equal(position[:, 1:], out[f"stage{stage}.kept_idx"])
        torch.testing.assert_close(x, out[f"stage{stage}.x"], atol=1e-4, rtol=0)
        assert x.shape[1] - 1 == params["kept"][stage]


def check_ats(case: Case) -> None:
    given, out, params, variant = case
    x, q, k, v, policy = (given[name] for name in ("x", "q", "k", "v", "policy"))
    s = image_site(x, q, k, v, policy, whole=variant == "all")
    ats, r = ATS(drop_tokens=params["drop_tokens"]), x.shape[1] - params["n_ref_tokens"]
    plan = ats.plan(s, r)
    assert torch.equal(plan.keep, out["kept_idx"])
    selected, size = plan.apply(x, policy)
    close(selected, out["x_selected"])
    assert torch.equal(size, out["policy"])
    assert (size > 0).sum(1).flatten().tolist() == [1 + kept for kept in params["kept"]]
    unmasked = replace(s, bias=None)  # the method itself leaves empty slots out
    assert torch.equal(ats.plan(unmasked, r).keep, plan.keep)
    # rows selected after attention are the rows that the authors select inside it
    rows = (s.attention() @ v).transpose(1, 2).flatten(2)
    close(plan.apply(rows, policy)[0], out["attn_out"])


def check_ats_tokenreduction(case: Case) -> None:
    given, out, params, _ = case
    x, v = given["x"], given["v"]
    s = image_site(x, given["q"], given["k"], v)
    plan = ATS(variant="positional").plan(s, x.shape[1] - params["sample_count"])
    mask = out["mask"]
    assert torch.equal(plan.keep >= 0, mask)
    assert torch.equal(plan.keep.clamp(min=0), out["kept_idx"])
    close(plan.apply(x, s.size)[0], out["x_selected"] * mask[..., None])
    rows = (s.attention() @ v).transpose(1, 2).flatten(2)
    close(plan.apply(rows, s.size)[0], out["attn_out"] * mask[..., None])
    _, rank = sample_positional(torch.rand(1, 40), params["sample_count"])
    assert rank.shape[1] == params["number_of_sample_points"]


# --- clustering -----------------------------------------------------------------------------------


def check_dpcknn(case: Case) -> None:
    given, out, params, variant = case
    x = given["x"]
    centre, cluster = density_peaks(x[:, 1:], params["cluster_num"], params["k"])
    assert torch.equal(centre + 1, out["centre_idx"])
    assert torch.equal(cluster, out["cluster_of_patch"])
    weight = given["token_score"][..., 0].exp()
    if variant == "equal":
        weight = torch.ones_like(weight)
    s = image_site(x)
    close(cluster_means(centre, cluster, weight, *s.split()).apply(x, s.size)[0], out["x"])
    if variant == "equal":  # and so does the method itself
        whole = DPCKNN(k=params["k"]).plan(s, x.shape[1] - 1 - params["cluster_num"])
        close(whole.apply(x, s.size)[0], out["x"])


def check_kmedoids(case: Case) -> None:
    given, out, params, variant = case
    x, count, turns = given["x"], params["cluster_num"], params["iterations"]
    if variant == "weighted":
        how, seeds = {"weight_BN": given["attn"].sum((1, 2))[:, 1:]}, range(1)
    else:  # the method draws its first centre: with some seed it is the authors'
        how, seeds = {"first": params["equal_first_centre_position"] - 1}, range(500)
    medoid, cluster = k_medoids(x[:, 1:], count, turns, **how)
    assert torch.equal(medoid + 1, out["medoid_idx"])
    assert torch.equal(cluster, out["cluster_of_patch"])
    s = image_site(x, given["q"], given["k"])
    methods = (KMedoids(turns, variant == "equal", seed) for seed in seeds)
    plans = (kmedoids.plan(s, x.shape[1] - 1 - count) for kmedoids in methods)
    plan = next((p for p in plans if torch.equal(p.keep[:, 1:], out["medoid_idx"])), None)
    assert plan is not None
    close(plan.apply(x, s.size)[0], out["x"])


# --- merging --------------------------------------------------------------------------------------


def check_tofu(case: Case) -> None:
    given, out, params, strategy = case
    s = image_site(given["x"], given["k"], given["k"])
    n = s.x.shape[1]
    asked = as_schedule(ToFu(), keep_rate=params["ratio"], fixed=1)(3, 12, n - 1, n - 1)
    assert asked == params["r"] == math.floor(n - n * params["ratio"])
    plan = ToFu(strategy).plan(s, params["r"])
    assert torch.equal(plan.keep, out["prune.kept_idx"])
    close(plan.apply(s.x, s.size)[0], out["x"])
    if strategy != "prune":
        assert torch.equal(plan.slots(n), out["out_slot_of_input_if_merged"])
        assert plan.apply(s.x, s.size)[1].sum() == 2 * n


def check_pitome(case: Case) -> None:
    given, out, params, name = case
    s = image_site(given["x"], given["k"], given["k"], size=given["size"])
    n = s.x.shape[1]
    variant, metric = name.split(".")
    how = (
        {"pitome": "pitome", "pitome_bsm": "bsm-split", "bsm": "bsm"}[variant],
        params["margin"],
        params["alpha"],
        {"metric_k": "keys", "metric_x": "x"}[metric],
    )
    r = params["r_bsm" if variant == "bsm" else "r_pitome"]
    assert as_schedule(PiToMe(*how), keep_rate=params["ratio"], fixed=1)(3, 12, n - 1, n - 1) == r
    plan = PiToMe(*how).plan(s, r)
    assert torch.equal(plan.slots(n), out["out_slot_of_input"])
    x, size = plan.apply(s.x, s.size)
    close(x, out["x"])
    assert torch.equal(size, out["size"])
    if "x_mean" in out:
        plain = PiToMe(*how, weighted=False).plan(s, r)
        close(plain.apply(s.x, s.size)[0], out["x_mean"])


def check_vidtldr(case: Case) -> None:
    given, out, params, _ = case
    s = image_site(given["x"], given["q"], given["k"], size=given["size"], protected=())
    close(objectness(s), out["objectness"])
    assert torch.equal((objectness(s) > 0).long(), out["foreground"])
    plan = VidTLDR().plan(s, params["r"])
    assert plan.src is not None and plan.dst is not None
    src, order = plan.src.sort(1)
    assert torch.equal(plan.keep, out["kept_idx"])
    assert torch.equal(src, out["src_idx_sorted"])
    assert torch.equal(plan.keep.gather(1, plan.dst).gather(1, order), out["dst_of_src"])
    x, size = plan.apply(s.x, s.size)
    close(x, out["x"])
    close(size, out["size"])


def check_diffrate(case: Case) -> None:
    given, out, params, _ = case
    s = image_site(given["x"], given["q"], given["k"], size=given["size"])
    close(s.anchor_attention()[:, 1:], out["cls_attn"])
    assert torch.equal(ranked_by_anchor(s), out["sorted_idx"])
    n = s.x.shape[1]
    kept = params["prune_kept_num"], params["merge_kept_num"]
    listed = DiffRate(prune=[n - kept[0]] * s.depth).plan(s, n - kept[1])
    for plan in (prune_then_merge(s, *kept), listed):
        assert torch.equal(plan.slots(n), out["out_slot_of_input"])
        x, size = plan.apply(s.x, s.size)
        close(x, out["x"])
        close(size, out["size"])


def check_crossget(case: Case) -> None:
    """The reducer of its LLaVA; the cross token is the last."""
    given, out, params, _ = case
    N = given["x"].shape[1]
    s = image_site(given["x"], given["q"], given["k"], size=given["size"], protected=(0, N - 1))
    crossget: Reducer = method("crossget")(importance="attention")
    plan = crossget.plan(s, params["r"])
    assert torch.equal(plan.keep, out["kept_idx"])
    assert plan.src is not None and plan.dst is not None and plan.gain is not None
    src, order = plan.src.sort(1)
    assert torch.equal(src, out["src_idx_sorted"])
    assert torch.equal(plan.keep.gather(1, plan.dst).gather(1, order), out["dst_of_src"])
    assert torch.equal(plan.slots(N), out["out_slot_of_input"])
    weights = torch.stack([w.gather(1, order) / 2 for w in plan.gain], -1)
    close(weights, out["weight_of_src"])
    x, size = plan.apply(s.x, s.size)
    close(x, out["x"])
    assert torch.equal(size, out["size"])


# --- FlowCut, whose second stage is in the language model -----------------------------------------


def flowcut_site(given: dict[str, Tensor], layer: int, alive: Tensor, **more: Any) -> GradualSite:
    """What is seen ahead of block `layer` + 1 of the tokens (B,M) that are still there."""
    B, M = alive.shape
    at = alive[:, None, :, None].expand(-1, 2, -1, 8)
    k, v = (given[f"{name}_layer{layer}"].gather(2, at) for name in "kv")
    q = torch.zeros_like(k)
    q[:, :, 0] = given[f"q_cls_layer{layer}"]
    x = take(given["hidden_states"], alive)
    protect = torch.arange(M).expand(B, M) == 0
    anchor = torch.zeros(B, dtype=torch.long)
    return GradualSite(
        x, q, k, v, torch.ones(B, M, 1), protect, layer + 1, 0, anchor=anchor, **more
    )


def check_flowcut(case: Case) -> None:
    if case.name == "llm_anyres":
        flowcut_in_the_language_model(case)
        return
    given, out, params, _ = case
    depth, patches, B = params["num_layers"], params["N_incl_cls"] - 1, params["B"]
    method = FlowCut(over_batch=True)
    schedule = as_schedule(method, keep_rate=params["target_num"] / patches, layers=(-2,))
    alive, running, counts = torch.arange(patches + 1).expand(B, -1), None, []
    for layer in range(depth - 2):
        going, remaining = Reduction(method, schedule).still(
            layer + 1, depth, patches, patches, None
        )
        assert going == patches - params["target_num"]
        present = alive.shape[1] - 1
        assert present == out["patches_entering_layer"][layer]
        if present > params["target_num"]:
            before = flowcut_site(given, layer, alive, running=torch.empty(0), remaining=remaining)
            close(method.rate(before, None)[:, 1:], out[f"score_layer{layer}"])
            running = method.rate(before, running)
            if not remaining % method.every:
                plan = method.plan(replace(before, running=running), present - params["target_num"])
                alive, running = (t.gather(1, plan.keep) for t in (alive, running))
                kept = out[f"kept_patch_positions_after_layer{layer}"]
                assert torch.equal(alive[:, 1:] - 1, kept) and not plan.padded
                counts += [present - kept.shape[1]] if remaining else []
            close(running[:, 1:], out[f"cumulative_layer{layer}"])
        assert alive.shape[1] - 1 == out["patches_leaving_layer"][layer]
    assert counts == out["adaptive_prune_counts"].tolist()
    assert torch.equal(alive[:, 1:] - 1, out["kept_patch_positions"])
    assert torch.equal(take(given["hidden_states"], alive), out["tokens"])


def flowcut_in_the_language_model(case: Case) -> None:
    given, out, params, _ = case
    n, first = params["visual_token_num"], params["visual_token_pos"]
    image = span(params["L"], first, n)
    s = language_site(given["layer_output"], image, given["q"], given["k"], v=given["v"])
    method = FlowCutLanguage()
    close(method.scores(s)[image][None], out["score_last_sample"])
    plan = method.plan(s, n - params["target_num"])
    kept = plan.keep[0][image[0, plan.keep[0]]] - first
    assert torch.equal(kept[None], out["keep_indices"])
    assert torch.equal(plan.apply(s.x, s.size)[0], out["hidden_states_kept"])
