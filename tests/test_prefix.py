"""Gemma's decoders, which look both ways at the image: plain loops, masks, windows, refusals."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import vlm_models as tiny
from PIL import Image
from torch import Tensor

import bench
from bench.core import Plan, Reducer
from bench.core.errors import Unsupported
from bench.core.kinds import LanguageReducer
from bench.core.site import ProjectorSite
from bench.models import multimodal

FAMILIES = ["PaliGemma", "Gemma 3"]


class Keeps(Reducer):
    """Keeps these patches, of each image the same."""

    towers: ClassVar[tuple[str, ...]] = ("vision", "projector")
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def __init__(self, chosen: list[int]) -> None:
        self.chosen, self.sites = chosen, list[Any]()

    def plan(self, site: Any, r: int) -> Plan:
        self.sites.append(site)
        return Plan(torch.tensor([self.chosen] * len(site.x)))


class Drops(LanguageReducer):
    """Drops the last image tokens ahead of a block."""

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def plan(self, site: Any, r: int) -> Plan:
        gone = (~site.protect).nonzero()[-r:, 1].tolist()
        return Plan(torch.tensor([[i for i in range(site.x.shape[1]) if i not in gone]]))


class Looks(Drops):
    """Keeps all, and notes the queries and keys of the coming block."""

    def plan(self, site: Any, r: int) -> Plan:
        self.ahead = site.ahead()
        return Plan(torch.arange(site.x.shape[1])[None])


def made(family: str, **how: Any) -> tuple[Any, dict[str, Tensor]]:
    make, batch_of = tiny.MODELS[family]
    return make(**how), batch_of(3)


# --- a decoder by hand ----------------------------------------------------------------------------


def normed(x: Tensor, norm: Any) -> Tensor:
    return x / (x.square().mean() + norm.eps).sqrt() * (1 + norm.weight)


def rotated(x: Tensor, position: int, base: float) -> Tensor:
    half, out = len(x) // 2, torch.empty_like(x)
    for i in range(half):
        angle = torch.tensor(position / base ** (2 * i / len(x)))
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin()
        out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin()
    return out


def by_hand(
    language: Any, x: list[Tensor], sees: Any, first: int, cut: dict[int, list[int]]
) -> Tensor:
    """The last token of a prompt, token by token; ahead of the blocks in `cut` these are left.

    `sees(i, j)` is whether token i of the prompt as it was asked sees j.
    """
    at = list(range(len(x)))
    for layer, block in enumerate(language.layers):
        if layer in cut:
            x, at = [x[at.index(i)] for i in cut[layer]], cut[layer]
        attn, theta = block.self_attn, 1e4
        if hasattr(attn, "layer_type"):
            theta = language.config.rope_parameters[attn.layer_type]["rope_theta"]
        heads: dict[str, list[list[Tensor]]] = {"q": [], "k": [], "v": []}
        for token, i in zip(x, at, strict=True):
            y = normed(token, block.input_layernorm)
            for name, rows in heads.items():
                row = list(getattr(attn, f"{name}_proj")(y).view(-1, attn.head_dim))
                if name != "v":
                    norm = getattr(attn, f"{name}_norm", None)
                    row = [normed(h, norm) if norm is not None else h for h in row]
                    row = [rotated(h, i + first, theta) for h in row]
                rows.append(row)
        out, groups = [], len(heads["q"][0]) // len(heads["k"][0])
        for a, i in enumerate(at):
            mixed = []
            seen = [b for b, j in enumerate(at) if sees(i, j)]
            for h, q in enumerate(heads["q"][a]):
                logits = torch.stack([q @ heads["k"][b][h // groups] for b in seen])
                weight = (logits * attn.scaling).softmax(0)
                mixed.append(weight @ torch.stack([heads["v"][b][h // groups] for b in seen]))
            y = attn.o_proj(torch.cat(mixed))
            if hasattr(block, "pre_feedforward_layernorm"):
                token = x[a] + normed(y, block.post_attention_layernorm)
                y = block.mlp(normed(token, block.pre_feedforward_layernorm))
                out.append(token + normed(y, block.post_feedforward_layernorm))
            else:
                token = x[a] + y
                out.append(token + block.mlp(normed(token, block.post_attention_layernorm)))
        x = out
    return normed(x[-1], language.norm)


@torch.no_grad()
@pytest.mark.parametrize("layers", [(2,), (0, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_is_its_loop(family: str, layers: tuple[int, ...]) -> None:
    model, batch = made(family, blocks=4)
    one = tiny.alone(batch, 0)
    language, embeds = model.model.language_model, []
    hook = language.layers[0].register_forward_pre_hook(lambda _, args: embeds.append(args[0][0]))
    model(**one)
    hook.remove()
    image = (one["input_ids"][0] == tiny.IMAGE).tolist()
    places = [i for i, flag in enumerate(image) if flag]
    n, left, cut = len(image), len(places), {}
    for layer in layers:
        left = (left + 1) // 2
        cut[layer] = [i for i in range(n) if i not in places[left:]]

    def sees(i: int, j: int) -> bool:
        return family == "PaliGemma" or j <= i or (image[i] and image[j])

    method, places_of = Drops(), {"layers": {"language": layers}}
    with bench.reduced(model, method, keep_rate={"language": 0.5}, **places_of):
        found = model(**one).logits[0, -1]
    first = 1 if family == "PaliGemma" else 0
    if 0 in cut:  # ahead of the first block that is a shorter prompt
        kept = cut.pop(0)
        shift = {i: a for a, i in enumerate(kept)}
        x, image = [embeds[0][i] for i in kept], [image[i] for i in kept]
        cut = {layer: [shift[i] for i in some] for layer, some in cut.items()}
    else:
        x = list(embeds[0])
    expected = model.lm_head(by_hand(language, x, sees, first, cut))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_offers_the_coming_blocks_queries_and_keys(family: str) -> None:
    """With their norms and the rotation of that block's kind."""
    model, batch = made(family, blocks=4)
    one, seen = tiny.alone(batch, 0), list[tuple[Tensor, Tensor]]()
    method = Looks()
    attention = model.model.language_model.layers[3].self_attn
    with bench.reduced(model, method, r={"language": [0, 0, 0, 1]}):
        run, inner, fused = attention._reduced
        noted = run.attention

        def noting(q: Tensor, k: Tensor, *args: Any, **kw: Any) -> Tensor:
            seen.append((q, k))
            return noted(q, k, *args, **kw)  # type: ignore[no-any-return]

        run.attention = noting
        model(**one)
    q, k = seen[-1]
    torch.testing.assert_close(method.ahead, (q, k))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_gives_the_same(family: str) -> None:
    batch, found = tiny.MODELS[family][1](3), []
    for backend in ("sdpa", "eager"):
        model = tiny.MODELS[family][0](backend=backend)
        for layers in ((2,), (0, 3)):
            budget = {"keep_rate": {"language": 0.4}, "layers": {"language": layers}}
            with bench.reduced(model, "random", **budget):
                found.append(model(**batch).logits[:, -1])
    for a, b in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


