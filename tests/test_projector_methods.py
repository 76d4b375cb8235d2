"""Methods ahead of a language model, and what a site offers them: the authors' outputs, models."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import vlm_models as tiny
from PIL import Image
from sites import classless, close, projector_site, received_as
from torch import Tensor

import bench
from bench.core import BenchError, Plan, Unsupported, methods
from bench.core.kinds import ProjectorReducer, is_adaptive
from bench.core.site import ProjectorSite
from bench.measure.closed_form import check_counters
from bench.models.catalogue import load
from bench.models.guide import guide
from bench.models.multimodal import PromptedModel
from bench.runs.cell import parameters
from bench.runs.shape_only import on_meta
from methods.cdpruner import CDPruner, relevance
from methods.hiprune import HiPrune
from methods.holov import HoloV
from methods.scope import Scope
from methods.trim import Trim

# --- HiPrune ----------------------------------------------------------------------------------


def test_hiprune_cuts_neighbours_ahead_of_anchors() -> None:
    x, q, k = received_as(torch.linspace(2, 1, 36), 1)
    s = classless(x, q, k, grid=(6, 6), further=(classless(x, q, k),))
    keep = HiPrune(alpha=1.0).plan(s, 36 - 3).keep  # round(3/5) = 1 anchor, 0, and 1 and 6
    assert keep.tolist() == [[0, 1, 6]]
    keep = HiPrune(alpha=1.0).plan(s, 36 - 13).keep  # round(13/5) = 3 anchors: 0, 1, 2
    assert keep.tolist() == [[0, 1, 2, 3, 6, 7, 8, 4, 5, 9, 10, 11, 12]] or keep.shape == (1, 13)
    assert {0, 1, 2} <= set(keep[0].tolist())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HiPrune(alpha=1.5), r"alpha must be a share in \[0, 1\]"),
        (lambda: HiPrune(object_layer=0), "object_layer must be a layer from 1"),
        (lambda: HiPrune(object_layer=2.5), "object_layer must be a layer from 1"),
        (lambda: HoloV(crops=0), "crops must be at least 1"),
        (lambda: Scope(combine="multi"), "scope has no combine 'multi'.*multiply"),
        (lambda: HiPrune(object_layer=25).also_reads(24), "outside of the encoder's 24"),
    ],
)
def test_wrong_parameters_are_named(make: Any, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        make()


# --- what a site at the projector offers ------------------------------------------------------


class Looks(ProjectorReducer):
    """Keeps the first tokens, and remembers what it saw."""

    name = "looks"

    def __init__(self, reads: int | None = 0, before: bool = True) -> None:
        object.__setattr__(self, "reads", reads)
        object.__setattr__(self, "before", before)
        self.sites: list[ProjectorSite] = []

    def also_reads(self, depth: int) -> tuple[int, ...]:
        return (0, depth - 1)

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        self.sites.append(site)
        n = site.x.shape[1]
        return Plan(torch.arange(n - r).expand(len(site.x), -1))


def inside(family: str, method: Any, budget: Any = 0.5, **kw: Any) -> list[ProjectorSite]:
    """The sites of a pass through a tiny model."""
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(3)
    with torch.no_grad(), bench.reduced(model, [*kw.get("ahead", ()), (method, {
        "keep_rate": {"projector": budget}})]):  # fmt: skip
        model(**batch)
    return method.sites  # type: ignore[no-any-return]


@pytest.mark.parametrize("before", [True, False])
def test_attention_of_several_blocks_of_a_clip(before: bool) -> None:
    make, batch_of = tiny.MODELS["LLaVA"]
    model, batch = make(backend="eager"), batch_of(3)
    with torch.no_grad():
        seen = model.model.vision_tower(
            batch["pixel_values"], output_attentions=True, output_hidden_states=True
        )
        projected = model.model.multi_modal_projector(seen.hidden_states[-2][:, 1:])
    method = Looks(before=before)
    (site,) = inside("LLaVA", method)
    depth = len(seen.attentions)
    for view, block in zip((site, *site.further), (depth - 2, 0, depth - 1), strict=True):
        close(view.attention(), seen.attentions[block])
        close(view.received(), seen.attentions[block].mean((1, 2)))
    x = seen.hidden_states[-2]
    if not before:
        x = torch.nn.functional.pad(projected, (0, 0, 1, 0))
    close(site.x, x)
    assert site.protect[:, 0].all() and not site.protect[:, 1:].any() and site.n_protected == 1


def test_attention_of_packed_patches() -> None:
    """Four patches to a token: their attention gives what the block's attention gave."""
    model, batch = tiny.qwen2_vl(), tiny.qwen_batch(3)
    outputs: list[Tensor] = []
    attention = model.model.visual.blocks[-1].attn
    method = Looks()
    with (
        torch.no_grad(),
        bench.reduced(model, method, keep_rate={"projector": 0.5}),
        attention.register_forward_hook(lambda module, args, out: outputs.append(out)),
    ):
        model(**batch)
        given = [s.attention() @ s.v for s in method.sites]
        close(attention.proj(torch.cat([y.transpose(1, 2)[0].flatten(1) for y in given])), *outputs)
    assert [s.x.shape[1] for s in method.sites] == [9, 8, 6]
    for s in method.sites:
        n = s.x.shape[1]
        assert s.joins == 4 and s.q.shape[2] == 4 * n
        each = s.attention().mean((1, 2))[0]
        close(s.received()[0], torch.stack([each[4 * i : 4 * i + 4].mean() for i in range(n)]))
        assert torch.equal(s.k, s.further[1].k)  # the last block makes the features
        assert not torch.equal(s.k, s.further[0].k)


