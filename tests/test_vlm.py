"""Multimodal language models: batches, positions, caches, towers that feed each other."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import vlm_models as tiny
from torch import Tensor

import bench
from bench.check.multimodal import alone
from bench.core import Plan, Reducer, Site
from bench.core.errors import Unsupported
from bench.core.kinds import LanguageReducer

NEW = 6
FAMILIES = list(tiny.MODELS)
# Image encoders without a class token.
CLASSLESS = (
    "LLaVA-OneVision", "SmolVLM", "PaliGemma", "Gemma 3", "Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL",
)  # fmt: skip


class Ahead(Reducer):
    """Drops the image tokens of least norm ahead of a block; positions stay."""

    name = "ahead"
    towers: ClassVar[tuple[str, ...]] = ("language", "projector", "vision")
    before: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def plan(self, site: Site, r: int) -> Plan:
        score = site.x.float().norm(dim=-1).masked_fill(site.protect, float("inf"))
        order = score.argsort(dim=1, descending=True, stable=True)
        return Plan(order[:, : site.x.shape[1] - r].sort(1).values)


class Renumbering(Ahead, LanguageReducer):
    """The same; later positions move up."""

    name = "renumbering"
    renumbers: ClassVar[bool] = True


class Behind(Ahead):
    """The same, behind a block's attention."""

    name = "behind"
    before: ClassVar[bool] = False


class Making(Renumbering):
    """Makes one token of those that go."""

    name = "making"

    def plan(self, site: Site, r: int) -> Plan:
        plan = super().plan(site, r)
        gone = torch.ones(site.x.shape[:2]).scatter(1, plan.keep, 0.0)
        return Plan(plan.keep, extra=gone[:, None] / r)


def language(rate: float = 0.4, layers: tuple[int, ...] = (2, 4)) -> dict[str, Any]:
    return {"keep_rate": {"language": rate}, "layers": {"language": layers}}


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ahead": (Ahead(), language()),
    "renumbering": (Renumbering(), language()),
    "before the first block": (Renumbering(), language(layers=(0,))),
    "first and later": (Renumbering(), language(layers=(0, 3))),
    "behind": (Behind(), language(layers=(0, 3))),
    "making": (Making(), language()),
    "projector": (Ahead(), {"keep_rate": {"projector": 0.4}}),
    "behind the projector": (Behind(), {"keep_rate": {"projector": 0.4}}),
    "tome": ("tome", {"r": 4}),
    "evit": ("evit", {"keep_rate": 0.5, "layers": [1]}),
    "crossget": ("crossget", {"r": 4}),
    "downsample": ("downsample", {"keep_rate": 0.5}),
    "pool": ("pool", {"keep_rate": 0.5, "layers": [1]}),
    "random": ("random", {"keep_rate": {"vision": 0.5}, "layers": {"vision": [0, 2]}}),
    "most in the encoder": (Ahead(), {"keep_rate": {"vision": 0.3}, "layers": {"vision": [1]}}),
}