# --- ahead of the decoder -------------------------------------------------------------------------


@torch.no_grad()
def test_paligemma_projects_the_normed_features_that_are_left() -> None:
    model, batch = made("PaliGemma")
    seen: list[Tensor] = []
    vision, project = model.model.vision_tower, model.model.multi_modal_projector
    vision.encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
    with bench.reduced(model, Keeps([3, 9, 30]), r={"vision": [0, 33, 0, 0]}):
        found = model.model.get_image_features(batch["pixel_values"]).pooler_output
    expected = project(vision.post_layernorm(seen[0]))
    assert torch.equal(found[:, :3], expected) and bool(found[:, 3:].isnan().all())


@torch.no_grad()
def test_gemma3_takes_the_mean_of_what_is_left_of_a_group() -> None:
    model, batch = made("Gemma 3")
    kept = [0, 1, 8, 18, 27, 63]  # three patches of the first group, and of others one
    seen: list[Tensor] = []
    vision, project = model.model.vision_tower, model.model.multi_modal_projector
    vision.encoder.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
    with bench.reduced(model, Keeps(kept), r={"vision": [0, 0, 58, 0]}):
        found = model.model.get_image_features(batch["pixel_values"]).pooler_output
    x = vision.post_layernorm(seen[0])
    means = torch.stack([x[:, :3].sum(1) / 3, (x[:, 3] + x[:, 4]) / 2, x[:, 5]], 1)
    expected = project.mm_soft_emb_norm(means) @ project.mm_input_projection_weight
    torch.testing.assert_close(found[:, :3], expected)
    assert found[:, 3:].isnan().all()
    method = Keeps([0])
    with bench.reduced(model, method, r={"projector": 15}):
        model.model.get_image_features(batch["pixel_values"])
    (site,) = method.sites
    assert isinstance(site, ProjectorSite) and (site.joins, site.grid) == (4, (4, 4))
    assert site.x.shape[2] == 32 and site.k.shape[2] == 64


# --- windows, refusals, processors ----------------------------------------------------------------


@torch.no_grad()
def test_what_does_not_fit_into_the_window_is_refused_in_one_line() -> None:
    model, batch = tiny.gemma3(window=44), tiny.gemma3_batch(3)
    length = batch["input_ids"].shape[1]
    assert length == 42
    ways: Any = {"keep_rate": {"language": 0.4}, "layers": {"language": (0, 3)}}
    with bench.reduced(model, "random", **ways):
        assert tiny.answers(model, batch, 2).shape == (3, 2)
        for cache in (True, False):
            with pytest.raises(Unsupported, match="45 tokens are longer than the window of 44"):
                tiny.answers(model, batch, 4, use_cache=cache)
    small = tiny.gemma3(window=40)
    with bench.reduced(small, "random", **ways), pytest.raises(Unsupported) as refusal:
        small(**batch)
    assert "\n" not in str(refusal.value)
    plain = tiny.answers(small, batch, 4)
    with bench.reduced(small, "random", r={"language": lambda *_: 0}):
        assert torch.equal(tiny.answers(small, batch, 4), plain)


