"""BLIP-2 with T5: image tokens leave its encoder, and its decoder reads what is left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import vlm_models as tiny
from PIL import Image
from torch import Tensor

import bench
from bench.core import Plan, Reducer, Site
from bench.core.errors import Unsupported
from bench.core.kinds import LanguageReducer
from bench.measure.closed_form import check_counters
from bench.measure.generation import stage_macs
from bench.models import catalogue
from bench.models.multimodal import PromptedModel
from bench.models.noise import noise

IMAGE, DEPTH = 8, 6  # tokens of the image, blocks of the encoder
GONE = {2: [[1, 4, 6], [0, 2, 7], [3, 4, 5]], 4: [[0, 2], [1, 3], [6, 7]]}  # by layer and sample


class Chosen(Reducer):
    """Drops those image tokens, by their places in the whole image, that `GONE` names."""

    name = "chosen"
    towers: ClassVar[tuple[str, ...]] = ("language",)
    before: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}
    late: ClassVar[int] = 0  # how many blocks after the layer its tokens are gone

    def plan(self, site: Site, r: int) -> Plan:
        left = [[i for i in range(IMAGE) if i not in self.earlier(site, b)] for b in range(3)]
        rows = []
        for b in range(3):
            image = (~site.protect[b]).nonzero()[:, 0].tolist()
            gone = {image[left[b].index(i)] for i in GONE[site.layer][b]}
            rows.append([i for i in range(site.x.shape[1]) if i not in gone])
        return Plan(torch.tensor(rows))

    def earlier(self, site: Site, b: int) -> list[int]:
        return [i for layer in GONE if layer < site.layer for i in GONE[layer][b]]


class Renumbering(Chosen, LanguageReducer):
    """The same; those that stay count on without gaps."""

    name = "chosen-renumbering"
    renumbers: ClassVar[bool] = True


class Behind(Chosen):
    """The same, behind a block's attention."""

    name = "chosen-behind"
    before: ClassVar[bool] = False
    late: ClassVar[int] = 1


def budget() -> dict[str, Any]:
    counts = [len(GONE[layer][0]) if layer in GONE else 0 for layer in range(DEPTH)]
    return {"r": {"language": counts}}


# --- HF's own model with the tokens hidden by masks, in place of removed -------------------------