def answers(model: Any, batch: dict[str, Tensor], **kw: Any) -> Tensor:
    return tiny.answers(model, batch, NEW, **kw)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_answered_as_each_sample_alone(family: str, way: str) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(4)
    method, given = WAYS[way]
    if family in CLASSLESS and way == "evit":
        with pytest.raises(Unsupported, match="by the class token, and this model's vision tower"):
            bench.reduced(model, method, **given).__enter__()
        return
    with torch.no_grad(), bench.reduced(model, method, **given):
        together = answers(model, batch)
        each = torch.cat([answers(model, alone(batch, i)) for i in range(4)])
        logits = model(**batch).logits
    assert torch.equal(together, each)
    spoken = batch.get("decoder_input_ids", batch["input_ids"])
    assert logits.shape[1] == spoken.shape[1] and bool(logits.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_reduction_changes_answers_and_leaves_nothing_behind(family: str) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(4)
    plain = answers(model, batch)
    with bench.reduced(model, Ahead(), **language(0.2)):
        assert not torch.equal(answers(model, batch), plain)
    assert torch.equal(answers(model, batch), plain)


@torch.no_grad()  # with gradients of a bias, fused attention is another kernel
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_that_removes_nothing_is_the_plain_model(family: str, batch_size: int) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(batch_size)
    plain, scores = answers(model, batch), model(**batch).logits
    late = (lambda layer, depth, tokens, initial: 0,)[0]
    for tower in ("vision", "projector", "language"):
        with bench.reduced(model, Ahead(), r={tower: late}):
            assert torch.equal(answers(model, batch), plain), tower
            assert torch.equal(model(**batch).logits, scores), tower


@pytest.mark.parametrize(
    "way", ["ahead", "renumbering", "first and later", "making", "tome", "pool"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_the_cache_equals_decoding_without(family: str, way: str) -> None:
    """One more token: without a cache the prompt is reduced again, with one word more in it.

    Methods that look at image tokens only decide the same, so that both must agree.
    """
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(3)
    method, given = WAYS[way]
    with torch.no_grad(), bench.reduced(model, method, **given):
        assert torch.equal(answers(model, batch), answers(model, batch, use_cache=False))


def cache_lengths(model: Any, batch: dict[str, Tensor]) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            **batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
    return [layer.keys.shape[2] for layer in out.past_key_values.layers]


def test_the_cache_behind_a_removal_is_shorter() -> None:
    model, batch = tiny.llava(), tiny.llava_batch(1)
    whole = batch["input_ids"].shape[1] + 2  # two decoded tokens were fed back
    assert cache_lengths(model, batch) == [whole] * 6
    with bench.reduced(model, Ahead(), **language(0.5, (2,))):
        assert cache_lengths(model, batch) == [whole] * 2 + [whole - 18] * 4
    with bench.reduced(model, Renumbering(), **language(0.5, (0, 3))):
        assert cache_lengths(model, batch) == [whole - 18] * 3 + [whole - 27] * 3


def test_eager_attention_gives_the_same() -> None:
    batch = tiny.llava_batch(3)
    found = []
    for backend in ("sdpa", "eager"):
        model = tiny.llava(backend)
        for way in ("ahead", "first and later", "making"):
            method, given = WAYS[way]
            with bench.reduced(model, method, **given):
                found.append(model(**batch).logits)
    for a, b in zip(found[:3], found[3:], strict=True):
        filled = batch["attention_mask"].bool()
        torch.testing.assert_close(a[filled], b[filled], atol=1e-4, rtol=1e-3)


def test_an_encoder_a_projector_and_a_language_method_in_one() -> None:
    model, batch = tiny.llava(), tiny.llava_batch(2)
    stack = [
        ("tome", {"r": 2, "layers": [0, 1]}),
        (Ahead(), {"keep_rate": {"projector": 0.5}}),
        (Ahead(), language(0.5, (2,))),
    ]
    with bench.reduced(model, stack):
        lengths = cache_lengths(model, batch)
        seen = bench.trace(model, **batch)
    words = batch["input_ids"].shape[1] - 36
    assert seen.tokens["vision"][0] == (37, 35) and seen.tokens["projector"] == [(16, 16)]
    assert lengths == [words + 16 + 2] * 2 + [words + 8 + 2] * 4


def test_samples_without_an_image_and_with_two() -> None:
    model = tiny.llava()
    batch = {**tiny.prompts([72, 0, 36], [(3, 5), (2, 4), (1, 9)]), "pixel_values": tiny.pixels(3)}
    for way in ("ahead", "first and later", "projector", "tome"):
        method, given = WAYS[way]
        with bench.reduced(model, method, **given):
            together = answers(model, batch)
            ids = batch["input_ids"][1:2, -6:]
            single = answers(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        assert torch.equal(together[1:2], single), way


def test_text_alone_is_untouched() -> None:
    model = tiny.llava()
    batch = tiny.prompts([0, 0], [(3, 5), (2, 4)])
    plain = answers(model, batch)
    with bench.reduced(model, Ahead(), **language()):
        assert torch.equal(answers(model, batch), plain)


def test_beam_search_runs_on_reduced_caches() -> None:
    model, batch = tiny.llava(), tiny.llava_batch(2)
    with bench.reduced(model, Ahead(), **language()):
        one = [answers(model, alone(batch, i), num_beams=3) for i in range(2)]
        assert torch.equal(answers(model, batch, num_beams=3), torch.cat(one))


def test_what_cannot_be_is_said() -> None:
    model, batch = tiny.llava(), tiny.llava_batch(1)
    with (
        pytest.raises(Unsupported, match="acts in a vision or text tower"),
        bench.reduced(model, "tome", r={"language": 4}),
    ):
        pass
    with (
        bench.reduced(model, Ahead(), **language()),
        pytest.raises(Unsupported, match="static cache"),
    ):
        answers(model, batch, cache_implementation="static")
