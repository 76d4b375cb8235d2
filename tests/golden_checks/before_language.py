"""Methods between an image encoder and a language model."""

from __future__ import annotations

from typing import Any

import torch
from sites import classless, close, heads, language_site, projector_site, received_as, span
from torch import Tensor

from bench.core.schedules import as_schedule
from bench.core.site import DecodeSite, ProjectorSite
from golden_checks.cases import Case
from methods.algorithms.crops import crop_scores, runs, shared_out
from methods.algorithms.prumerge import (
    enriched,
    full_width_attention,
    left_out,
    listed_by_count,
    listed_by_ratio,
    outlier_ratio,
)
from methods.algorithms.ranking import class_attention, ranked
from methods.algorithms.video import by_frame
from methods.cdpruner import CDPruner, most_diverse, relevance
from methods.divprune import DivPrune, far_apart
from methods.dycoke import DyCoke
from methods.dycoke_decode import DyCokeDecode
from methods.evs import EVS, changes
from methods.fastervlm import FasterVLM
from methods.hiprune import HiPrune, with_neighbours
from methods.holov import HoloV
from methods.prumerge import PruMerge
from methods.scope import Scope, covering
from methods.trim import Trim, singled_out
from methods.vidcom2 import VidCom2, ordinary, scales, steadiest
from methods.visionzip import VisionZip, gathered
from methods.vispruner import VisPruner, diverse


def check_fastervlm(case: Case) -> None:
    given, out, params, _ = case
    s = projector_site(given["hidden_states"], given["q"], given["k"])
    count = params["visual_token_num"]
    close(s.attention(), given["attention"])
    close(class_attention(s)[:, 1:], out["image_attentions"])
    order = ranked(out["image_attentions"], torch.zeros_like(out["index_mask"]))
    assert torch.equal(order[:, :count], out["topk_order_patch_positions"])
    plan = FasterVLM().plan(s, params["N_incl_cls"] - 1 - count)
    assert torch.equal(plan.keep[:, 1:] - 1, out["kept_patch_positions"])
    assert torch.equal(plan.apply(s.x, s.size)[0][:, 1:], out["kept_features"])


def check_vispruner(case: Case) -> None:
    given, out, params, _ = case
    s = projector_site(given["hidden_states"], given["q"], given["k"])
    count, first = params["visual_token_num"], params["important_token_num"]
    close(class_attention(s)[:, 1:], out["image_attentions"])
    order = ranked(class_attention(s), s.protect)
    assert torch.equal(order[:, 1 : first + 1] - 1, out["important_patch_positions"])
    if first < count:
        others = diverse(s.x, order[:, first + 1 :], count - first, params["prune_per_iteration"])
        assert torch.equal(others - 1, out["diverse_patch_positions"])
    method = VisPruner(params["important_ratio"], params["prune_per_iteration"])
    plan = method.plan(s, params["N_incl_cls"] - 1 - count)
    assert torch.equal(plan.keep[:, 1:] - 1, out["kept_patch_positions"])
    assert torch.equal(plan.apply(s.x, s.size)[0][:, 1:], out["kept_features"])