def test_attention_follows_what_a_method_ahead_removed() -> None:
    ahead = ("random", {"keep_rate": {"projector": 0.5}})
    for family in ("LLaVA", "Qwen2-VL"):
        method = Looks(before=False)  # random acts behind the projector, too
        sites = inside(family, method, ahead=[ahead])
        whole = inside(family, Looks(before=False))
        for few, all_ in zip(sites, whole, strict=True):
            n = few.x.shape[1]
            assert n < all_.x.shape[1] and few.attention().shape[-1] == n * few.joins
            at = [int((all_.x[0] == row).all(1).nonzero()[0]) for row in few.x[0]]
            at = [i * few.joins + part for i in at for part in range(few.joins)]
            assert torch.equal(few.q[0], all_.q[0][:, at])
            assert torch.equal(few.further[0].k[0], all_.further[0].k[0][:, at])


@pytest.mark.parametrize(
    ("family", "ahead", "says"),
    [
        ("BLIP-2", [], "projector gets no tokens of the image encoder's blocks"),
        ("LLaVA", [("evit", {"keep_rate": 0.5, "layers": [1]})],
         "attention of vision block 0 is not that of the tokens left: give evit layers="),
        ("Qwen2-VL", [("tome", {"r": 2})], "is not that of the tokens left: give tome layers="),
    ],
)  # fmt: skip
def test_attention_that_is_lost_is_refused_where_it_is_read(
    family: str, ahead: Any, says: str
) -> None:
    with pytest.raises(Unsupported, match=says):
        inside(family, Looks(), ahead=ahead)
    (site, *_) = inside(family, Looks(reads=None), ahead=ahead)
    with pytest.raises(Unsupported, match="no attention can be read here: the tokens are not"):
        site.attention()


