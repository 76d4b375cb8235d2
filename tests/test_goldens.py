"""Outputs of the authors' own code (see golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

import bench
from bench.core import Reducer, Site
from bench.core.registry import method
from bench.core.schedules import as_schedule
from crossget import CrossTokens, clip_alignment_loss

GOLDEN = Path(__file__).parent / "golden"


def site(g: dict[str, Tensor], prefix: int = 1, last: bool = False) -> Site:
    x = g["in.x"]
    B, N, _ = x.shape
    size = g.get("in.size", torch.ones(B, N, 1))
    protect = torch.zeros(B, N, dtype=torch.bool)
    protect[:, :prefix] = True
    protect[:, N - 1] |= last
    return Site(
        x,
        g["in.q"],
        g["in.k"],
        g["in.k"],
        size,
        protect,
        3,
        12,
        prefix + last,
        anchor=torch.zeros(B, dtype=torch.long),
        bias=size.log().transpose(1, 2)[:, None] if "in.size" in g else None,
    )


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = GOLDEN / "methods" / name
    return load_file(f"{path}.safetensors"), json.loads(Path(f"{path}.json").read_text())


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def tome() -> tuple[Any, dict[str, Tensor]]:
    g = load_file(str(GOLDEN / "tome_vit.safetensors"))
    shape = {"img_size": 56, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 4}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **shape).eval()
    model.load_state_dict({k[7:]: v for k, v in g.items() if k.startswith("weight.")})
    return model, g


@pytest.mark.parametrize("r", [0, 4, 8])
def test_tome_on_a_vit(tome: Any, r: int) -> None:
    model, g = tome
    with torch.no_grad(), bench.reduced(model, "tome", r=r):
        close(model(g["pixel_values"]), g[f"logits.r{r}" if r else "logits.none"])
        seen = bench.trace(model, g["pixel_values"])
    if r:
        assert torch.equal(seen.sizes["vision"][-1][1], g[f"size.r{r}"])
        assert torch.equal(seen.source(), g[f"source.r{r}"].bool())


@pytest.fixture(scope="module")
def clip() -> tuple[Any, dict[str, Tensor]]:
    g = load_file(str(GOLDEN / "crossget_clip.safetensors"))
    vision = {
        "hidden_size": 48,
        "intermediate_size": 192,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "image_size": 32,
        "patch_size": 4,
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "max_position_embeddings": 20,
        "vocab_size": 100,
        "eos_token_id": 99,
        "bos_token_id": 98,
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32)).eval()
    model.load_state_dict({k[7:]: v for k, v in g.items() if k.startswith("weight.")}, strict=False)
    return model, g


@pytest.mark.parametrize(("vision", "text"), [(0, 0), (8, 0), (8, 3)])
def test_crossget_on_clip(clip: Any, vision: int, text: int) -> None:
    model, g = clip
    cross = {"vision": g["cross_image"], "text": g["cross_text"]}
    budget = {"vision": vision, "text": text}
    with torch.no_grad(), bench.reduced(model, "crossget", r=budget, cross_tokens=cross):
        image = model.visual_projection(model.vision_model(g["pixel_values"]).pooler_output)
        words = model.text_projection(model.text_model(g["input_ids"]).pooler_output)
    close(image, g[f"image_embeds.rv{vision}_rl{text}"])
    close(words, g[f"text_embeds.rv{vision}_rl{text}"])


@pytest.mark.parametrize(("vision", "text"), [(8, 0), (8, 3)])
def test_crossget_losses_and_gradients(clip: Any, vision: int, text: int) -> None:
    model, g = clip
    which = f"rv{vision}_rl{text}"
    cross = CrossTokens(
        {
            k: g[f"cross_{v}"].clone().requires_grad_()
            for k, v in (("vision", "image"), ("text", "text"))
        }
    )
    with bench.reduced(model, "crossget", r={"vision": vision, "text": text}, cross_tokens=cross):
        out = model(pixel_values=g["pixel_values"], input_ids=g["input_ids"])
    right = torch.arange(len(g["pixel_values"]))
    task = (
        nn.functional.cross_entropy(out.logits_per_image, right)
        + nn.functional.cross_entropy(out.logits_per_text, right)
    ) / 2
    alignment = clip_alignment_loss(model, cross)
    for loss, name in ((task, "itc"), (alignment, "js")):
        torch.testing.assert_close(loss, g[f"loss_{name}.{which}"], rtol=1e-4, atol=0)
    (0.5 * task + 0.5 * alignment).backward()
    for tower, name in (("vision", "image"), ("text", "text")):
        expected = g[f"grad_cross_{name}.{which}"]
        error = (cross.vectors[tower].grad - expected).norm() / expected.norm()
        assert error < 1e-3, (tower, error)


@pytest.mark.parametrize("fuse", [True, False])
def test_evit(fuse: bool) -> None:
    g, about = golden("evit")
    evit: Reducer = method("evit")(fuse=fuse)
    s = site(g)
    free = s.x.shape[1] - 1
    r = as_schedule(evit, keep_rate=about["parameters"]["keep_rate"])(3, 12, free, free)
    assert free - r == about["parameters"]["left_tokens"]
    plan = evit.plan(s, r)
    assert torch.equal(plan.keep[:, 1:], g["out.kept_idx"])
    close(plan.apply(s.x, s.size)[0], g["out.fuse.x" if fuse else "out.nofuse.x"])
    if plan.extra is not None:
        dropped = [row.nonzero().flatten() for row in plan.extra[:, 0]]
        assert torch.equal(torch.stack(dropped), g["out.dropped_idx"])


def test_topk() -> None:
    g, about = golden("topk")
    topk: Reducer = method("topk")()
    s = site(g)
    wanted = about["parameters"]
    free = s.x.shape[1] - 1
    r = as_schedule(topk, keep_rate=wanted["keep_rate"])(3, 12, free, wanted["init_n"])
    assert free - r == wanted["left_tokens"]
    plan = topk.plan(s, r)
    assert torch.equal(plan.keep[:, 1:], g["out.kept_idx"])
    close(plan.apply(s.x, s.size)[0], g["out.x"])


def test_crossget_reducer_of_llava() -> None:
    g, about = golden("crossget")
    s = site(g, last=True)
    crossget: Reducer = method("crossget")(importance="attention")
    plan = crossget.plan(s, about["parameters"]["r"])
    assert torch.equal(plan.keep, g["out.kept_idx"])
    assert plan.src is not None and plan.dst is not None and plan.gain is not None
    src, order = plan.src.sort(1)
    assert torch.equal(src, g["out.src_idx_sorted"])
    assert torch.equal(plan.keep.gather(1, plan.dst).gather(1, order), g["out.dst_of_src"])
    assert torch.equal(plan.slots(s.x.shape[1]), g["out.out_slot_of_input"])
    weights = torch.stack([w.gather(1, order) / 2 for w in plan.gain], -1)
    close(weights, g["out.weight_of_src"])
    x, size = plan.apply(s.x, s.size)
    close(x, g["out.x"])
    assert torch.equal(size, g["out.size"])