def check_visionzip(case: Case) -> None:
    given, out, params, _ = case
    s = projector_site(given["hidden_states"], given["q"], given["k"])
    dominant, contextual = params["dominant_arg"], params["contextual_arg"]
    close(class_attention(s)[:, 1:] * params["H"], out["cls_attention_head_sum"])
    order = ranked(class_attention(s), s.protect)
    assert torch.equal(order[:, :dominant], out["all_indices_topk_order"])
    rest = order[:, dominant:].sort(1).values
    metric = given["metric"].gather(1, rest[..., None].expand(-1, -1, given["metric"].shape[2]))
    centre, other, to = gathered(metric, contextual)
    assert torch.equal(rest.gather(1, centre), out["contextual_target_positions"])
    assert torch.equal(rest.gather(1, other), out["merged_positions"])
    assert torch.equal(to, out["merge_assignment"])
    by_count = VisionZip(dominant, contextual)
    r = by_count.feasible(1, params["N_incl_cls"] - 1, None)
    assert params["N_incl_cls"] - r == dominant + contextual
    by_share = VisionZip(contextual_share=contextual / (dominant + contextual))
    for plan in (by_count.plan(s, r), by_count.plan(s, r + 3), by_share.plan(s, r)):
        assert torch.equal(plan.keep[:, :dominant], out["dominant_positions"])
        assert torch.equal(plan.keep[:, dominant:], out["contextual_target_positions"])
        assert plan.src is not None and torch.equal(plan.src, out["merged_positions"])
        x, size = plan.apply(s.x, s.size)
        close(x, out["tokens"])
        assert torch.equal(size[:, dominant:, 0] - 1, out["merge_counts"])
        assert (size.sum(1) == params["N_incl_cls"]).all()


def check_prumerge(case: Case, plus: bool = False) -> None:
    given, out, params, _ = case
    x, q, k = given["hidden_states"], given["q_proj_out"], given["k_proj_out"]
    n, B = params["N_incl_cls"] - 1, params["B"]
    attention = full_width_attention(q, k)[:, 1:]
    close(attention, out["cls_attn"])
    kept = out["kept_patch_positions"]
    if params["if_adaptive"]:
        ratio = outlier_ratio(attention.flatten()[None])  # pooled, as the authors do
        assert torch.equal(ratio, out["reduction_ratio"])
        order, count = listed_by_ratio(attention, ratio.expand(B), plus)
        assert count.tolist() == [kept.shape[1]] * B
        listed = order[:, : kept.shape[1]]
    else:
        first = int(n * params["reduction_ratio_arg"])
        listed = listed_by_count(attention, first, first if plus else 0)
        share = params["reduction_ratio_arg"] * (2 if plus else 1)
        by_budget = as_schedule(PruMerge(plus, adaptive=False), keep_rate=share)
        assert n - by_budget(0, 1, n, n) == out["tokens"].shape[1]
    assert torch.equal(listed, kept)
    left = left_out(listed, n)
    assert torch.equal(left, torch.zeros_like(left).scatter(1, out["non_topk_patch_positions"], 1))
    weight = enriched(attention, k[:, 1:], listed, params["k_neighbours"])
    close(weight @ x[:, 1:], out["tokens"])
    s = projector_site(x, heads(q, 2), heads(k, 2))
    if params["if_adaptive"]:
        tokens, size = PruMerge(plus, pooled=True).plan(s, 1).apply(s.x, s.size)
        close(tokens[:, 1:], out["tokens"])
        assert (size > 0).all() and (size.sum(1) == n + 1).all()
    else:
        method = PruMerge(plus, adaptive=False, k_neighbours=params["k_neighbours"])
        tokens, size = method.plan(s, n - kept.shape[1] - 1).apply(s.x, s.size)
        assert torch.equal(tokens[:, 0], x[:, 0])
        close(tokens[:, 1:], out["tokens"])
        assert (size.sum(1) == n + 1).all()
    for b in range(B):  # the method counts in each image by itself, which for one is the same
        one = projector_site(x[b : b + 1], s.q[b : b + 1], s.k[b : b + 1])
        tokens, size = PruMerge(plus).plan(one, 1).apply(one.x, one.size)
        if B == 1 and params["if_adaptive"]:
            close(tokens[:, 1:], out["tokens"])
        alone = outlier_ratio(attention[b : b + 1])
        order, count = listed_by_ratio(attention[b : b + 1], alone, plus)
        weight = enriched(attention[b : b + 1], k[b : b + 1, 1:], order[:, : int(count)], 32)
        close(tokens[:, 1:], weight @ one.x[:, 1:])
        assert (size > 0).all() and size.sum() == n + 1


