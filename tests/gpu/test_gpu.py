"""On a real GPU: exactness, half precision, the flash kernel, and the clock.

    python -m pytest tests/gpu -m gpu

Models are built from their configuration with random weights, so nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import bench
from bench.measure.engines import engaged, forget
from bench.measure.latency import paired

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU here", allow_module_level=True)

pytestmark = pytest.mark.gpu
# A rehearsal without a GPU takes fewer and smaller images, of which fewer tokens agree.
SIDE, BATCH, AGREE = 224, 4, 0.95
MERGERS = ("tome", "crossget")
METHODS = [
    name
    for name, cls in bench.core.registry.methods().items()
    if name != "none" and "vision" in cls.towers
]


def waits(method: str) -> bool:
    """Whether a method may ask for values, or makes up what it has not learned in each pass."""
    cls = bench.core.registry.methods()[method]
    return bench.core.kinds.is_adaptive(cls) or bench.core.learner.needs_training(cls)


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield


def vit(dtype: torch.dtype, depth: int = 4) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(
        "vit_small_patch16_224", pretrained=False, depth=depth, img_size=SIDE
    )
    return model.eval().to("cuda", dtype)


def clip(dtype: torch.dtype) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 112, "patch_size": 8}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 1, "vocab_size": 100, "eos_token_id": 99, "bos_token_id": 98}
    model: nn.Module = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    return model.eval().to("cuda", dtype)


def inputs(model: nn.Module, dtype: torch.dtype, batch: int | None = None) -> dict[str, Tensor]:
    batch = batch or BATCH
    if "CLIP" not in type(model).__name__:
        return {"x": torch.randn(batch, 3, SIDE, SIDE, device="cuda", dtype=dtype)}
    ids = torch.randint(1, 90, (batch, 20), device="cuda")
    ids[:, -1] = 99
    images = torch.randn(batch, 3, 112, 112, device="cuda", dtype=dtype)
    return {"pixel_values": images, "input_ids": ids}


def tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [out.image_embeds, out.text_embeds]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [vit, clip], ids=["timm", "hf-clip"])
def test_removing_nothing_is_bit_exact(build: Any, method: str) -> None:
    model = build(torch.float32)
    given = inputs(model, torch.float32)
    takes = bench.core.registry.methods()[method].budget
    nothing = {"r": 0} if "r" in takes else {"keep_rate": 1.0}
    with torch.inference_mode():
        plain = tensors(model(**given))
        with bench.reduced(model, method, **nothing):
            inside = tensors(model(**given))
        after = tensors(model(**given))
    for a, b, c in zip(plain, inside, after, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("method", [name for name in METHODS if not waits(name)])
def test_nothing_waits_for_the_gpu(method: str) -> None:
    model = vit(torch.bfloat16)
    given = inputs(model, torch.bfloat16)
    with torch.inference_mode(), bench.reduced(model, method):
        model(**given)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(**given)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("method", MERGERS)
@pytest.mark.parametrize("build", [vit, clip], ids=["timm", "hf-clip"])
def test_half_precision_has_no_nan(build: Any, method: str, dtype: torch.dtype) -> None:
    model = build(dtype)
    with torch.inference_mode(), bench.reduced(model, method, r=16):
        out = tensors(model(**inputs(model, dtype)))
    assert all(t.isfinite().all() for t in out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("method", MERGERS)
def test_half_precision_keeps_the_same_tokens(method: str, dtype: torch.dtype) -> None:
    """Rounding changes scores; at the first layer at least `AGREE` of the kept tokens agree."""
    model = vit(torch.float32)
    given = inputs(model, torch.float32)
    exact = first_layer_survivors(model, method, given)
    rounded = first_layer_survivors(
        model.to(dtype), method, {key: value.to(dtype) for key, value in given.items()}
    )
    shared = [len(a & b) / len(a) for a, b in zip(exact, rounded, strict=True)]
    assert min(shared) >= AGREE, shared


def first_layer_survivors(
    model: nn.Module, method: str, given: dict[str, Tensor]
) -> list[set[int]]:
    """Of each sample, the input tokens that the first layer's plan keeps."""
    reducer_class = bench.core.registry.methods()[method]
    kept: list[Tensor] = []

    class Spy(reducer_class):  # type: ignore[misc, valid-type]
        def plan(self, site: Any, r: int) -> Any:
            plan = super().plan(site, r)
            if site.layer == 0:
                kept.append(plan.keep)
            return plan

    with torch.inference_mode(), bench.reduced(model, Spy(), r=16):
        model(**given)
    return [set(row.tolist()) for row in kept[0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_proportional_attention_stays_on_the_flash_kernel(dtype: torch.dtype) -> None:
    """With a mask the flash kernel would refuse, so this passes only while there is none."""
    model = vit(dtype)
    given = inputs(model, dtype)
    with torch.inference_mode(), bench.reduced(model, "tome", r=16):
        free = model(**given)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            flash = model(**given)
        with sdpa_kernel(SDPBackend.MATH):
            exact = model(**given)
    assert (flash - free).abs().max() < 0.05
    assert (flash - exact).abs().max() < 0.2


@pytest.mark.parametrize("engine", ["compile", "graphs"])
@pytest.mark.parametrize("method", ["none", *MERGERS, "evit", "random"])
def test_compiled_passes_say_what_the_eager_one_says(method: str, engine: str) -> None:
    forget()
    model = vit(torch.float32)
    given = inputs(model, torch.float32)
    with torch.inference_mode(), bench.reduced(model, method):
        eager = model(**given)
        run = engaged(model, engine, given)
        for _ in range(3):  # a graph is captured in the first ones
            out = run(**given).clone()
    assert (out - eager).abs().max() < 1e-4


def test_latency_is_timed_with_cuda_events() -> None:
    model = vit(torch.bfloat16, depth=12)
    given = inputs(model, torch.bfloat16, batch=8 * BATCH)

    def run() -> object:
        return model(**given)

    def reduced() -> object:
        with bench.reduced(model, "tome", r=16):
            return model(**given)

    pair = paired(run, reduced, repeats=16, warmup=5, device="cuda")
    assert pair.clock == "cuda events"
    assert len(pair.a.samples_ms) == len(pair.b.samples_ms) == 16
    assert min(pair.a.samples_ms + pair.b.samples_ms) > 0


def test_counting_on_the_gpu_equals_counting_on_the_cpu() -> None:
    model = vit(torch.float32)
    given = inputs(model, torch.float32, batch=1)
    with torch.inference_mode(), bench.reduced(model, "tome", r=16):
        on_gpu = bench.count_macs(model, **given).total
        model.cpu()
        on_cpu = bench.count_macs(model, **{k: v.cpu() for k, v in given.items()}).total
    assert on_gpu == pytest.approx(on_cpu, rel=0.01)
