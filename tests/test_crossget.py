"""CrossGET's steps: an oracle in plain loops, the properties it claims, cross tokens and files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import vlm_models
from torch import Tensor

import bench
from bench.core.errors import Unsupported
from bench.core.registry import method
from crossget import CrossTokens, alignment_loss, clip_alignment_loss, llava_alignment_loss
from crossget.importance import importance_from_attention, similarity_and_importance
from crossget.loss import match_layers, spread_layers
from crossget.matching import complete_graph_soft_matching, cosine_similarity
from methods.tome import bipartite_soft_matching


def tokens(seed: int, batch: int = 2, n: int = 40, width: int = 16) -> Tensor:
    """Clustered, as in pictures: eight centres a sample, and noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(batch, 8, width, generator=generator)
    which = torch.randint(0, 8, (batch, n), generator=generator)
    noise = torch.randn(batch, n, width, generator=generator)
    return centres[torch.arange(batch)[:, None], which] + 0.5 * noise


def protected(batch: int, n: int) -> Tensor:
    """Class token first, cross token last."""
    protect = torch.zeros(batch, n, dtype=torch.bool)
    protect[:, 0] = protect[:, -1] = True
    return protect


def by_loops(similarity: Any, importance: Any, r: int, protect: Any) -> list[tuple[int, int]]:
    """One sample's (source, destination) pairs, as the paper's algorithm says it, one by one."""
    n = len(similarity)
    free = [i for i in range(n) if not protect[i]]
    best = {i: max(similarity[i][j] for j in free if j != i) for i in free}
    ranking = sorted(free, key=lambda i: (-best[i], i))
    objective = {}
    for place, i in enumerate(ranking):
        visible = [similarity[i][j] for j in ranking[place + 1 :]]
        objective[i] = importance[i] - max(visible) if visible else math.inf
    sources = sorted(free, key=lambda i: (objective[i], i))[:r]
    pairs = []
    for i in sources:
        stay = [j for j in free if j not in sources]
        pairs.append((i, max(stay, key=lambda j: (similarity[i][j], -j))))
    return pairs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("r", [1, 7, 19])
def test_matching_equals_the_plain_loops(seed: int, r: int) -> None:
    x = tokens(seed)
    protect = protected(2, 40)
    similarity, importance = similarity_and_importance(x, x[:, -1])
    src, dst, stay = complete_graph_soft_matching(similarity, r, protect, importance)
    assert [sorted(row) for row in torch.cat([src, stay], 1).tolist()] == [list(range(40))] * 2
    for b in range(2):
        expected = by_loops(similarity[b].tolist(), importance[b].tolist(), r, protect[b].tolist())
        assert list(zip(src[b].tolist(), dst[b].tolist(), strict=True)) == expected
        assert not set(src[b].tolist()) & set(dst[b].tolist())  # no source is a destination
        assert len(set(src[b].tolist())) == r


def test_ties_go_to_the_lower_position() -> None:
    x = torch.eye(6)[[0, 1, 1, 2, 2, 3]][None]  # positions 1 and 2 alike, 3 and 4 alike
    src, dst, _ = complete_graph_soft_matching(cosine_similarity(x), 2, protected(1, 6))
    assert src.tolist() == [[1, 3]]
    assert dst.tolist() == [[2, 4]]