def check_prumerge_plus(case: Case) -> None:
    check_prumerge(case, plus=True)


def check_divprune(case: Case) -> None:
    given, out, params, _ = case
    x, words, n = given["inputs_embeds"], params["SYS_TOKEN_LEN"], params["n_visual"]
    count = round(params["SUBSET_RATIO"] * n)
    chosen = far_apart(x[:, words : words + n], count)
    assert torch.equal(chosen[0], out["selected_greedy_order"])
    s = language_site(x, span(x.shape[1], words, n))
    schedule = as_schedule(DivPrune(), keep_rate=params["SUBSET_RATIO"], layers=(0,))
    assert schedule(0, 32, n, n) == n - count
    plan = DivPrune().plan(s, n - count)
    assert torch.equal(plan.keep[0], out["keep_indexs"])
    assert torch.equal(plan.apply(s.x, s.size)[0], out["new_input_embeds"])


def check_hiprune(case: Case) -> None:
    if case.name.startswith("qwen"):
        for joins in (1, 4):  # patches that a token joins
            hiprune_of_qwen(case, joins)
        return
    given, out, params, _ = case
    x = given["hidden_states"]
    middle = projector_site(x, given["q_object_layer"], given["k_object_layer"])
    s = projector_site(
        x, given["q_deep_layer"], given["k_deep_layer"], further=(middle,), grid=(24, 24)
    )
    close(middle.received()[:, 1:], out["object_layer_global_attention"])
    late = s.received()[:, 1:].scatter_add(
        1, near := out["anchor_and_buffer_positions"], -torch.ones_like(near, dtype=s.x.dtype)
    )
    close(late, out["deep_layer_global_attention_after_inplace_minus1"])
    assert torch.equal(
        with_neighbours(out["anchor_positions_topk_order"], 24, 24).unique()[None], near
    )
    method = HiPrune(params["HIPRUNE_ALPHA"], params["HIPRUNE_OBJECT_LAYER"])
    assert method.also_reads(24) == (8,)
    kept = params["HIPRUNE_RETENTION"] // params["B"]
    plan = method.plan(s, 576 - kept)
    assert torch.equal(plan.keep[:, 1:] - 1, out["kept_patch_positions"])


def hiprune_of_qwen(case: Case, joins: int) -> None:
    given, out, params, _ = case
    late, middle = given["deep_layer_attention"], given["object_layer_attention"]
    further = (classless(*received_as(middle, joins), joins=joins),)
    grid = (params["merged_grid_h"], params["merged_grid_w"])
    s = classless(*received_as(late, joins), joins=joins, grid=grid, further=further)
    close(s.received()[0] * len(late) * joins, late)
    plan = HiPrune(params["HIPRUNE_ALPHA"], recount=True).plan(
        s, len(late) - params["visual_token_num"]
    )
    assert torch.equal(plan.keep[0][plan.keep[0] >= 0], out["kept_positions"])


def attending(x: Tensor, row: Tensor, **more: Any) -> ProjectorSite:
    """A site whose class token attends as `row` (B,H,N) says; x (B,N,C)."""
    k = row.log()[..., None]
    return projector_site(x, torch.ones_like(k), k, scale=1.0, **more)


def check_holov(case: Case) -> None:
    given, out, params, name = case
    x, count = given["image_tokens"], params["new_image_token_num"]
    n = params["N_patches"]
    s = attending(torch.nn.functional.pad(x, (0, 0, 1, 0)), given["cls_attention"])
    close(s.anchor_attention()[:, 1:], given["cls_attention_head_mean"])
    at, there = runs(n, params["num_patches"], x.device)
    score = crop_scores(
        x[:, at], given["cls_attention_head_mean"][:, at] * there, there, params["alpha"]
    )
    close(score, out["crop_scores"])
    assert torch.equal(shared_out(score, count).long(), out["allocated_per_crop"].long())
    plan = HoloV(params["num_patches"], params["alpha"]).plan(s, n - count)
    expected = out["kept_patch_positions_in_output_order"]
    assert torch.equal(plan.keep[:, 1:] - (plan.keep[:, 1:] >= 0).long(), expected)
    tokens, size = plan.apply(s.x, s.size)
    assert torch.equal(tokens[:, 1:], out["tokens"]) and bool((size == 1).all())
    if name == "qwen_share":  # without a class token, crops are counted by the rule of Qwen
        row = given["cls_attention_head_mean"]
        x, q, k = received_as(row[0] / row.sum() * n, 1)
        assert count == int(n * params["prune_rate"])
        assert torch.equal(HoloV().plan(classless(x, q, k, scale=1.0), n - count).keep, expected)


