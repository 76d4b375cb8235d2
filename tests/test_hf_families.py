"""Encoders of transformers whose blocks know places, or with more than a class token in front."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_timm_families import BLOCK, Merge, merged, two_kinds
from tiny import MODELS, deit, dinov3, eva, hf_beit, images, run
from torch import Tensor, nn
from transformers import Siglip2Config, Siglip2Model

import bench
from bench.core import Unsupported
from bench.engine.tower import shrink
from bench.measure.closed_form import check_counters
from bench.models import catalogue
from bench.models.loaded import Classifier

FAMILIES = ("dinov2-registers", "dinov3", "deit", "deit-teacher", "hf-beit", "hf-beit-shared")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def entering(model: nn.Module, blocks: Any) -> tuple[Tensor, dict[str, Any]]:
    """The sequence (B,N,C) ahead of `BLOCK`, and that block's arguments by name."""
    seen: list[tuple[Tensor, dict[str, Any]]] = []
    hook = blocks[BLOCK].register_forward_pre_hook(
        lambda _, args, kw: seen.append((args[0], kw)), with_kwargs=True
    )
    run(model, {"pixel_values": images(2)})
    hook.remove()
    return seen[0]


def shortened(tokens: Tensor, prefix: int) -> tuple[Tensor, list[int], Tensor]:
    """Tokens after the merge (B,M,C), the positions that stay, log sizes (1,1,1,M)."""
    keep, src, dst = merged(prefix, tokens.shape[1])
    y, size = tokens[:, keep].clone(), torch.ones(len(keep))
    for i, j in zip(src, dst, strict=True):
        y[:, j] += tokens[:, i]
        size[j] += 1
    return y / size[:, None], keep, size.log()[None, None, None]


def last_tokens(model: nn.Module, blocks: Any) -> Tensor:
    """What the last block answers with `Merge` at work: (B,M,C)."""
    answers: list[Tensor] = []
    hook = blocks[-1].register_forward_hook(lambda _, args, out: answers.append(out))
    torch.manual_seed(5)
    with bench.reduced(model, Merge(), r=3, layers=[BLOCK]):
        run(model, {"pixel_values": images(2)})
    hook.remove()
    return answers[0]


def test_dinov3_turns_tokens_by_their_places() -> None:
    model = dinov3()
    blocks = model.model.layer
    torch.manual_seed(5)
    tokens, kw = entering(model, blocks)
    y, keep, weight = shortened(tokens, 3)
    rows = [i - 3 for i in keep[3:]]
    angles = tuple(part[rows] for part in kw["position_embeddings"])
    for block in blocks[BLOCK:]:
        y = block(y, attention_mask=weight, position_embeddings=angles)
    torch.testing.assert_close(last_tokens(model, blocks), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_beit_biases_tokens_by_their_places(shared: bool) -> None:
    kinds = {"use_relative_position_bias": not shared, "use_shared_relative_position_bias": shared}
    model = hf_beit(**kinds, use_mean_pooling=False)
    blocks = model.beit.layers
    torch.manual_seed(5)
    tokens, kw = entering(model, blocks)
    y, keep, weight = shortened(tokens, 1)
    for block in blocks[BLOCK:]:
        if shared:
            bias = kw["attention_mask"]
        else:
            bias = block.relative_position_bias((8, 8))
            block.relative_position_bias = None  # its own is of all tokens
        bias = bias[..., keep, :][..., keep] + weight
        y = block(y, attention_mask=bias, resolution=(32, 32))
    again = hf_beit(**kinds, use_mean_pooling=False)
    torch.testing.assert_close(last_tokens(again, again.beit.layers), y, atol=1e-5, rtol=1e-4)


def test_beit_with_both_biases_adds_them() -> None:
    both = {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}
    model, kw = hf_beit(**both), {"pixel_values": images(2)}
    plain = run(model, kw)
    with bench.reduced(model, "tome", r=lambda *_: 0):
        assert torch.equal(run(model, kw), plain)


@pytest.mark.parametrize("family", ["dinov2-registers", "hf-beit"])
def test_a_mean_counts_a_merged_token_as_often_as_it_stands_for_patches(family: str) -> None:
    model = MODELS[family]()
    for name, parameter in model.named_parameters():
        if "position" in name:
            nn.init.zeros_(parameter)
    kw = {"pixel_values": two_kinds()}
    plain = run(model, kw)
    with bench.reduced(model, "tome", r=10):
        torch.testing.assert_close(run(model, kw), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "prefix"), [("dinov2-registers", 3), ("dinov3", 3), ("deit-teacher", 2)]
)
def test_what_stands_in_front_of_the_patches_stays(family: str, prefix: int) -> None:
    model, kw = MODELS[family](), {"pixel_values": images(2)}
    tower = bench.adapter_for(model).towers(model)["vision"]
    assert tower.prefix == tower.n_protected == prefix
    with bench.reduced(model, "random", r=1000):
        left = bench.trace(model, **kw).tokens["vision"][-1][1]
    assert left == prefix + tower.averages


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_without_values_are_those_with_values(family: str) -> None:
    model, kw = MODELS[family](), {"pixel_values": images(1)}
    totals = []
    for device in ("cpu", "meta"):
        at = MODELS[family]().to(device)
        with bench.reduced(at, "tome", r=6):
            arguments = {name: value.to(device) for name, value in kw.items()}
            count = bench.count_macs(at, **arguments)
            check_counters(at, bench.trace(at, **arguments), count)
            totals.append(count.total)
    assert totals[0] == totals[1] < bench.count_macs(model, **kw).total