def summed(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """(B,) similarity of all merged pairs."""
    rows = torch.arange(len(x))[:, None]
    return cosine_similarity(x)[rows, src, dst].sum(1)


@pytest.mark.parametrize("r", [4, 12])
def test_a_complete_graph_finds_nearer_pairs_than_a_bipartite_one(r: int) -> None:
    """On average, and for most inputs: of these 200, 78 % at r = 4 and 70 % at r = 12, not all."""
    x = tokens(0, batch=200)
    protect = protected(200, 40)
    complete = summed(x, *complete_graph_soft_matching(cosine_similarity(x), r, protect)[:2])
    plan = bipartite_soft_matching(x, r, protect)
    assert plan.src is not None and plan.dst is not None
    bipartite = summed(x, plan.src, plan.keep.gather(1, plan.dst))
    assert complete.mean() > bipartite.mean()
    assert (complete >= bipartite - 1e-5).float().mean() > 0.6


def test_importance_from_attention() -> None:
    attention = torch.rand(2, 5, 5).softmax(-1)
    expected = [
        [sum(float(a[q, k]) for q in range(4)) / 4 + float(a[4, k]) for k in range(5)]
        for a in attention
    ]
    torch.testing.assert_close(importance_from_attention(attention), torch.tensor(expected))


def test_layers_are_matched_by_repeating() -> None:
    layers = torch.arange(4.0)[:, None, None]
    assert match_layers(layers, 8).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert match_layers(layers, 6).flatten().tolist() == [0, 0, 1, 2, 2, 3]
    same = torch.randn(3, 2, 5)
    assert alignment_loss(same, same).abs() < 1e-6
    assert alignment_loss(torch.randn(6, 2, 5), same) > 0


@pytest.mark.parametrize("build", [tiny.clip, tiny.siglip])
def test_cross_tokens_learn_and_are_saved(build: Any, tmp_path: Path) -> None:
    model = build()
    kw = tiny.inputs(model)
    depths = {"vision": 4, "text": 3}
    cross = CrossTokens({k: torch.zeros(n, 32, requires_grad=True) for k, n in depths.items()})
    budget = {"vision": 6, "text": 2}
    with bench.reduced(model, "crossget", r=budget, cross_tokens=cross):
        out = model(**kw)
    loss = out.logits_per_image.diagonal().sum() + clip_alignment_loss(model, cross)
    loss.backward()
    for table in cross.vectors.values():
        assert table.grad is not None
        assert (table.grad.abs().sum(1) > 0).all()  # every layer's vector is reached
        table.data.normal_()
    cross.save(tmp_path / "cross.safetensors")
    features = []
    for given in (cross, tmp_path / "cross.safetensors", str(tmp_path / "cross.safetensors")):
        with torch.no_grad(), bench.reduced(model, "crossget", r=budget, cross_tokens=given):
            features.append(tiny.run(model, kw))
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


def test_both_towers_carry_the_cross_token() -> None:
    model = tiny.clip()
    kw = tiny.inputs(model)
    with bench.reduced(model, "crossget", r={"vision": 4}):
        seen = bench.trace(model, **kw).tokens
    assert seen["vision"][0] == (66, 62)
    assert seen["text"] == [(15, 15)] * 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("no-such-file.safetensors", "no file no-such-file"),
        ({"vision": torch.zeros(32)}, r"must be \(L,C\)"),
    ],
)
def test_cross_tokens_that_do_not_serve(given: Any, says: str) -> None:
    with pytest.raises(bench.BenchError, match=says):
        method("crossget")(cross_tokens=given)


def test_an_unknown_importance_is_refused() -> None:
    with pytest.raises(bench.BenchError, match="no importance 'querry' — did you mean 'query'"):
        method("crossget")(importance="querry")


# --- in a LLaVA ----------------------------------------------------------------------------------