@pytest.mark.parametrize("family", ["LLaVA", "Qwen2-VL"])
def test_any_method_at_the_projector_can_look_at_the_feature_block(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def plan(self: Any, site: Any, r: int) -> Plan:
        seen.append(site.received())
        return Plan(torch.arange(site.x.shape[1] - r).expand(len(site.x), -1))

    method = methods()["random"]()
    monkeypatch.setattr(type(method), "plan", plan)
    make, batch_of = tiny.MODELS[family]
    with torch.no_grad(), bench.reduced(make(), method, keep_rate={"projector": 0.5}) as model:
        model(**batch_of(2))
    assert all(bool(received.isfinite().all()) and received.ndim == 2 for received in seen)
    assert len(seen) == (2 if family == "Qwen2-VL" else 1)


# --- HoloV ------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT", "Qwen2-VL"])
def test_rows_of_zeros_are_read_by_the_language_model(family: str) -> None:
    """At this budget, crops of high attention have a share of more tokens than they hold."""
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(2)
    rows: list[Tensor] = []
    language = model.model.language_model
    with (
        bench.reduced(model, HoloV(), keep_rate={"projector": 0.8}),
        language.layers[0].register_forward_pre_hook(lambda m, a: rows.append(a[0])),
    ):
        model(**batch)
        seen = bench.trace(model, **tiny.alone(batch, 0)).tokens
    zeros = (rows[-1] == 0).all(-1).sum(1)  # of one prompt, without empty slots
    assert int(zeros.sum()) > 0
    assert sum(after for _, after in seen["projector"]) >= int(zeros[0])


# --- CDPruner and TRIM ------------------------------------------------------------------------


def test_a_question_of_fewer_segments_is_as_alone() -> None:
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(1, 9, 6, generator=g), torch.randn(1, 2, 6, generator=g)
    longer = torch.nn.functional.pad(text, (0, 0, 0, 3))
    close(relevance(image, longer, False), relevance(image, text, False))


def test_trim_without_outliers_keeps_the_mean_alone() -> None:
    x = torch.randn(2, 8, 5)
    same = torch.ones(2, 8, 3)
    none = x[:, None, :, :0]
    s = classless(x, none, none, image_embeds=same, text_embeds=torch.ones(2, 1, 3))
    plan = Trim().plan(s, 6)
    close(plan.apply(s.x, s.size)[0], x.mean(1, keepdim=True))


WORDED = {"cdpruner": CDPruner(), "trim": Trim(), "trim-budget": Trim(adaptive=False)}


@torch.no_grad()
@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT"])
@pytest.mark.parametrize("name", WORDED)
def test_patches_are_compared_with_their_own_question(family: str, name: str) -> None:
    """CLIP's own towers, sample by sample, give what the method's site holds in a batch."""
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(4)
    method, clip = WORDED[name], model.text_guide.clip
    sites: list[ProjectorSite] = []
    plan = type(method).plan
    watched = type("Watched", (type(method),), {
        "plan": lambda self, s, r: sites.append(s) or plan(self, s, r)})()  # fmt: skip
    hidden: list[Tensor] = []
    feature_block = bench.adapter_for(model).towers(model)["vision"].blocks[-2]
    with (
        bench.reduced(model, watched),
        feature_block.register_forward_hook(lambda m, a, out: hidden.append(out)),
    ):
        model(**batch)
        together = tiny.answers(model, batch, 3)
        each = torch.cat([tiny.answers(model, tiny.alone(batch, i), 3) for i in range(4)])
    assert torch.equal(together, each) and "generate" not in vars(model)
    site_, features = sites[0], hidden[0]
    assert site_.image_embeds is not None and site_.text_embeds is not None
    close(site_.image_embeds, clip.visual_projection(clip.vision_model.post_layernorm(features)))
    owner = 0
    crops = [3, 5, 3, 5] if family == "LLaVA-NeXT" else [1] * 4
    for ids, count in zip(batch["input_ids"], crops, strict=True):
        words = [i for i in ids.tolist() if i not in (tiny.PAD, tiny.IMAGE)]
        text = torch.tensor([[98, *words, 99]])
        expected = clip.text_projection(clip.text_model(input_ids=text).pooler_output)
        for crop in range(count):
            close(site_.text_embeds[owner + crop], expected)
        owner += count
    assert owner == len(site_.x)


@torch.no_grad()
def test_long_questions_go_in_segments_or_are_cut() -> None:
    guide = tiny.llava().text_guide
    clip, long = guide.clip, torch.arange(2, 32)[None]  # 14 positions: 32 ids with start and end
    ids = [98, *range(2, 32), 99]
    parts = torch.tensor([ids[:14], ids[14:28], ids[28:] + [0] * 10])
    whole = clip.text_projection(clip.text_model(input_ids=parts).pooler_output)
    close(guide.texts(long, cut=False)[0], whole)
    cut = clip.text_model(input_ids=torch.tensor([[*ids[:13], 99]])).pooler_output
    close(guide.texts(long, cut=True)[0], clip.text_projection(cut))
    two = torch.cat([long, torch.tensor([[5, 6] + [tiny.PAD] * 28])])
    embeds = guide.texts(two, cut=False)
    close(embeds[0], whole)
    assert (embeds[1, 1:] == 0).all() and (embeds[1, 0] != 0).any()


@torch.no_grad()
def test_the_text_tower_is_a_cost_of_the_reduction() -> None:
    model, batch = tiny.llava(), tiny.llava_batch(1)
    guide = model.text_guide
    with bench.reduced(model, "fastervlm", keep_rate=1 / 9):
        other = bench.count_macs(model, **batch)
    with bench.reduced(model, "cdpruner", keep_rate=1 / 9):
        counted = bench.count_macs(model, **batch)
        check_counters(model, bench.trace(model, **batch), counted)
    text = bench.count_macs(guide.clip.text_model, input_ids=torch.ones(1, 14, dtype=torch.long))
    assert counted.reduction > text.total and other.reduction < text.total
    towers = ("model.vision_tower", "model.language_model")
    assert all(counted.by_module[name] == other.by_module[name] for name in towers)


@pytest.mark.parametrize("name", ["cdpruner", "trim"])
def test_without_a_text_tower_one_line_says_what_is_missing(name: str) -> None:
    model = tiny.llava()
    del model.text_guide
    for bare in (model, tiny.qwen2_vl(), tiny.blip2()):
        with pytest.raises(
            Unsupported, match="set its text_guide to a bench.TextGuide of the CLIP"
        ):
            bench.reduced(bare, name).__enter__()


@torch.no_grad()
def test_images_that_belong_to_no_one_prompt_are_refused() -> None:
    model, batch = tiny.llava(), tiny.llava_batch(2)
    prompts = tiny.prompts([72, 36], [(3, 5), (1, 9)])
    with bench.reduced(model, "trim"):
        with pytest.raises(Unsupported, match="2 prompts have 3 images: run with batch size 1"):
            model(**prompts, pixel_values=tiny.pixels(3))
        both = {**tiny.prompts([72], [(3, 5)]), "pixel_values": tiny.pixels(2)}
        assert model(**both).logits.isfinite().all()
        embedded = model.get_input_embeddings().weight[batch["input_ids"]]
        with pytest.raises(Unsupported, match="needs a prompt of ids"):
            model(inputs_embeds=embedded, pixel_values=batch["pixel_values"])


@torch.no_grad()
def test_a_known_llava_finds_the_clip_it_was_built_on() -> None:
    loaded = on_meta("llava-1.5-7b-hf")
    assert not isinstance(loaded.model.text_guide, bench.TextGuide)  # loaded when first asked for
    plain = parameters(loaded.model)
    with loaded.valueless_inputs() as inputs, bench.reduced(loaded.model, "trim"):
        loaded.model(**inputs)
        added = parameters(loaded.model)
    guide_ = loaded.model.text_guide
    assert guide_.clip.config.text_config.hidden_size == 768 and guide_.clip.device.type == "meta"
    text = sum(p.numel() for p in guide_.clip.text_model.parameters())
    assert added.total - plain.total == added.added == text + 768 * 768 + 1024 * 768 + 2 * 1024


@torch.no_grad()
def test_a_llava_is_guided_by_a_clip_with_its_tokenizer() -> None:
    """The embedded LLaVA has trained its encoder away from the CLIP: only the way is tried."""
    llava, clip = (load(f"embedded:{name}-emoji") for name in ("llava", "clip"))
    assert isinstance(llava, PromptedModel)
    with pytest.raises(Unsupported, match="has no text tower"):
        bench.reduced(llava.model, "cdpruner").__enter__()
    images = [[Image.new("RGB", (64, 64), colour)] for colour in ("red", "blue")]
    inputs = llava.placed(llava.prepare(images, ["what is in it ?", "how many apples ?"]))
    texts = llava.questions(inputs["input_ids"])
    assert texts[0].startswith("what is") and texts[1].startswith("how many") and len(texts) == 2
    llava.model.text_guide = guide(llava, clip)
    with bench.reduced(llava.model, "cdpruner", keep_rate=0.25):
        assert len(llava.answer(images, ["what is in it ?", "how many apples ?"], 2)) == 2
    expected = clip.model.get_text_features(**clip.tokenizer(texts))  # type: ignore[attr-defined]
    embeds = llava.model.text_guide.texts(inputs["input_ids"], cut=False)
    close(embeds[:, 0], getattr(expected, "pooler_output", expected))
    with pytest.raises(BenchError, match="is not the CLIP that the image encoder of"):
        guide(llava, load("embedded:vit-fashion"))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("USER: {}\n{} ASSISTANT:", "USER: <image>\nwhat is it ? ASSISTANT:"),
        ("USER: {}\n{} ASSISTANT:", "USER: <image>\nwhat is it ? ASSISTANT: a cat </s>"),
        ("[INST] {}\n{} [/INST]", "<s> [INST] <image>\nwhat is it ? [/INST]"),
    ],
)
def test_the_template_is_no_part_of_the_question(template: str, prompt: str) -> None:
    class Words:
        all_special_tokens: ClassVar[list[str]] = ["<s>", "</s>"]

        def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
            text = "".join(chr(i) for i in rows[0])
            return [text.replace("<s>", "").replace("</s>", "")]

    processor = SimpleNamespace(
        tokenizer=Words(),
        image_token="<image>",
        chat_template="a template",
        apply_chat_template=lambda turns, **kw: template.format(
            "<image>", turns[0]["content"][-1]["text"]
        ),
    )
    model = SimpleNamespace(config=SimpleNamespace(model_type="llava", image_token_id=0))
    asked = PromptedModel("any", model, (64, 64), processor=processor)
    ids = [0 if part == "<image>" else ord(c) for part in re.split("(<image>)", prompt)
           for c in (part if part != "<image>" else "i")]  # fmt: skip
    assert asked.questions(torch.tensor([ids])) == ["what is it ?"]