@pytest.mark.parametrize("build", [dinov3, hf_beit])
def test_attention_backends_agree(build: Any) -> None:
    answers = []
    for backend in ("sdpa", "eager"):
        model = build(backend)
        torch.manual_seed(2)
        with bench.reduced(model, "tome", r=6):
            answers.append(run(model, {"pixel_values": images(2)}))
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [dinov3, hf_beit])
def test_downsample_is_the_model_on_a_smaller_image(build: Any) -> None:
    model, x = build(), images(2)
    with bench.reduced(model, "downsample", keep_rate=9 / 16):
        small = run(model, {"pixel_values": x})
    torch.testing.assert_close(small, run(model, {"pixel_values": shrink(x, (24, 24))}))


def test_naflex_is_refused() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 50, "num_hidden_layers": 1}
    config = Siglip2Config(vision_config={**vision, "num_hidden_layers": 1}, text_config=text)
    with pytest.raises(Unsupported, match=r"NaFlex.* a SiglipModel and are$"):
        bench.reduced(Siglip2Model(config), "tome", r=2).__enter__()


@pytest.mark.parametrize(
    ("name", "kind", "tower_prefix", "gmacs"),
    [
        ("facebook/deit-small-distilled-patch16-224", "classifier", 2, 4.6),
        ("microsoft/beit-base-patch16-224", "classifier", 1, 17.6),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "encoder", 5, 4.7),
        ("google/siglip2-base-patch16-224", "two-tower", 0, 23.2),
    ],
)
def test_shapes_by_name(name: str, kind: str, tower_prefix: int, gmacs: float) -> None:
    with torch.device("meta"):
        loaded = catalogue.load(name, random_weights=True, device="meta")
    assert loaded.kind == kind
    assert bench.adapter_for(loaded.model).towers(loaded.model)["vision"].prefix == tower_prefix
    counted = bench.count_macs(loaded.model, **loaded.example_inputs(1)).total
    assert counted / 1e9 == pytest.approx(gmacs, abs=0.06)


def test_a_saved_deit_keeps_both_of_its_heads(tmp_path: Path) -> None:
    model = deit()
    model.save_pretrained(tmp_path)
    loaded = catalogue.load(str(tmp_path))
    assert isinstance(loaded, Classifier) and loaded.classes == 5
    pixels = images(2)
    assert torch.equal(loaded.logits(pixels), model(pixels).logits)


def as_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3's weights by the names that timm's `Eva` gives them."""
    renamed = (
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.patch_embeddings", "patch_embed.proj"),
        ("model.layer.", "blocks."),
        ("attention.o_proj", "attn.proj"),
        ("layer_scale1.lambda1", "gamma_1"),
        ("layer_scale2.lambda1", "gamma_2"),
        ("mlp.up_proj", "mlp.fc1"),
        ("mlp.down_proj", "mlp.fc2"),
    )
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, new in renamed:
            name = name.replace(old, new)
        if "mask_token" in name or "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            others = [state[key] for key in siblings(name)]
            name, value = name.replace("attention.q_proj", "attn.qkv"), torch.cat([value, *others])
        weights[name] = value
    return weights


def siblings(name: str) -> list[str]:
    """Of a block's query projection, by timm's name of the block, those of keys and values."""
    own = name.replace("blocks.", "model.layer.")
    return [own.replace("q_proj", part) for part in ("k_proj", "v_proj")]


@pytest.mark.parametrize(
    ("method", "budget"), [("none", {}), ("tome", {"r": 6}), ("evit", {"keep_rate": 0.7})]
)
def test_dinov3_is_reduced_alike_in_both_libraries(method: str, budget: dict[str, Any]) -> None:
    ours = dinov3(use_gated_mlp=False, query_bias=False, value_bias=False)
    shape = {
        "rope_temperature": 100.0,
        "mlp_ratio": 2,
        "norm_layer": partial(nn.LayerNorm, eps=1e-5),
    }
    theirs = eva(**shape, global_pool="token", num_classes=0)
    theirs.load_state_dict(as_timm(ours.state_dict()))
    answers = []
    for model, call in ((ours, "pixel_values"), (theirs, "x")):
        torch.manual_seed(4)
        arguments = {call: images(2)}
        with bench.reduced(model, method, **budget):
            out = model(**arguments)
        answers.append(getattr(out, "pooler_output", out))
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)
