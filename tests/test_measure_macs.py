"""The operator counter against fvcore, against published figures, and against the closed form."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bench
from bench.core import observe
from bench.core.learner import needs_training
from bench.core.registry import methods
from bench.measure import closed_form as forms
from bench.measure.closed_form import check_counters, closed_form
from bench.measure.macs import UncountedOperator, count_macs


def clip_model(attention: str, **small: Any) -> nn.Module:
    """CLIP ViT-B/16 with 77 text tokens, or a smaller one, randomly initialised."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    vision = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    config = CLIPConfig(
        projection_dim=512,
        text_config={**text, "num_hidden_layers": 12, "projection_dim": 512, **small},
        vision_config={
            **{**vision, "num_hidden_layers": 12, "projection_dim": 512, "image_size": 224},
            **{"patch_size": 16, **small},
        },
    )
    model = CLIPModel(config)
    model.set_attn_implementation(attention)
    return model


def clip_inputs(device: str = "meta", image: int = 224) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.ones(1, 77, dtype=torch.long, device=device),
        "pixel_values": torch.zeros(1, 3, image, image, device=device),
    }


def tiny_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}
    return VisionTransformer(**{**shape, "num_heads": 3, "num_classes": 5, **options})


@contextlib.contextmanager
def unfused(model: nn.Module) -> Any:
    """Attention as plain products, so that fvcore sees it."""
    blocks = [module for module in model.modules() if hasattr(module, "fused_attn")]
    assert blocks
    for block in blocks:
        block.fused_attn = False
    yield


def fvcore_total(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    analysis = FlopCountAnalysis(model.eval(), inputs)
    return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_clip_b16_is_the_published_integer(attention: str) -> None:
    with torch.device("meta"):
        model = clip_model(attention)
    count = count_macs(model, **clip_inputs())
    assert count.total == 20_567_068_160
    assert count.uncounted == {}
    assert count.reduction == 0
    towers = (count.by_module[f"{name}_model"] for name in ("vision", "text"))
    projections = 768 * 512 + 512 * 512 + 512  # and the one similarity product
    assert count.total == sum(towers) + projections


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_count_does_not_depend_on_device_or_grad_mode(attention: str, mode: Any) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2}
    model = clip_model(attention, **small, intermediate_size=128, image_size=32)
    real = count_macs(model, **clip_inputs("cpu", 32)).total
    with mode():
        assert count_macs(model, **clip_inputs("cpu", 32)).total == real
        assert count_macs(model.to("meta"), **clip_inputs("meta", 32)).total == real


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("deit_tiny_patch16_224", 1.26),
        ("deit_small_patch16_224", 4.61),
        ("vit_base_patch16_224", 17.58),
        ("vit_large_patch16_224", 61.60),
        ("vit_huge_patch14_224", 167.40),
        ("vit_large_patch14_clip_336", 191.11),
    ],
)
def test_timm_models_match_the_published_figures(name: str, gmacs: float) -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model(name)
    size = model.default_cfg["input_size"]
    assert round(count_macs(model, torch.zeros(1, *size, device="meta")).total / 1e9, 2) == gmacs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True, "reg_tokens": 2, "init_values": 1e-5},
        {"global_pool": "avg", "class_token": False},
    ],
)
def test_fvcore_agrees_on_a_vit(options: dict[str, Any]) -> None:
    model, x = tiny_vit(**options), torch.zeros(2, 3, 32, 32)
    fused = count_macs(model, x)
    with unfused(model):
        assert count_macs(model, x).total == fvcore_total(model, (x,)) == fused.total


def test_fvcore_agrees_on_clip() -> None:
    small = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
    model = clip_model("eager", **small, intermediate_size=128, image_size=32)
    inputs = clip_inputs("cpu", 32)
    ours = count_macs(model, **inputs)
    theirs = fvcore_total(model, (inputs["input_ids"], inputs["pixel_values"]))
    assert ours.total == theirs