def test_layers_are_spread_as_the_llava_code_does() -> None:
    for layers, depth in ((3, 4), (24, 32), (24, 40), (4, 4), (2, 7)):
        expected = []
        for i in range(layers):
            expected += [i] * ((i + 1) * depth // layers - i * depth // layers)
        spread = spread_layers(torch.arange(float(layers))[:, None, None], depth)
        assert spread.flatten().tolist() == expected


def _cross(model: Any) -> CrossTokens:
    towers = bench.adapter_for(model).towers(model)
    shapes = {k: (len(towers[k].blocks), towers[k].width) for k in ("vision", "language")}
    return CrossTokens({k: torch.zeros(s, requires_grad=True) for k, s in shapes.items()})


def test_a_llavas_cross_tokens_learn_from_answers_and_alignment() -> None:
    model, batch = vlm_models.llava(), vlm_models.llava_batch(3)
    cross = _cross(model)
    with bench.reduced(model, "crossget", r=2, importance="attention", cross_tokens=cross):
        answers = model(**batch, labels=batch["input_ids"]).loss
        alignment = llava_alignment_loss(model, cross)
    projector = model.model.multi_modal_projector
    alignment.backward(retain_graph=True)
    assert all(weight.grad is None for weight in projector.parameters())  # it is held fixed
    for table in cross.vectors.values():
        assert table.grad is not None and (table.grad.abs().sum(1) > 0).all()
        table.grad = None
    answers.backward()
    assert (cross.vectors["language"].grad.abs().sum(1) > 0).all()


def test_a_model_without_a_llavas_projector_has_no_alignment_loss() -> None:
    with pytest.raises(Unsupported, match="Qwen2VLForConditionalGeneration has not"):
        llava_alignment_loss(vlm_models.qwen2_vl(), CrossTokens({}))


def test_the_alignment_of_a_llava_is_the_divergence_through_the_projector() -> None:
    model, batch = vlm_models.llava(), vlm_models.alone(vlm_models.llava_batch(1), 0)
    cross = _cross(model)
    with bench.reduced(model, "crossget", r=2, cross_tokens=cross):
        model(**batch)
    found = llava_alignment_loss(model, cross).detach()
    image = model.model.multi_modal_projector(cross.stacked("vision"))
    text = cross.stacked("language")
    total = 0.0
    for layer in range(len(text)):
        i = -(-(layer + 1) * len(image) // len(text)) - 1
        for a, b in zip(image[i].softmax(-1), text[layer].softmax(-1), strict=True):
            m = (a + b) / 2
            total += float(((m * (m / a).log()).sum() + (m * (m / b).log()).sum()).detach()) / 2
    assert abs(float(found) - total / text[:, :, 0].numel()) < 1e-5


def test_the_first_token_of_a_prompt_is_the_cross_token_and_decoding_leaves_it() -> None:
    model, batch = vlm_models.llava(), vlm_models.llava_batch(3)
    assert not batch["attention_mask"].all()  # padded on the left
    cross = _cross(model)
    seen: list[torch.Tensor] = []
    block = model.model.language_model.layers[1]
    handle = block.register_forward_pre_hook(
        lambda _, args, kw: seen.append(args[0] if args else kw["hidden_states"]),
        with_kwargs=True,
    )
    inner: list[torch.Tensor] = []
    norm = block.input_layernorm.register_forward_pre_hook(lambda _, args: inner.append(args[0]))
    cross.vectors["language"].data[1] = 5.0
    with torch.no_grad(), bench.reduced(model, "crossget", r=2, cross_tokens=cross):
        model.generate(**batch, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    handle.remove()
    norm.remove()
    moved = (inner[0] - seen[0]).abs().amax(-1) > 1
    padding = (batch["attention_mask"] == 0).sum(1)
    assert torch.equal(moved.nonzero(), torch.stack([torch.arange(3), padding], 1))
    assert torch.equal(inner[1], seen[1])  # the next token has no cross token


def test_without_language_vectors_a_llava_says_what_its_reduced_tower_makes_it_say() -> None:
    model, batch = vlm_models.llava(), vlm_models.llava_batch(2)
    with torch.no_grad(), bench.reduced(model, "crossget", r={"vision": 2}):
        one = model(**batch).logits
        seen = bench.trace(model, **batch).tokens
    assert seen["vision"][0][0] == seen["vision"][0][1] + 2
    zeros = {"language": torch.zeros_like(_cross(model).vectors["language"])}
    with torch.no_grad(), bench.reduced(model, "crossget", r={"vision": 2}, cross_tokens=zeros):
        assert torch.equal(model(**batch).logits, one)


@torch.no_grad()
@pytest.mark.parametrize("features", [-2, -1])
@pytest.mark.parametrize("handed_on", [True, False])
def test_the_cross_token_of_an_image_is_a_llavas_last_visual_token(
    handed_on: bool, features: int
) -> None:
    """As in the authors' LLaVA, which takes only the class token off the encoder's tokens."""
    model, batch = vlm_models.llava(), vlm_models.llava_batch(2)
    model.config.vision_feature_layer = features
    tower, seen = bench.adapter_for(model).towers(model)["vision"], []
    block: Any = tower.blocks[features]
    parts = (block.layer_norm2, model.model.multi_modal_projector.linear_1)
    hooks = [part.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for part in parts]
    params: dict[str, Any] = {} if handed_on else {"handed_on": False}
    with bench.reduced(model, "crossget", r=3, **params):
        model(**batch)
        entering = bench.trace(model, **batch).tokens["language"][0][0]
    for hook in hooks:
        hook.remove()
    ahead, projected = seen[:2]  # class token, patches and cross token ahead of the MLP
    made = tower.feed(block, ahead)[:, 1:]
    n = 36 - 3 * (len(tower.blocks) + 1 + features)
    assert made.shape[1] == n + 1
    torch.testing.assert_close(projected, made if handed_on else made[:, :-1])
    assert entering == batch["input_ids"].shape[1] - 36 + n + handed_on


@torch.no_grad()
def test_a_llava_and_a_clip_have_their_own_form_of_importance() -> None:
    def answer(model: Any, kw: Any, **params: Any) -> torch.Tensor:
        with bench.reduced(model, "crossget", r=4, **params):
            out = model(**kw)
        return out.logits if "logits" in out else out.image_embeds

    clip = tiny.clip()
    for model, kw, own, other in (
        (vlm_models.llava(), vlm_models.llava_batch(2), "attention", "query"),
        (clip, tiny.inputs(clip), "query", "attention"),
    ):
        plain = answer(model, kw)
        assert torch.equal(plain, answer(model, kw, importance=own))
        assert not torch.equal(plain, answer(model, kw, importance=other))
