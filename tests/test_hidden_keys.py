"""Keys that methods hide from new tokens: who sees what, and that nothing else changes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import vlm_models as tiny
from torch import Tensor
from vlm_models import VIDEO, alone, videos

import bench
from bench.core import Plan
from bench.core.errors import Unsupported
from bench.core.kinds import DecodeReducer
from bench.core.site import DecodeSite
from bench.engine.families.tapping import tapped
from bench.engine.families.vlm import MultimodalAdapter
from bench.measure.generation import stage_macs
from bench.models.noise import asked

NEW = 4
LAYER = 2
DECODE = ("dycoke-decode", {"keep_rate": 0.3, "layers": [LAYER]})
FAMILIES = {
    "LLaVA": (tiny.llava, tiny.llava_batch),
    "LLaVA eager": (functools.partial(tiny.llava, "eager"), tiny.llava_batch),
    "BLIP-2": (tiny.blip2, tiny.blip2_batch),
    "Qwen2.5-VL": (tiny.qwen2_5_vl, tiny.qwen_batch),
    "Qwen3-VL": (tiny.qwen3_vl, tiny.qwen_batch),
    "OneVision": (tiny.onevision, tiny.onevision_videos),
    "Gemma 3": (tiny.gemma3, tiny.gemma3_batch),
}
families = pytest.mark.parametrize("family", FAMILIES)


class Blind:
    """By hand: attention of the language model in which new tokens do not see some keys."""

    def __init__(self, tower: Any, image: Tensor, hidden: Any) -> None:
        self.layers = {id(block.self_attn.q_proj): i for i, block in enumerate(tower.blocks)}
        self.image, self.hidden, self.layer = image, hidden, -1

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, inner: Any, fused: bool
    ) -> Tensor:
        self.layer = (self.layer + 1) % len(self.layers)
        if q.shape[2] > 1:
            return inner(q, k, v, mask, scale)  # type: ignore[no-any-return]
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        logits = (q @ k.mT * scale)[:, :, 0]
        if self.layer == 0:
            self.gone = torch.zeros(len(k), k.shape[2], dtype=torch.bool)
        if self.layer == LAYER:
            for b, image in enumerate(self.image):
                at = image.nonzero()[:, 0].tolist()
                gone = self.hidden(b, at, self.before[b].tolist())
                self.gone[b, gone] = True
        if mask is not None:
            filled = mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] >= 0
            logits = logits.masked_fill(~filled[:, None], -torch.inf)
        if self.layer >= LAYER:
            logits = logits.masked_fill(self.gone[:, None], -torch.inf)
        weights = logits.softmax(-1)
        self.before = weights.mean(1)
        return weights[:, :, None] @ v


def least(b: int, at: list[int], pays: list[float]) -> list[int]:
    """Of the image's keys but the last those that got least, all but three tenths."""
    order = sorted(at[:-1], key=lambda i: -pays[i])
    return order[int(0.3 * (len(at) - 1)) :]


def by_hand(model: Any, inputs: Any, hidden: Any) -> Tensor:
    """(B,T,V) scores of an answer."""
    tower: Any = MultimodalAdapter().towers(model)["language"]
    run: Any = Blind(tower, tower.image_of(inputs["input_ids"]), hidden)
    with tapped([block.self_attn for block in tower.blocks], run):
        return scores(model, inputs)


@torch.no_grad()
def scores(model: Any, inputs: Any, new: int = NEW) -> Tensor:
    out = model.generate(
        **inputs,
        max_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, 1)


@families
def test_a_new_token_sees_what_the_block_before_went_to(family: str) -> None:
    """In a padded batch as by hand; a prompt is answered as by the plain model."""
    make, batch_of = FAMILIES[family]
    model, inputs = make(), batch_of(3)
    plain, expected = scores(model, inputs), by_hand(model, inputs, least)
    with bench.reduced(model, DECODE[0], **DECODE[1], steady=2.0):
        got = scores(model, inputs)
        each = [scores(model, alone(inputs, i)) for i in range(3)]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(each), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(got[:, 0], plain[:, 0])
    assert not torch.allclose(got[:, 1], plain[:, 1], atol=1e-3)
    assert torch.equal(scores(model, inputs), plain)


@families
def test_where_attention_is_steady_all_keys_are_seen(family: str) -> None:
    """From the second new token on; each answer begins anew. Or the first's, as in the paper."""
    make, batch_of = FAMILIES[family]
    model, inputs, first = make(), batch_of(2), {}

    def once(b: int, at: list[int], pays: list[float]) -> list[int]:
        gone = [] if b in first else least(b, at, pays)
        return first.setdefault(b, gone) and gone

    def always(b: int, at: list[int], pays: list[float]) -> list[int]:
        return first[b]

    expected = by_hand(model, inputs, once)
    with bench.reduced(model, DECODE[0], **DECODE[1], steady=-2.0):
        for _ in range(2):
            torch.testing.assert_close(scores(model, inputs), expected, atol=1e-4, rtol=1e-4)
    expected = by_hand(model, inputs, always)
    with bench.reduced(model, DECODE[0], **DECODE[1], steady=-2.0, mended=True):
        torch.testing.assert_close(scores(model, inputs), expected, atol=1e-4, rtol=1e-4)


