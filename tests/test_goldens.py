"""Outputs of the authors' own code (see golden/README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_checks import CHECKS
from golden_checks.cases import METHODS, NAMES, cases, golden, shapes
from safetensors.torch import load_file
from sites import close
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

import bench
from crossget import CrossTokens, clip_alignment_loss

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(n, c, id=f"{n}-{c}".strip("-")) for n in NAMES for c in cases(n)],
)
def test_methods(name: str, case: str) -> None:
    assert name in CHECKS, f"{name} has no check: write check_{name} in tests/golden_checks"
    CHECKS[name](golden(name, case))


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_lies_outside_of_the_cases(name: str) -> None:
    tensors = load_file(METHODS / f"{name}.safetensors")
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == shapes(name)


def test_no_check_is_without_its_golden() -> None:
    assert set(CHECKS) <= set(NAMES)


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