def test_fvcore_agrees_on_convolutions_norms_and_resizing() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
            self.batch = nn.BatchNorm2d(8)
            self.plain = nn.BatchNorm2d(8, affine=False)
            self.group = nn.GroupNorm(2, 8)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.layer = nn.LayerNorm(16, elementwise_affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.group(self.plain(self.batch(self.grouped(x))))
            x = F.interpolate(self.up(x), scale_factor=2.0, mode="bilinear")
            x = F.interpolate(x, size=(16, 16), mode="nearest")
            x = F.instance_norm(x).flatten(2)
            # a form that fvcore knows; others it estimates by way of numpy's rounded printout
            return self.layer(torch.einsum("abc,abd->acd", x[..., :16], x[..., :16]))

    model, x = Mixed(), torch.randn(2, 4, 8, 8)
    assert count_macs(model, x).total == fvcore_total(model, (x,))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("width", [8, 16])
def test_fused_attention_costs_its_two_products(masked: bool, mode: Any, width: int) -> None:
    class Attend(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros(5, 7) if masked else None
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    q, k, v = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, width)
    with mode():
        count = count_macs(Attend(), q, k, v)
    assert count.total == 2 * 3 * 5 * 7 * (8 + width)
    # No kernel takes unlike widths: without inference mode plain products reach the counter then.
    fused = [op for op in count.by_op if "attention" in op]
    assert bool(fused) == (width == 8 or mode is torch.inference_mode), count.by_op


def test_products_with_broadcasting_and_vectors() -> None:
    class Products(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = x[:1] @ x.transpose(1, 2)  # (1,3,4) x (2,4,3): once for each of the 2
            return (wide @ x[0, :, 0]) + torch.cdist(x, x).sum(-1)  # (2,3,3) x (3,), and distances

    assert count_macs(Products(), torch.rand(2, 3, 4)).total == 2 * 36 + 2 * 9 + 2 * 9 * 4


def test_multihead_attention_is_not_one_opaque_operator() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x = torch.zeros(1, 5, 16)
    products = 4 * 5 * 16 * 16 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 32
    assert count_macs(layer, x).total == products + 2 * 5 * 5 * 16
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_operator_nobody_counts_is_an_error_that_names_it() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv(x)

    model = nn.Sequential(nn.Linear(3, 3), Odd())
    with pytest.raises(UncountedOperator, match=r"linalg_inv.* \(in 1\)"):
        count_macs(model, torch.eye(3))
    assert not torch._C._len_torch_dispatch_stack()
    assert count_macs(model[0], torch.eye(3)).total == 27  # nothing is left behind


def test_a_custom_operator_is_an_error_too() -> None:
    @torch.library.custom_op("crossget_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice(x)

    with pytest.raises(UncountedOperator, match="crossget_test.twice"):
        count_macs(Custom(), torch.zeros(2))


def test_modules_are_inclusive_and_count_every_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(self.inner(x)))

    count = count_macs(Shared(), torch.zeros(1, 4))
    assert count.by_module == {"": 40, "inner": 32, "inner.0": 32, "head": 8}
    assert count.total == 40 == sum(count.by_op.values())


def test_an_overridden_forward_is_followed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    original = model[0].forward
    model[0].forward = lambda x: original(original(x))
    count = count_macs(model, torch.zeros(1, 4))
    assert (count.total, count.by_module["0"]) == (48, 32)


def test_a_compiled_model_is_counted_as_the_eager_one() -> None:
    class Compiled(nn.Module):  # what torch.compile returns, without its seconds of import
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = nn.Linear(4, 4)

    count = count_macs(Compiled(), torch.zeros(1, 4))
    assert count.total == count.by_op["addmm"] == 16


def test_training_flags_come_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[2].eval()
    count_macs(model, torch.zeros(1, 4))
    with pytest.raises(RuntimeError):
        count_macs(model, torch.zeros(1, 5))
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert not nn.modules.module._global_forward_hooks


def test_what_happens_inside_the_reduction_is_itemised() -> None:
    class Reducing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.block(x)
            for observer in observe.OBSERVERS:
                observer.enter("reduction")
            scores = x @ x.T
            for observer in observe.OBSERVERS:
                observer.exit("reduction")
            return scores @ x

    count = count_macs(nn.Sequential(Reducing()), torch.zeros(3, 4))
    assert count.total == 3 * 16 + 36 + 36
    assert count.reduction == 36
    assert count.reduction_by_module == {"": 36, "0": 36}
    assert observe.OBSERVERS == []


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "reg_tokens": 2}, {"qkv_bias": False}])
def test_the_closed_form_is_exact_on_a_plain_vit(options: dict[str, Any]) -> None:
    model, x = tiny_vit(**options), torch.zeros(2, 3, 32, 32)
    count = count_macs(model, x)
    trace = bench.trace(model, x)
    assert check_counters(model, trace, count) == count.total
    assert closed_form(model, trace, count) == count.total


