"""BLIP: what reads reduced tokens, padded texts, matches scored later, folders, costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blip_models as tiny
import pytest
import torch
from PIL import Image
from torch import Tensor

import bench
from bench import adapter_for, tasks
from bench.core.errors import BenchError, Unsupported
from bench.core.kinds import InputReducer
from bench.core.learner import needs_training
from bench.core.registry import method, methods
from bench.measure.closed_form import check_counters
from bench.models import catalogue
from bench.models.loaded import Answerer, Captioner, Matcher

BLIP = ["matcher", "answerer", "captioner"]
READS = [name for name in BLIP if name != "captioner"]  # those with a text encoder
ENCODER = [name for name in methods() if "vision" in method(name).towers]
REMOVING = [name for name in ENCODER if name not in ("none", "compose")]
READERS = [name for name in REMOVING if "text" in method(name).towers]
BOTH = [name for name in READERS if not issubclass(method(name), InputReducer)]


def nothing(layer: int, depth: int, tokens: int, initial: int) -> int:
    """A schedule that is installed and removes nothing."""
    return 0


def made(name: str, **kw: Any) -> Any:
    cls = method(name)
    return cls(**{cls.learns: "random"}) if needs_training(cls) else cls(**kw)


def some(name: str) -> dict[str, Any]:
    """A budget that removes tokens by this method."""
    given = "r" in method(name).budget
    return {"r": 8} if given else {"keep_rate": 0.5}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", BLIP)
def test_a_pass_that_removes_nothing_is_bit_exact_too(family: str, batch: int) -> None:
    model = tiny.built(family)
    given = tiny.inputs(model, batch)
    plain = tiny.run(model, given)
    with bench.reduced(model, "tome", r={"vision": nothing}):
        assert torch.equal(tiny.run(model, given), plain)
    if family in READS:
        # an answer's decoder reads a question's padding, which a pass through the encoder empties
        whole = given if family == "matcher" or batch == 1 else tiny.inputs(model, 1)
        plain = tiny.run(model, whole)
        with bench.reduced(model, "tome", r={"text": nothing}):
            assert torch.equal(tiny.run(model, whole), plain)


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = tiny.built("answerer")
    given = tiny.inputs(model)
    plain = tiny.run(model, given)
    with (
        pytest.raises(RuntimeError, match="amid"),
        bench.reduced(model, "tome", r={"vision": 8, "text": 2}),
    ):
        tiny.run(model, given)
        raise RuntimeError("amid")
    assert torch.equal(tiny.run(model, given), plain)
    assert not hasattr(model.vision_model, "_size_bias")


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("family", READS)
def test_both_encoders_are_reduced_at_once(family: str, name: str) -> None:
    model = tiny.built(family)
    given = tiny.inputs(model)
    rate = {"r": {"vision": 8, "text": 1}}
    if "r" not in method(name).budget:
        rate = {
            "keep_rate": {"vision": 0.5, "text": 0.7},
            "layers": {"vision": [1, 2], "text": [1]},
        }
    try:
        with bench.reduced(model, made(name), **rate):
            assert bool(tiny.run(model, given).isfinite().all())
    except Unsupported as reason:
        assert "text" in str(reason)


@pytest.mark.parametrize("name", ["tome", "evit", "crossget", "ats"])
@pytest.mark.parametrize("family", BLIP)
def test_a_batch_says_what_each_sample_says(family: str, name: str) -> None:
    """Matches and answers of a batch whose texts are padded; captions have prompts of one length.

    The text encoder is reduced only where texts are as long as each other, since it removes as many
    tokens from each.
    """
    model = tiny.built(family)
    given = tiny.inputs(model)
    if family != "matcher":  # transformers lets a decoder read a question's padding
        given = {**given, **tiny.texts(1)}
        given = {key: t.expand(3, *t.shape[1:]) for key, t in given.items()}
    with bench.reduced(model, made(name), **some(name)):
        together = tiny.run(model, given)
        each = [tiny.run(model, {k: t[i : i + 1] for k, t in given.items()}) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(each), atol=1e-4, rtol=1e-4)


def test_padding_of_a_text_is_never_read_under_reduction() -> None:
    model = tiny.built("matcher")
    given = tiny.inputs(model, 1)
    longer = tiny.longer(given)
    with bench.reduced(model, "random", keep_rate={"vision": 0.5}, layers={"vision": [1]}):
        torch.testing.assert_close(tiny.run(model, given), tiny.run(model, longer))
    with bench.reduced(model, "tome", r={"text": nothing}):
        torch.testing.assert_close(tiny.run(model, given), tiny.run(model, longer))


def keys_read(reader: Any, call: Any) -> list[int]:
    """Tokens that the first cross-attention of a text model makes keys of, call by call."""
    found: list[int] = []
    key = reader.encoder.layer[0].crossattention.self.key
    hook = key.register_forward_hook(lambda _, args, out: found.append(out.shape[1]))
    try:
        call()
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize("family", BLIP)
def test_cross_attention_reads_fewer_tokens(family: str) -> None:
    model = tiny.built(family)
    given = tiny.inputs(model)
    decoder = getattr(model, "text_decoder", None)
    reader = getattr(model, "text_encoder", None) or decoder.bert

    def call() -> Tensor:
        return tiny.run(model, given)

    assert keys_read(reader, call) == [65]
    with bench.reduced(model, "tome", r=8):
        assert keys_read(reader, call) == [65 - 4 * 8]
    if family == "answerer":
        with bench.reduced(model, "tome", r={"text": 2}):
            assert keys_read(reader, call) == [65]
            assert keys_read(decoder.bert, call) == [9 - 3 * 2]


def test_a_merged_token_is_read_as_often_as_it_stands_for() -> None:
    """Two equal tokens merged into one of size 2 are read as the two: log 2 more in the logits."""
    model = tiny.built("matcher")
    states = torch.randn(2, 5, 32)
    double = torch.cat([states, states[:, -1:]], 1)
    ids = tiny.texts(2)
    from bench.engine.families.blip import reading

    bias = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0]).log().expand(2, 1, 1, 5)
    with torch.no_grad():
        twice = model.text_encoder(**ids, encoder_hidden_states=double).last_hidden_state
        with reading(model.text_encoder, lambda dtype: bias):
            once = model.text_encoder(**ids, encoder_hidden_states=states).last_hidden_state
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-5)


def test_methods_see_the_text_with_its_first_token_protected() -> None:
    seen: list[Any] = []

    class Looking(method("random")):  # type: ignore[misc]
        def plan(self, site: Any, r: int) -> Any:
            seen.append(site)
            return super().plan(site, r)

    model = tiny.built("matcher")
    given = tiny.inputs(model)
    with bench.reduced(model, Looking(), keep_rate={"text": 0.7}, layers={"text": [0]}):
        tiny.run(model, given)
    (site,) = seen
    assert site.tower == "text"
    assert bool(site.protect[:, 0].all()) and int(site.protect.sum()) == 3
    assert site.anchor.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "budget", [{}, {"r": 8}, {"r": {"vision": 8, "text": 2}}, {"r": {"text": 1}}]
)
@pytest.mark.parametrize("family", BLIP)
def test_both_counters_agree(family: str, budget: dict[str, Any]) -> None:
    model = tiny.built(family)
    if family == "captioner" and isinstance(budget.get("r"), dict):
        return
    given = tiny.inputs(model, 2)
    with bench.reduced(model, "tome" if budget else "none", **budget):
        count = bench.count_macs(model, **given)
        trace = bench.trace(model, **given)
        check_counters(model, trace, count)
    assert trace.reads["vision"] == [0] * 4


def test_decoders_are_not_reduced_and_say_so() -> None:
    for family, tower in (("captioner", "text"), ("captioner", "decoder"), ("answerer", "decoder")):
        model = tiny.built(family)
        with (
            pytest.raises(BenchError, match="the text decoder is not reduced"),
            bench.reduced(model, "tome", r={tower: 2}),
        ):
            pass
    with (
        pytest.raises(Unsupported, match="language.*the text decoder is not reduced"),
        bench.reduced(tiny.built("captioner"), "fastv"),
    ):
        pass
    decoder = adapter_for(tiny.built("captioner")).towers(tiny.built("captioner"))["decoder"]
    with pytest.raises(Unsupported, match="not reduced"):
        decoder.install(None)  # type: ignore[arg-type]


def test_beams_read_their_own_image() -> None:
    model = tiny.built("captioner")
    given = tiny.inputs(model)
    given = {key: given[key] for key in ("pixel_values",)}

    def say(one: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return model.generate(**one, max_new_tokens=4, min_new_tokens=4, num_beams=3)

    with bench.reduced(model, "tome", r=10):
        together = say(given)
        each = [say({k: t[i : i + 1] for k, t in given.items()}) for i in range(3)]
    assert torch.equal(together, torch.cat(each))


# --- loading -------------------------------------------------------------------------------------


def picture(color: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, color)


RED, GREEN, BLUE = picture((200, 30, 30)), picture((30, 200, 30)), picture((30, 30, 200))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each model as `save_pretrained` writes it, with its processor."""
    found = {}
    for family in BLIP:
        found[family] = folder = tmp_path_factory.mktemp("blip") / family
        tiny.MODELS[family]().save_pretrained(folder)
        tiny.blip_processor(folder)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same without a processor."""
    found = {}
    for family in BLIP:
        found[family] = tmp_path_factory.mktemp("bare") / family
        tiny.MODELS[family]().save_pretrained(found[family])
    return found


def test_answers_do_not_depend_on_the_batch(folders: dict[str, Path]) -> None:
    loaded = catalogue.load(str(folders["answerer"]))
    assert isinstance(loaded, Answerer) and loaded.provenance["weights"] == "path"
    asked = ["red ?", "what is this red square ?", "blue ?"]
    shown = [[RED], [GREEN], [BLUE]]
    for budget in ({"r": 0}, {"r": 8}, {"r": {"vision": 8, "text": 1}}):
        with torch.inference_mode(), bench.reduced(loaded.model, "tome", **budget):
            together = loaded.answer(shown, asked, 4)
            each = [loaded.answer([i], [t], 4)[0] for i, t in zip(shown, asked, strict=True)]
        assert together == each and all(isinstance(text, str) for text in together)
    with pytest.raises(BenchError, match="one image with each text, not at 2"):
        loaded.answer([[RED, BLUE]], ["red ?"], 4)


def test_captions_go_on_from_a_prompt(folders: dict[str, Path]) -> None:
    loaded = catalogue.load(str(folders["captioner"]))
    assert isinstance(loaded, Captioner)
    with torch.inference_mode():
        said = loaded.answer([[RED], [GREEN]], ["", "what is"], 4)
        alone = loaded.answer([[GREEN]], ["what is"], 4)
        pixels = tiny.prepared(folders["captioner"], RED)
        ids = loaded.model.generate(  # type: ignore[operator]
            pixel_values=pixels, max_new_tokens=4, do_sample=False
        )
    assert said[1] == alone[0]
    assert said[0] == tiny.read(folders["captioner"], ids[0, 1:])


def test_matches_are_those_of_the_model_itself(folders: dict[str, Path]) -> None:
    loaded = catalogue.load(str(folders["matcher"]))
    assert isinstance(loaded, Matcher)
    assert loaded.transform and loaded.tokenizer
    pixels = torch.stack([loaded.transform(image) for image in (RED, GREEN, BLUE)])
    texts = loaded.tokenizer(["red square", "what is this red square ?", "blue"])
    assert texts["input_ids"].shape[1] == 8
    for budget in ({"r": 0}, {"r": 8}, {"r": {"vision": 8, "text": 1}}):
        with torch.inference_mode(), bench.reduced(loaded.model, "tome", **budget):
            features, tokens = loaded.encode_images(pixels)
            words = loaded.encode_texts(texts)
            own = loaded.match(tokens, texts)
            shifted = loaded.match(tokens[[1, 2, 0]], texts)
            out = loaded.model(pixel_values=pixels, **texts)
            other = loaded.model(pixel_values=pixels[[1, 2, 0]], **texts)
            cosine = loaded.model(pixel_values=pixels, use_itm_head=False, **texts).itm_score
        torch.testing.assert_close(own, out.itm_score[:, 1])
        torch.testing.assert_close(shifted, other.itm_score[:, 1])
        torch.testing.assert_close(features @ words.T, cosine)
        assert tokens.shape[:2] == (3, 65 if budget == {"r": 0} else 33)


@pytest.mark.parametrize("family", BLIP)
def test_without_a_processor_costs_remain(bare: dict[str, Path], family: str) -> None:
    for random_weights in (False, True):
        loaded = catalogue.load(str(bare[family]), random_weights=random_weights)
        assert loaded.transform is None and getattr(loaded, "processor", None) is None
        given = loaded.example_inputs(2)
        assert bench.count_macs(loaded.model, **given).total > 0
    assert "one image and" in loaded.scope and "tokens" in loaded.scope
    if family == "answerer":
        with pytest.raises(BenchError, match="nothing says how questions are put"):
            tasks.load("emoji-vqa").evaluate(catalogue.load(str(bare[family])), limit=2)


def test_questions_are_asked_by_the_task(folders: dict[str, Path]) -> None:
    loaded = catalogue.load(str(folders["answerer"]))
    scored = tasks.load("emoji-vqa").evaluate(loaded, limit=6, batch_size=3)
    assert scored.metrics["accuracy"].n == 6 and not scored.failed


def test_an_unknown_head_is_one_clear_line(tmp_path: Path) -> None:
    config = tiny.matcher().config
    config.architectures = ["BlipModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(BenchError, match="supported are BlipForImageTextRetrieval"):
        catalogue.load(str(tmp_path), random_weights=True)


def test_a_cell_that_names_no_backend_takes_the_models_only_one(tmp_path: Path) -> None:
    from bench.measure import profiles
    from bench.runs import spec
    from bench.runs.session import settings

    text = "models: [blip-vqa-base, 'timm:vit_tiny_patch16_224']\nmethods: [none]\n"
    (tmp_path / "mine.yaml").write_text(text)
    suite, _ = spec.load(str(tmp_path / "mine.yaml"))
    blip, timm = suite.cells()
    cpu = profiles.load("cpu")
    assert settings(blip, cpu)[1] == "eager" and settings(timm, cpu)[1] == cpu.backends[0] == "sdpa"
