"""ViLT: patches go, words stay; padded texts and images, two images, folders, costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blip_models as tiny
import pytest
import torch
from PIL import Image
from torch import Tensor

import bench
from bench import tasks
from bench.core import Plan, Site
from bench.core.errors import BenchError
from bench.core.learner import needs_training
from bench.core.registry import method, methods
from bench.measure.closed_form import check_counters
from bench.models import catalogue
from bench.models.joint import Joint
from bench.models.loaded import Answerer, PairClassifier

VILT = ["ViLT", "ViLT answerer", "ViLT pairs"]
ENCODER = [name for name in methods() if "vision" in method(name).towers]
REMOVING = [name for name in ENCODER if name not in ("none", "compose")]


def made(name: str) -> Any:
    cls = method(name)
    return cls(**{cls.learns: "random"}) if needs_training(cls) else cls()


def some(name: str) -> dict[str, Any]:
    """A budget that removes tokens by this method."""
    return {"r": 8} if "r" in method(name).budget else {"keep_rate": 0.5}


@pytest.mark.parametrize("family", VILT)
def test_patches_in_their_order_say_the_same(family: str) -> None:
    """The model draws their order at random; sums in another order differ in the last bits."""
    model = tiny.built(family)
    given = tiny.unlike(tiny.inputs(model))
    plain = tiny.run(model, given)
    with bench.reduced(model, "tome", r=lambda layer, depth, tokens, initial: 0):
        torch.testing.assert_close(tiny.run(model, given), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", REMOVING)
@pytest.mark.parametrize("uneven", [False, True])
def test_every_method_runs_and_leaves_nothing_behind(uneven: bool, name: str) -> None:
    """On two images with one text, and on images that fill their pixels unlike each other."""
    model = tiny.built("ViLT" if uneven else "ViLT pairs")
    inputs = tiny.inputs(model)
    inputs = tiny.unlike(inputs) if uneven else inputs
    plain = tiny.run(model, inputs)
    if uneven and name == "pool":  # it wants a grid, which images with padding have not
        return
    with bench.reduced(model, made(name), **some(name)):
        said = tiny.run(model, inputs)
        tokens = bench.trace(model, **inputs).tokens["vision"]
    assert bool(said.isfinite().all())
    assert 10 <= tokens[-1][1] < 10 + tiny.PATCHES
    assert torch.equal(tiny.run(model, inputs), plain)
    for part in model.modules():
        assert not {"forward", "visual_embed"} & set(vars(part))


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model = tiny.built("ViLT")
    given = tiny.inputs(model)
    plain = tiny.run(model, given)
    with pytest.raises(RuntimeError, match="amid"), bench.reduced(model, "tome", r=8):
        tiny.run(model, given)
        raise RuntimeError("amid")
    assert torch.equal(tiny.run(model, given), plain)


def test_reduced_results_do_not_depend_on_the_order_drawn() -> None:
    model = tiny.built("ViLT answerer")
    given = tiny.inputs(model)
    found = []
    with torch.no_grad(), bench.reduced(model, "tome", r=8):
        for seed in range(3):
            torch.manual_seed(seed)
            found.append(model(**given).logits)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


class Looking(method("random")):  # type: ignore[misc]
    """Notes what it sees."""

    seen: list[Site] = []  # noqa: RUF012

    def plan(self, site: Site, r: int) -> Plan:
        self.seen.append(site)
        return super().plan(site, r)  # type: ignore[no-any-return]


@pytest.mark.parametrize("uneven", [False, True])
def test_words_and_the_class_token_stay_and_padding_counts_nothing(uneven: bool) -> None:
    model = tiny.built("ViLT")
    given = tiny.inputs(model)
    given = tiny.unlike(given) if uneven else given
    Looking.seen.clear()
    with bench.reduced(model, Looking(), keep_rate=0.5, layers=[0]):
        tiny.run(model, given)
    (site,) = Looking.seen
    assert (site.tower, site.prefix, site.n_protected) == ("vision", 10, 10)
    assert site.protect.sum(1).tolist() == [10] * 3 and bool(site.protect[:, :10].all())
    assert torch.equal(site.size[:, :9, 0], given["attention_mask"].float())
    patches = site.size[:, 10:, 0].sum(1).tolist()
    assert patches == ([64, 56, 48] if uneven else [64] * 3)
    assert site.grid == (None if uneven else (8, 8))


def test_padding_of_a_text_changes_nothing() -> None:
    """By a method that looks at tokens alone: ToMe pairs by position, which padding shifts."""
    model = tiny.built("ViLT answerer")
    given = tiny.inputs(model, 1)
    longer = tiny.longer(given)
    for name in ("evit", "topk", "pitome"):
        with bench.reduced(model, name, **some(name)):
            a, b = tiny.run(model, given), tiny.run(model, longer)
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [{}, {"r": 8}])
@pytest.mark.parametrize("family", VILT)
def test_both_counters_agree(family: str, budget: dict[str, Any]) -> None:
    model = tiny.built(family)
    given = tiny.inputs(model, 2)
    with bench.reduced(model, "tome" if budget else "none", **budget):
        count = bench.count_macs(model, **given)
        trace = bench.trace(model, **given)
        check_counters(model, trace, count)
    passes = 2 if family == "ViLT pairs" else 1
    assert len(trace.tokens["vision"]) == 4 * passes
    assert trace.tokens["vision"][-1] == ((50, 42) if budget else (74, 74))


# --- loading -------------------------------------------------------------------------------------


def picture(color: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, color)


RED, GREEN, WIDE = picture((200, 30, 30)), picture((30, 200, 30)), picture((9, 9, 90), (44, 32))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each model as `save_pretrained` writes it, with its processor."""
    found = {}
    for family in VILT:
        found[family] = folder = tmp_path_factory.mktemp("vilt") / family.replace(" ", "-")
        tiny.MODELS[family]().save_pretrained(folder)
        tiny.vilt_processor(folder)
    return found