class Looks(DecodeReducer):
    """Notes what it sees; the image's first keys are hidden."""

    def __init__(self, odd: bool = False) -> None:
        self.sites: list[DecodeSite] = []
        self.odd = odd  # every second sample sees all

    def plan(self, site: Any, r: int) -> Plan:
        self.sites.append(site)
        fixed, image = site.split()
        gone = 0 if self.odd and len(self.sites) % 2 else r
        return Plan(torch.cat([fixed, image[:, gone:]], 1).sort(1).values)


def test_samples_may_see_unequally_many_keys() -> None:
    """Of prompts with padding, and of equally long ones, which have no mask."""
    for family in ("LLaVA", "LLaVA eager"):
        make, batch_of = FAMILIES[family]
        model, padded = make(), batch_of(2)
        twice = {name: t.repeat(2, *[1] * (t.dim() - 1)) for name, t in batch_of(1).items()}
        for inputs in (padded, twice):
            with bench.reduced(model, Looks(odd=True), r=10, layers=[LAYER]):
                got = scores(model, inputs)
            expected = by_hand(model, inputs, lambda b, at, _: at[:10] if b else [])
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_site_holds_the_cache_of_the_block_before() -> None:
    model, inputs, looks = tiny.llava(), tiny.llava_batch(2), Looks()
    ways: list[Any] = [
        ("divprune", {"keep_rate": 0.5}),
        (looks, {"r": 4, "layers": [LAYER]}),
    ]
    with bench.reduced(model, ways):
        scores(model, inputs)
    longest = inputs["input_ids"].shape[1] - 18
    assert len(looks.sites) == 2 * (NEW - 1)
    for i, site in enumerate(looks.sites):
        assert (site.layer, site.q.shape[2], site.k.shape[2]) == (LAYER, 1, longest + 1 + i // 2)
        padding = int((inputs["attention_mask"][i % 2] == 0).sum())
        assert int((site.size == 0).sum()) == padding
        image = (~site.protect[0]).nonzero()[:, 0].tolist()
        before = padding + int((inputs["input_ids"][i % 2] != tiny.IMAGE).int().cumsum(0)[-1])
        assert len(image) == 18 and image == list(range(image[0], image[0] + 18)), before
        assert not site.attention()[..., :padding].any()


@torch.no_grad()
def test_both_stages_of_dycoke_on_videos() -> None:
    """One after the other; a batch as each video alone."""
    for family, make in (("Qwen2.5-VL", tiny.qwen2_5_vl), ("Qwen3-VL", tiny.qwen3_vl)):
        model, given = make(), videos(family, [0, 1])
        ways: list[Any] = [("dycoke", {"keep_rate": 0.6}), DECODE]
        with bench.reduced(model, ways[:1]):
            first = scores(model, given)
        with bench.reduced(model, ways):
            together = scores(model, given)
            each = [scores(model, videos(family, [i])) for i in range(2)]
        torch.testing.assert_close(together, torch.cat(each), atol=1e-4, rtol=1e-4)
        assert torch.equal(together[:, 0], first[:, 0])
        assert not torch.allclose(together[:, 1], first[:, 1], atol=1e-3)
        assert (given["input_ids"] == VIDEO).any()


def test_hidden_keys_are_not_attended_and_stay_in_the_cache() -> None:
    """MACs of a further token, with values and without."""
    model, inputs = tiny.llava(), tiny.llava_batch(1)
    plain = stage_macs(model, inputs)
    with bench.reduced(model, DECODE[0], **DECODE[1]):
        hidden = stage_macs(model, inputs)
    keys, gone = inputs["input_ids"].shape[1] + 1, 36 - 1 - int(0.3 * 35)
    less = 4 * gone * 2 * 32  # blocks, keys, two products, query width
    looks = keys * 32  # the attention that is looked at, one product
    assert hidden.kv_bytes == plain.kv_bytes
    assert {**hidden.macs, "decode": 0} == {**plain.macs, "decode": 0}
    assert plain.macs["decode"] - hidden.macs["decode"] == less - looks
    valueless = tiny.llava().to("meta")
    with asked(valueless, 8) as prompt, bench.reduced(valueless, DECODE[0], **DECODE[1]):
        assert stage_macs(valueless, prompt).macs["decode"] == hidden.macs["decode"]


def test_nothing_hidden_is_the_plain_model() -> None:
    for make, batch_of in FAMILIES.values():
        model, inputs = make(), batch_of(2)
        plain = scores(model, inputs)
        for budget in ({"keep_rate": 1.0}, {"r": {"language": lambda *_: 0}}):
            with bench.reduced(model, DECODE[0], **budget):
                assert torch.equal(scores(model, inputs), plain)


def test_what_cannot_be_hidden_is_refused() -> None:
    model, inputs = tiny.llava(), tiny.llava_batch(1)
    for ways, words in (
        ([(DECODE[0], {"keep_rate": 0.5, "layers": [0]})], "no block runs ahead of block 0"),
        ([(DECODE[0], {"keep_rate": 0.5, "layers": [1, 2]})], "from one block on alone"),
        ([DECODE, DECODE], "'dycoke-decode' alone can hide keys"),
        ([DECODE, ("fastv", {"keep_rate": 0.5, "layers": [3]})], "leave in an earlier block"),
    ):
        with bench.reduced(model, ways), pytest.raises(Unsupported, match=words):
            scores(model, inputs)
    with bench.reduced(model, [("fastv", {"keep_rate": 0.5, "layers": [1]}), DECODE]):
        assert scores(model, inputs).isfinite().all()
    with (
        pytest.raises(Unsupported, match="is read by an encoder"),
        bench.reduced(tiny.blip2_t5(), DECODE[0]),
    ):
        pass