def check_scope(case: Case) -> None:
    given, out, params, _ = case
    x, count, add = given["hidden_states"], params["tokens_per_image"], params["COMBINED"] == "add"
    s = attending(x, given["attention"][:, :, 0])
    saliency = (class_attention(s)[:, 1:] * params["H"]) ** params["ALPHA"]
    chosen, covered = covering(x[:, 1:], saliency, count, add)
    assert torch.equal(chosen + 1, out["selected_positions_greedy_order"])
    close(covered, out["coverage_after"])
    method = Scope(params["ALPHA"], "add" if add else "multiply")
    plan = method.plan(s, params["N_incl_cls"] - 1 - count)
    assert torch.equal(plan.keep[:, 1:], out["kept_positions_sorted"])
    assert torch.equal(plan.apply(s.x, s.size)[0][:, 1:], out["tokens"])


def check_cdpruner(case: Case) -> None:
    given, out, params, _ = case
    x, image, text = (given[k] for k in ("projected_features", "image_embeds", "text_embeds"))
    text = text.expand(len(x), -1, -1)
    weight = relevance(image, text, pooled=True)
    close(weight, out["relevance_after_minmax"])
    assert torch.equal(
        most_diverse(out["kernel"], params["visual_token_num"]), out["greedy_order_patch_positions"]
    )
    none = x[:, None, :, :0]
    s = classless(x, none, none, image_embeds=image, text_embeds=text)
    r = params["N_patches"] - params["visual_token_num"]
    plan = CDPruner(pooled=True).plan(s, r)
    assert torch.equal(plan.keep, out["kept_patch_positions_sorted"])
    if len(x) == 1:  # an image with a class token; alone it is the whole batch
        x, image = (torch.nn.functional.pad(t, (0, 0, 1, 0)) for t in (x, image))
        s = projector_site(x, none, none, image_embeds=image, text_embeds=text)
        assert torch.equal(CDPruner().plan(s, r).keep[:, 1:] - 1, plan.keep)