def test_answers_are_labels_and_do_not_depend_on_the_batch(folders: dict[str, Path]) -> None:
    loaded = catalogue.load(str(folders["ViLT answerer"]))
    assert isinstance(loaded, Answerer)
    shown, asked = [[RED], [GREEN], [WIDE]], ["red ?", "what is this red square ?", "blue ?"]
    for budget in ({"r": 0}, {"r": 8}):
        with torch.inference_mode(), bench.reduced(loaded.model, "tome", **budget):
            together = loaded.answer(shown, asked, 4)
            each = [loaded.answer([i], [t], 4)[0] for i, t in zip(shown, asked, strict=True)]
        assert together == each
        assert set(together) <= set(loaded.model.config.id2label.values())  # type: ignore[union-attr]
    scored = tasks.load("emoji-vqa").evaluate(loaded, limit=4)
    assert scored.metrics["accuracy"].n == 4 and not scored.failed


def test_two_images_are_judged(folders: dict[str, Path]) -> None:
    loaded = catalogue.load(str(folders["ViLT pairs"]))
    assert isinstance(loaded, PairClassifier)
    shown, said = [[RED, GREEN], [GREEN, WIDE]], ["red square", "what is this ?"]
    with torch.inference_mode(), bench.reduced(loaded.model, "tome", r=8):
        logits: Tensor = loaded.judge(shown, said)
        each = [loaded.judge([i], [t]) for i, t in zip(shown, said, strict=True)]
    assert logits.shape == (2, 2)
    torch.testing.assert_close(logits, torch.cat(each))
    with pytest.raises(BenchError, match="looks at 2 images with each text, not at 1"):
        loaded.judge([[RED]], ["red"])


@pytest.mark.parametrize("family", VILT)
def test_without_a_processor_costs_remain(family: str, tmp_path: Path) -> None:
    tiny.MODELS[family]().save_pretrained(tmp_path)
    for random_weights in (False, True):
        loaded = catalogue.load(str(tmp_path), random_weights=random_weights)
        assert isinstance(loaded, Joint) and getattr(loaded, "processor", None) is None
        given = loaded.example_inputs(2)
        assert bench.count_macs(loaded.model, **given).total > 0
    assert f"of {loaded.text_length} tokens" in loaded.scope
    if family == "ViLT answerer":
        with pytest.raises(BenchError, match="nothing says how questions are put"):
            tasks.load("emoji-vqa").evaluate(catalogue.load(str(tmp_path)), limit=2)


def test_without_values_all_patches_are_counted() -> None:
    from bench.models import joint
    from bench.runs import cost, shape_only

    seen = tiny.built("ViLT answerer")
    with torch.device("meta"):
        unseen = type(seen)(seen.config).eval()
    inputs = joint.noise(seen)
    blind = {name: value.to("meta") for name, value in inputs.items()}
    for name, budget in (
        ("none", {}),
        ("tome", {"r": 3}),
        ("pool", {"keep_rate": 0.5}),
        ("downsample", {"keep_rate": 0.5}),
    ):
        with bench.reduced(seen, name, **budget):
            counted = bench.count_macs(seen, **inputs)
        with bench.reduced(unseen, name, **budget), joint.on_meta(unseen):
            assert bench.count_macs(unseen, **blind).total == counted.total
        with joint.on_meta(unseen), bench.reduced(unseen, name, **budget):
            assert bench.count_macs(unseen, **blind).total == counted.total
    assert cost.rows(shape_only.on_meta("vilt-b32-finetuned-vqa"), [], 0)[0].values["total"] > 10