@torch.no_grad()
@pytest.mark.parametrize("window", [64, 40])
def test_a_llava_around_gemma3s_decoder_is_causal_and_heeds_its_window(window: int) -> None:
    config, batch = tiny.llava().config, tiny.llava_batch(3)
    config.text_config = tiny.gemma3(window=window).config.text_config
    torch.manual_seed(0)
    model = type(tiny.llava())(config).eval()
    model.generation_config.pad_token_id = tiny.PAD
    plain = model(**batch).logits
    with bench.reduced(model, "random", r={"language": lambda *_: 0}):
        assert torch.equal(model(**batch).logits, plain)
    for layers in ((2,), (0, 3)):
        budget: Any = {"keep_rate": {"language": 0.5}, "layers": {"language": layers}}
        with bench.reduced(model, "random", **budget):
            if window < batch["input_ids"].shape[1]:
                with pytest.raises(Unsupported, match="longer than the window of 40"):
                    model(**batch)
                continue
            together = tiny.answers(model, batch, 3)
            assert torch.equal(together, tiny.answers(model, batch, 3, use_cache=False))
            each = [tiny.answers(model, tiny.alone(batch, i), 3) for i in range(3)]
        assert torch.equal(together, torch.cat(each))


def test_decoders_that_cannot_be_told_their_images_are_refused() -> None:
    model = tiny.paligemma()
    model.config.image_token_index = model.config.image_token_id = tiny.WORDS
    with pytest.raises(Unsupported, match="not among the words it embeds"):
        bench.reduced(model, "tome").__enter__()


def test_an_encoder_whose_norm_is_for_the_class_token_is_refused() -> None:
    config = tiny.paligemma().config
    config.vision_config = tiny.llava().config.vision_config
    model = type(tiny.paligemma())(config)
    with pytest.raises(Unsupported, match="image encoder CLIPVisionModel is not supported here"):
        bench.reduced(model, "tome").__enter__()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_without_types_is_causal(family: str) -> None:
    model, batch = made(family)
    del batch["token_type_ids"]
    plain = model(**batch).logits
    with bench.reduced(model, "random", r={"language": lambda *_: 0}):
        assert torch.equal(model(**batch).logits, plain)
    with bench.reduced(model, "random", keep_rate={"language": 0.5}, layers={"language": [0, 2]}):
        together = tiny.answers(model, batch, 3)
        each = [tiny.answers(model, tiny.alone(batch, i), 3) for i in range(3)]
    assert torch.equal(together, torch.cat(each))


def test_paligemmas_questions_go_through_its_processor() -> None:
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size={"height": 24, "width": 24})
    images.image_seq_length = 36
    words = tiny.words_of("<image>", image_token="<image>")
    words.eos_token, words.padding_side = "<unk>", "left"
    processor = PaliGemmaProcessor(images, words)
    loaded = multimodal.describe("tiny", tiny.paligemma(), {}, processor)
    picture = Image.new("RGB", (40, 30), "red")
    inputs = loaded.prepare([[picture], [picture, picture]], ["what is this?", "red?"])
    assert (inputs["input_ids"] == tiny.IMAGE).sum(1).tolist() == [36, 72]
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}
    assert not inputs["token_type_ids"].any()  # all of it is the prefix
    with bench.reduced(loaded.model, "divprune", keep_rate=0.5):
        assert tiny.answers(loaded.model, inputs, 2).shape == (2, 2)
    taught = loaded.teach([[picture], [picture]], ["what is this?", "red?"], ["red", "this"])
    answered = taught["labels"] != -100
    assert taught["labels"][answered].tolist() == [6, 2, 5, 2]  # each with the end of text
    assert torch.equal(answered, taught["token_type_ids"].bool())


TEMPLATE = (
    "{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %}<boi>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)


def test_gemma3s_questions_go_through_its_processor() -> None:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    images = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    marks = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    words = tiny.words_of("<image>", **marks)
    words.padding_side = "left"
    processor = Gemma3Processor(images, words, chat_template=TEMPLATE, image_seq_length=16)
    loaded = multimodal.describe("tiny", tiny.gemma3(), {}, processor)
    picture = Image.new("RGB", (40, 30), "red")
    inputs = loaded.prepare([[picture], [picture, picture]], ["what is this?", "red?"])
    image = inputs["input_ids"] == tiny.IMAGE
    assert image.sum(1).tolist() == [16, 32]
    assert torch.equal(inputs["token_type_ids"].bool(), image)
    with bench.reduced(loaded.model, "divprune", keep_rate=0.5):
        assert tiny.answers(loaded.model, inputs, 2).shape == (2, 2)