@pytest.mark.parametrize("method", ["tome", "evit", "crossget"])
def test_the_closed_form_is_exact_under_reduction(method: str) -> None:
    model, x = tiny_vit(), torch.rand(1, 3, 32, 32)
    full = count_macs(model, x).total
    budget = {"keep_rate": 0.5, "layers": (0, 1)} if method == "evit" else {"r": 3}
    with bench.reduced(model, method, **budget):
        count, trace = count_macs(model, x), bench.trace(model, x)
        assert check_counters(model, trace, count) == count.total < full
    assert 0 < count.reduction < count.total
    assert trace.tokens["vision"][-1][1] < 17


@pytest.mark.parametrize(
    "method", [name for name, cls in methods().items() if "vision" in cls.towers]
)
def test_every_method_can_be_counted_and_both_counters_agree(method: str) -> None:
    model, x = tiny_vit(img_size=64, depth=4), torch.rand(1, 3, 64, 64)
    cls = bench.core.registry.method(method)
    with bench.reduced(model, method, **({cls.learns: "random"} if needs_training(cls) else {})):
        count = count_macs(model, x)
        check_counters(model, bench.trace(model, x), count)
    assert count.reduction < count.total


def test_the_closed_form_is_exact_on_both_clip_towers() -> None:
    small = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
    model = clip_model("sdpa", **small, intermediate_size=128, image_size=64)
    inputs = clip_inputs("cpu", 64)
    with bench.reduced(model, "tome", r={"vision": 2, "text": 5}):
        count, trace = count_macs(model, **inputs), bench.trace(model, **inputs)
    assert check_counters(model, trace, count) == count.total
    assert trace.tokens["text"] == [(77, 72), (72, 67)]


def test_sizes_carried_as_extra_channels_are_accounted_for() -> None:
    model, x = tiny_vit(embed_dim=24), torch.rand(1, 3, 32, 32)
    with bench.reduced(model, "tome", r=2):
        masked = count_macs(model, x)
        for block in model.blocks:  # what a GPU does: sizes as channels of q, k and v
            block.forward.func.__self__.attention_path = "channel"
        count, trace = count_macs(model, x), bench.trace(model, x)
        assert check_counters(model, trace, count) == count.total
    extra = 2 * 15 * 15 * 3 * forms.SIZE_CHANNELS  # in the second block, on 15 tokens
    assert count.total == masked.total + extra


def test_counters_that_differ_name_the_block() -> None:
    model, x = tiny_vit(), torch.zeros(1, 3, 32, 32)
    count = count_macs(model, x)
    tokens = {"vision": [(17, 17), (17, 15)]}
    once = {"vision": 1}
    more: dict[str, Any] = {"reads": {"vision": [0, 0]}, "pairs": {"vision": {}}}
    trace = SimpleNamespace(tokens=tokens, samples=once, layers={"vision": [0, 1]}, **more)
    with pytest.raises(forms.CountersDisagree, match=r"block 'blocks\.1'"):
        check_counters(model, trace, count)
    with pytest.raises(forms.CountersDisagree, match="1 blocks .* the model has 2"):
        trace.layers = {"vision": [0]}
        check_counters(model, trace, count)


def test_reduction_that_is_only_masked_is_caught() -> None:
    model, x = tiny_vit(), torch.zeros(1, 3, 32, 32)
    with bench.reduced(model, "tome", r=3):
        trace = bench.trace(model, x)
    with pytest.raises(forms.CountersDisagree, match=r"block 'blocks\.0'"):
        check_counters(model, trace, count_macs(model, x))  # every token still computed