@contextlib.contextmanager
def masked(
    model: Any,
    batch: dict[str, Tensor],
    late: int,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """No attention sees the tokens of `GONE`, from their layer (and `late` blocks more) on.

    `change` makes the bias of a block (B or 1,H,N,N) from the plain one and what is visible (B,N).
    """
    t5, filled = model.language_model, batch["attention_mask"].bool()

    def visible(layer: int) -> Tensor:
        shown = filled.clone()
        for at, samples in GONE.items():
            for b, gone in enumerate(samples):
                shown[b, torch.tensor(gone)] &= at + late > layer
        return shown

    def hide(layer: int) -> Callable[..., Any]:
        def hook(_: Any, args: Any) -> Any:
            shown = visible(layer)
            low = torch.finfo(args[0].dtype).min
            mask = torch.zeros(shown.shape).masked_fill(~shown, low)[:, None, None]
            bias = args[2]
            if change is not None and bias is not None:
                bias = change(bias, shown)
            return (args[0], mask, bias, *args[3:])

        return hook

    def read(_: Any, args: Any, kw: dict[str, Any]) -> Any:
        return args, {**kw, "encoder_attention_mask": visible(DEPTH + 9).long()}

    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(t5.encoder.block):
            stack.enter_context(block.register_forward_pre_hook(hide(layer)))
        stack.enter_context(t5.decoder.register_forward_pre_hook(read, with_kwargs=True))
        yield


def scores(model: Any, batch: dict[str, Tensor], **kw: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens and their scores (B,T,V)."""
    with torch.no_grad():
        out = model.generate(
            **batch,
            max_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **kw,
        )
    return out.sequences, torch.stack(out.logits, 1)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [Chosen(), Behind()])
def test_removed_is_masked_in_the_plain_model_with_the_same_positions(
    method: Chosen, backend: str
) -> None:
    model, batch = tiny.blip2_t5(backend), tiny.blip2_t5_batch(3)
    plain = scores(model, batch)[1]
    with bench.reduced(model, method, **budget()):
        tokens, reduced = scores(model, batch)
        logits = model(**batch).logits
        seen = bench.trace(model, **batch)
    assert [n for n, _ in seen.tokens["language"]][-1] == batch["input_ids"].shape[1] - 5
    assert seen.reads["decoder"] == [batch["input_ids"].shape[1] - 5] * 2
    with masked(model, batch, method.late):
        expected, by_mask = scores(model, batch)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(reduced, by_mask, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(logits, by_mask[:, :1], atol=2e-5, rtol=1e-5)
    assert float((reduced - plain)[:, 0].abs().max()) > 0.1  # it matters what is hidden


@torch.no_grad()
def test_renumbered_tokens_have_the_bias_of_their_new_positions() -> None:
    model, batch = tiny.blip2_t5(), tiny.blip2_t5_batch(3)
    attention = model.language_model.encoder.block[0].layer[0].SelfAttention

    def renumbered(bias: Tensor, shown: Tensor) -> Tensor:
        """Pair by pair, from the model's own buckets."""
        table = bias.expand(len(shown), -1, -1, -1).clone()
        for b, row in enumerate(shown):
            for i, query in enumerate(row.nonzero()[:, 0].tolist()):
                for j, key in enumerate(row.nonzero()[:, 0].tolist()):
                    bucket = attention._relative_position_bucket(
                        torch.tensor(j - i), num_buckets=16, max_distance=24
                    )
                    table[b, :, query, key] = attention.relative_attention_bias.weight[bucket]
        return table

    with bench.reduced(model, Renumbering(), **budget()):
        reduced = model(**batch).logits
    with masked(model, batch, 0, renumbered):
        torch.testing.assert_close(reduced, model(**batch).logits, atol=2e-5, rtol=1e-5)
    with masked(model, batch, 0):
        assert float((reduced - model(**batch).logits).abs().max()) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("tower", ["language", "projector"])
def test_ahead_of_the_first_block_it_is_a_shorter_prompt(tower: str) -> None:
    model, batch = tiny.blip2_t5(), tiny.blip2_t5_batch(2)
    embeds: list[Tensor] = []
    hook = model.language_model.encoder.register_forward_pre_hook(
        lambda _, args, kw: embeds.append(kw["inputs_embeds"]), with_kwargs=True
    )
    with hook:
        model(**batch)

    class Every(Reducer):
        """Drops every other token of the image."""

        name = "every"
        towers: ClassVar[tuple[str, ...]] = ("language", "projector")
        before: ClassVar[bool] = tower == "language"
        max_share: ClassVar[float] = 1.0
        budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

        def plan(self, site: Site, r: int) -> Plan:
            stays = site.protect.clone()
            stays[:, : 2 * r : 2] = True
            return Plan(stays.nonzero()[:, 1].view(len(stays), -1))

    with bench.reduced(model, Every(), keep_rate={tower: 0.5}, layers={tower: (0,)}):
        reduced = model(**batch).logits
    keep = torch.tensor([0, 2, 4, 6, *range(IMAGE, batch["input_ids"].shape[1])])
    shorter = model.language_model(
        inputs_embeds=embeds[0][:, keep],
        attention_mask=batch["attention_mask"][:, keep],
        decoder_input_ids=batch["decoder_input_ids"],
    )
    torch.testing.assert_close(reduced, shorter.logits, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_sizes_weigh_in_the_encoder_and_in_what_the_decoder_reads() -> None:
    """A token that stands for two is attended to as two of it."""
    model, batch = tiny.blip2_t5(), tiny.blip2_t5_batch(1)

    class Doubling(Reducer):
        """Tells of the first token that it stands for the last as well."""

        name = "doubling"
        towers: ClassVar[tuple[str, ...]] = ("language",)
        before: ClassVar[bool] = True
        proportional: ClassVar[bool] = True
        budget: ClassVar[dict[str, Any]] = {"r": 1}

        def plan(self, site: Site, r: int) -> Plan:
            n = site.x.shape[1]
            keep = torch.tensor([[i for i in range(n) if i != IMAGE - 1]])
            size = site.size.gather(1, keep[..., None]).clone()
            size[:, 0] = 2
            return Plan(keep, size=size)

    with bench.reduced(model, Doubling(), r={"language": [0, 1, 0, 0, 0, 0]}):
        reduced = model(**batch).logits
    t5, n = model.language_model, batch["input_ids"].shape[1]
    weight = torch.zeros(1, 1, 1, n)
    weight[..., 0], weight[..., IMAGE - 1] = torch.tensor(2.0).log(), -torch.inf
    with contextlib.ExitStack() as stack:
        for block in t5.encoder.block[1:]:
            hook = block.register_forward_pre_hook(lambda _, args: (args[0], weight, *args[2:]))
            stack.enter_context(hook)
        for block in t5.decoder.block:
            hook = block.register_forward_pre_hook(lambda _, a: (*a[:4], weight, *a[5:]))
            stack.enter_context(hook)
        torch.testing.assert_close(reduced, model(**batch).logits, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_fastv_goes_by_what_the_last_word_attends_to() -> None:
    """By the attentions that the plain model itself reports, padding behind the words."""
    model, batch = tiny.blip2_t5("eager"), tiny.blip2_t5_batch(3)
    kept: list[Tensor] = []

    class Watched(bench.core.registry.method("fastv")):  # type: ignore[misc]
        def plan(self, site: Site, r: int) -> Plan:
            plan = super().plan(site, r)
            kept.append(plan.keep)
            return plan

    with bench.reduced(model, Watched(), keep_rate=0.5, layers=(2,)):
        model(**batch)
    embeds: list[Tensor] = []
    encoder = model.language_model.encoder
    hook = encoder.register_forward_pre_hook(
        lambda _, args, kw: embeds.append(kw["inputs_embeds"]), with_kwargs=True
    )
    with hook:
        model(**batch)
    mask = batch["attention_mask"]
    out = encoder(inputs_embeds=embeds[0], attention_mask=mask, output_attentions=True)
    for b, pays in enumerate(out.attentions[1].mean(1)):
        last = int(mask[b].sum()) - 1
        best = pays[last, :IMAGE].argsort(descending=True)[:4].tolist()
        assert kept[0][b].tolist() == sorted([*best, *range(IMAGE, mask.shape[1])])


def test_beams_read_their_own_prompt() -> None:
    model, batch = tiny.blip2_t5(), tiny.blip2_t5_batch(3)
    with bench.reduced(model, "fastv", keep_rate=0.25):
        together = tiny.answers(model, batch, 4, num_beams=3)
        each = [tiny.answers(model, tiny.alone(batch, b), 4, num_beams=3) for b in range(3)]
    assert torch.equal(together, torch.cat(each))


@torch.no_grad()
def test_the_output_of_another_prompt_is_refused() -> None:
    model, batch = tiny.blip2_t5(), tiny.blip2_t5_batch(3)
    t5 = model.language_model
    ids = batch["input_ids"] % 80 + 1
    other = t5.encoder(input_ids=ids)
    with bench.reduced(model, "fastv", keep_rate=0.25):
        model(**batch)
        with pytest.raises(Unsupported, match="run the encoder under the same reduced"):
            t5(encoder_outputs=other, decoder_input_ids=batch["decoder_input_ids"])
        t5(input_ids=ids, decoder_input_ids=batch["decoder_input_ids"])  # no image in it


def test_towers_that_are_not_reduced_say_so() -> None:
    model = tiny.blip2_t5()
    for method, budget_, says in (
        ("tome", {"r": {"decoder": 2}}, "the decoder of answers is not reduced"),
        ("tome", {"r": {"language": 2}}, "acts in a vision or text tower, not in 'language'"),
    ):
        with pytest.raises(Unsupported, match=says):
            bench.reduced(model, method, **budget_).__enter__()


# --- what it costs -------------------------------------------------------------------------------


def test_macs_are_those_of_a_hand() -> None:
    """Width 32 (inner 32, MLP 48, twice gated); 6 blocks read the prompt, 2 write the answer."""
    model = tiny.blip2_t5()
    inputs = noise(model, 1, 9)
    n, gone = IMAGE + 9, 4
    plain = stage_macs(model, inputs)
    with bench.reduced(model, "fastv", keep_rate=0.5, layers=(2,)):
        reduced = stage_macs(model, inputs)
        count = bench.count_macs(model, **inputs)
        assert check_counters(model, bench.trace(model, **inputs), count) == count.total

    def encoder(tokens: int) -> int:
        return tokens * (4 * 32 * 32 + 3 * 32 * 48) + 2 * tokens * tokens * 32

    def decoder(read: int, new: int) -> int:
        """Another token: itself and what came before it, `read` of the prompt, `new` of it."""
        own = 4 * 32 * 32 + 2 * 32 * 32 + 3 * 32 * 48 + 2 * 32 * (1 if new else 2)
        return own + new * 2 * 32 * 32 + 2 * read * 32

    head = 32 * tiny.WORDS
    assert plain.macs["prefill"] == 6 * encoder(n) + 2 * decoder(n, n) + head
    assert plain.macs["decode"] == 2 * decoder(n, 0) + head
    assert plain.kv_bytes == 2 * 2 * (n + 1) * 32 * 4  # blocks, keys and values, float32
    left = n - gone
    own = reduced.macs["prefill"] - count.reduction
    assert own == 2 * encoder(n) + 4 * encoder(left) + 2 * decoder(left, left) + head
    assert reduced.macs["decode"] == 2 * decoder(left, 0) + head
    assert reduced.kv_bytes == 2 * 2 * (left + 1) * 32 * 4


# --- loaded, asked and taught ---------------------------------------------------------------------

WORDS = {
    "what": 3,
    "is": 4,
    "this": 5,
    "red": 6,
    "Question:": 7,
    "Answer:": 8,
    "this?": 9,
    "red?": 10,
}


@pytest.fixture
def loaded(tmp_path: Path) -> PromptedModel:
    """A folder with a tiny model, a word-level tokenizer that ends texts, and their processor."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as kinds
    from transformers import Blip2Processor, BlipImageProcessor, PreTrainedTokenizerFast

    vocabulary = {"<pad>": tiny.PAD, "</s>": 1, "<unk>": 2, **WORDS, "<image>": tiny.IMAGE}
    words = Tokenizer(kinds.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    side = {"height": 24, "width": 24}
    tiny.blip2_t5().save_pretrained(tmp_path)
    Blip2Processor(BlipImageProcessor(size=side), tokenizer, IMAGE).save_pretrained(tmp_path)
    found = catalogue.load(str(tmp_path))
    assert isinstance(found, PromptedModel)
    return found


PICTURES = [[Image.new("RGB", (24, 24), color)] for color in ("red", "blue")]
ASKED = ["what is this?", "red?"]


def test_words_stand_beside_the_image_and_padding_behind_them(loaded: PromptedModel) -> None:
    inputs = loaded.prepare(PICTURES, ASKED)
    assert inputs["input_ids"].tolist() == [
        [tiny.IMAGE] * IMAGE + [7, 3, 4, 9, 8, 1],
        [tiny.IMAGE] * IMAGE + [7, 10, 8, 1, 0, 0],
    ]
    assert inputs["attention_mask"].sum(1).tolist() == [IMAGE + 6, IMAGE + 4]
    assert loaded.questions(inputs["input_ids"]) == ASKED
    with bench.reduced(loaded.model, "fastv", keep_rate=0.25):
        together = loaded.answer(PICTURES, ASKED, 4)
        each = [loaded.answer([p], [q], 4)[0] for p, q in zip(PICTURES, ASKED, strict=True)]
    assert together == each and all(isinstance(text, str) for text in together)


def test_an_answer_is_what_the_decoder_says_behind_its_start(loaded: PromptedModel) -> None:
    inputs = loaded.placed(loaded.prepare(PICTURES, ASKED))
    out = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out[:, 0].tolist() == [tiny.PAD] * 2
    assert loaded.answer(PICTURES, ASKED, 4) == loaded.decode(out[:, 1:])


def test_the_decoder_is_taught_answers_and_their_end(loaded: PromptedModel) -> None:
    inputs = loaded.teach(PICTURES, ASKED, ["red", "this is red"])
    assert inputs["labels"].tolist() == [[6, 1, -100, -100], [5, 4, 6, 1]]
    logits = loaded.model(
        **{key: value for key, value in inputs.items() if key != "labels"},
        decoder_input_ids=torch.tensor([[0, 6, 1, 0], [0, 5, 4, 6]]),
    ).logits
    chosen = logits.log_softmax(-1)[[0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 2, 3], [6, 1, 5, 4, 6, 1]]
    torch.testing.assert_close(loaded.model(**inputs).loss, -chosen.mean())
    loaded.model.requires_grad_(True)
    with bench.reduced(loaded.model, "fastv", keep_rate=0.25):
        reduced = loaded.model(**inputs).loss
        assert not torch.equal(reduced, -chosen.mean())
        reduced.backward()
    assert bool(loaded.model.language_projection.weight.grad.any())