# --- all of them ------------------------------------------------------------------------------

METHODS = {
    "hiprune": HiPrune(),
    "hiprune-recount": HiPrune(recount=True),
    "holov": HoloV(),
    "holov-crops": HoloV(crops=4),
    "scope": Scope(),
    "scope-add": Scope(combine="add"),
}


def some_site(seed: int = 0) -> ProjectorSite:
    """Three images of 36 patches, with their class tokens."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 37, 24, generator=g)
    q, k, q2, k2 = torch.randn(4, 3, 3, 37, 8, generator=g).unbind(0)
    return projector_site(x, 1.5 * q, k, grid=(6, 6), further=(projector_site(x, q2, k2),))


@pytest.mark.parametrize("name", [n for n in METHODS if not is_adaptive(METHODS[n])])
def test_decides_as_one_graph(name: str) -> None:
    s = some_site()

    def decide(x: Tensor, q: Tensor) -> Tensor:
        return METHODS[name].plan(replace(s, x=x, q=q), 25).apply(x, s.size)[0]

    torch._dynamo.reset()
    compiled = torch.compile(decide, fullgraph=True, backend="aot_eager")
    close(compiled(s.x, s.q), decide(s.x, s.q))


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_decides_as_float32_of_the_same_numbers(name: str) -> None:
    def cast(s: ProjectorSite, *to: torch.dtype) -> ProjectorSite:
        for dtype in to:
            s = replace(s, **{t: getattr(s, t).to(dtype) for t in ("x", "q", "k", "v")})
        return replace(s, further=tuple(cast(view, *to) for view in s.further))

    half, same = cast(some_site(), torch.bfloat16), cast(some_site(), torch.bfloat16, torch.float32)
    assert torch.equal(METHODS[name].plan(half, 25).keep, METHODS[name].plan(same, 25).keep)


@pytest.mark.parametrize("name", METHODS)
def test_of_equal_tokens_the_first_are_kept(name: str) -> None:
    s = some_site()
    s = replace(s, **{t: torch.ones_like(getattr(s, t)) for t in ("x", "q", "k", "v")})
    keep = METHODS[name].plan(replace(s, further=(s,)), 25).keep
    if name == "holov-crops":  # of 9 patches each, with 3, 3, 3 and 2 of the tokens
        assert keep.tolist() == [[0, 1, 2, 3, 10, 11, 12, 19, 20, 21, 28, 29]] * 3
    elif name != "holov":  # crops of two and of three patches do not score the same
        assert keep.tolist() == [list(range(12))] * 3