def check_trim(case: Case) -> None:
    given, out, params, _ = case
    x, text = given["patch_hidden_states"], given["text_embeds"]
    norm = torch.nn.functional.layer_norm(
        x, x.shape[-1:], given["post_layernorm_weight"], given["post_layernorm_bias"],
        params["layernorm_eps"],
    )  # fmt: skip
    image = norm @ given["visual_projection_weight"].T
    close(singled_out(image, text), out["similarities_softmax"])
    share = float(params["token_reduce_func"].removeprefix("TRIM:"))
    method = Trim(pooled=True) if share < 0 else Trim(adaptive=False)
    n = params["N_patches"]
    r = n - (n // 4 if share < 0 else int(n * share))
    none = x[:, None, :, :0]
    s = classless(x, none, none, image_embeds=image, text_embeds=text[:, None])
    plan = method.plan(s, r)
    assert torch.equal(plan.keep, out["kept_patch_positions_sorted"])
    tokens, size = plan.apply(s.x, s.size)
    close(tokens, out["tokens"])
    assert (size.sum(1) == n).all() and tokens.shape[1] == out["actual_dims"][0]
    if share < 0:  # of a single image the batch is that image
        assert torch.equal(Trim().plan(s, r).keep, plan.keep)


def video_site(features: Tensor, frames: int, grid: tuple[int, int] | None = None) -> ProjectorSite:
    """What a method sees of a video behind the projector; one row a frame where no grid matters."""
    none = features[None, None, :, :0]
    grid = grid or (1, len(features) // frames)
    return classless(features[None], none, none, frames=frames, grid=grid)


def check_vidcom2(case: Case) -> None:
    given, out, params, _ = case
    frames, n = params["frames"], len(given["features"])
    s = video_site(given["features"], frames)
    x = by_frame(s)
    video, frame = ordinary(x)
    close(video[0], out["video_score"])
    close(frame[0], out["frame_score"])
    close(scales(video, params["base_scale"])[0], out["scales"])
    channels = out["low_variance_channels_sorted"]
    assert torch.equal(steadiest(x)[0].flatten(0, 1), given["features"][:, channels])
    plan = VidCom2(params["base_scale"]).plan(s, 1)
    assert torch.equal(plan.keep[0], out["retention_mask"].nonzero()[:, 0])
    assert torch.equal(plan.apply(s.x, s.size)[0][0], out["tokens"])
    kept = (plan.keep[0] // (n // frames)).bincount(minlength=frames)
    assert torch.equal(kept, out["kept_per_frame"])


def check_evs(case: Case) -> None:
    given, out, params, _ = case
    frames, h, w = params["video_size_thw"]
    side = params["spatial_merge_size"]
    grid = h // side, w // side
    s = video_site(given["video_embeds"], frames, grid)
    close(changes(by_frame(s))[0], out["dissimilarity"].flatten())
    method, n = EVS(), len(given["video_embeds"])
    r = method.feasible(n - method.kept(1 - params["q"], n, 0), n, grid)
    assert n - r == int(out["retained"])
    plan = method.plan(s, r)
    assert torch.equal(plan.keep[0], out["kept_positions"])
    assert torch.equal(plan.apply(s.x, s.size)[0][0], out["tokens"])


def check_dycoke(case: Case) -> None:
    given, out, params, name = case
    if name == "dp":
        at_new_tokens(case)
        return
    frames, n = params["frames"], len(given["features"])
    s = video_site(given["features"], frames)
    method = DyCoke(params["merging_ratio"])
    r = method.feasible(1, n, s.grid)
    kept = out["kept_positions_in_output_order"]
    assert n - r == len(kept)
    for plan in (method.plan(s, r), DyCoke().plan(s, r)):
        assert torch.equal(plan.keep[0], kept)
        assert torch.equal(plan.apply(s.x, s.size)[0][0], out["tokens"])


def at_new_tokens(case: Case) -> None:
    """The second stage, of which the file is part: token after token of one answer."""
    given, out, params, _ = case
    start, length = params["image_token_start_index"], params["image_token_length"]
    method, memory = DyCokeDecode(), {}
    image = range(start, start + length + 1)  # and the last, which is always visible
    for step, attention in enumerate(given["attention"]):
        n = params["prompt_length"] + step + 1
        protect = torch.tensor([[i not in image for i in range(n)]])
        q, k = attention.new_ones(1, len(attention), 1, 1), attention[None, :, :n, None].log()
        site = DecodeSite(
            q[:, 0], q, k, k, torch.ones(1, n, 1), protect, params["dycoke_l"], 6,
            n_protected=n - len(image), tower="language", scale=1.0, prefix=0, memory=memory,
        )  # fmt: skip
        close(site.attention()[0, :, 0], attention[:, :n])
        kept = method.kept(1 - params["dycoke_p"], len(image), 0)
        plan = method.plan(site, len(image) - kept)
        assert torch.equal(plan.keep[0], out["visible_keys_from_layer_l"][step, :n].nonzero()[:, 0])
        assert plan.keep.shape[1] == int(out["visible_count"][step])
