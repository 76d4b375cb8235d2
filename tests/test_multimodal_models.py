"""Multimodal language models by path: loaded, asked, reduced; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folders
import pytest
import torch
import vlm_models as tiny
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    LlavaProcessor,
)

import bench
from bench import tasks
from bench.core.errors import BenchError
from bench.models import catalogue
from bench.models.loaded import Loaded, TwoTower
from bench.models.multimodal import PromptedModel

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaVA": ("tome", {"r": 4}),
    "LLaVA-NeXT": ("visionzip", {"keep_rate": 0.4}),
    "LLaVA-OneVision": ("holov", {"keep_rate": 0.4}),
    "InternVL": ("random", {"keep_rate": {"vision": 0.3}}),
    "SmolVLM": ("random", {"keep_rate": {"projector": 0.4}}),
    "PaliGemma": ("fastv", {"keep_rate": 0.4}),
    "Gemma 3": ("pyramiddrop", {"keep_rate": 0.4}),
    "BLIP-2": ("divprune", {"keep_rate": 0.4}),
    "BLIP-2 T5": ("fastv", {"keep_rate": 0.4}),
    "Qwen2-VL": ("random", {"keep_rate": {"vision": 0.4}}),
    "Qwen3-VL": ("divprune", {"keep_rate": 0.4}),
    "Qwen2.5-VL": ("random", {"keep_rate": {"vision": 0.4}}),
}
CLASSES = {
    "LLaVA": "LlavaForConditionalGeneration",
    "LLaVA-NeXT": "LlavaNextForConditionalGeneration",
    "LLaVA-OneVision": "LlavaOnevisionForConditionalGeneration",
    "InternVL": "InternVLForConditionalGeneration",
    "SmolVLM": "SmolVLMForConditionalGeneration",
    "PaliGemma": "PaliGemmaForConditionalGeneration",
    "Gemma 3": "Gemma3ForConditionalGeneration",
    "BLIP-2": "Blip2ForConditionalGeneration",
    "BLIP-2 T5": "Blip2ForConditionalGeneration",
    "Qwen2-VL": "Qwen2VLForConditionalGeneration",
    "Qwen2.5-VL": "Qwen2_5_VLForConditionalGeneration",
    "Qwen3-VL": "Qwen3VLForConditionalGeneration",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("multimodal")
    for family, (make, _) in tiny.MODELS.items():
        make().save_pretrained(root / family)
    return {family: root / family for family in tiny.MODELS}


def processor(folder: Path, template: str | None = None) -> None:
    """Save a word-level tokenizer and an image processor beside a tiny LLaVA."""
    side = {"height": 24, "width": 24}
    LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side),
        tiny.words_of("<image>"),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)


def answers(loaded: Loaded, inputs: dict[str, Tensor]) -> Tensor:
    out: Tensor = loaded.model.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    return out[:, -4:]


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_a_saved_model_answers_plain_and_reduced(saved: dict[str, Path], family: str) -> None:
    loaded = catalogue.load(str(saved[family]))
    assert (loaded.kind, type(loaded.model).__name__) == ("multimodal", CLASSES[family])
    assert loaded.provenance["weights"] == "path"
    assert loaded.provenance["sha256"] == catalogue.fingerprint(str(saved[family]))
    assert isinstance(loaded, PromptedModel) and loaded.processor is None
    inputs = loaded.example_inputs(2)
    plain = answers(loaded, inputs)
    method, given = WAYS[family]
    with torch.no_grad(), bench.reduced(loaded.model, method, **given):
        tokens = bench.trace(loaded.model, **inputs).tokens["language"]
        assert answers(loaded, inputs).shape == plain.shape == (2, 4)
    assert tokens[-1][1] < inputs["input_ids"].shape[1]
    assert torch.equal(answers(loaded, inputs), plain)


def test_the_largest_image_is_cut_into_five(saved: dict[str, Path]) -> None:
    inputs = catalogue.load(str(saved["LLaVA-NeXT"])).example_inputs(2)
    assert inputs["pixel_values"].shape == (2, 5, 3, 24, 24)
    assert inputs["image_sizes"].tolist() == [[48, 48]] * 2


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_random_weights_are_seeded_and_need_the_configuration_alone(
    saved: dict[str, Path], family: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((saved[family] / "config.json").read_text())
    one, two, other = (
        catalogue.load(str(tmp_path), random_weights=True, seed=s).model.state_dict()
        for s in (1, 1, 2)
    )
    ends = ("layers.0.self_attn.q_proj.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")
    key = next(key for key in one if key.endswith(ends))
    assert torch.equal(one[key], two[key]) and not torch.equal(one[key], other[key])


TEMPLATE = (
    "{{ bos_token }}{% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %} <image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_questions_go_through_the_saved_processor(tmp_path: Path, template: str | None) -> None:
    tiny.llava().save_pretrained(tmp_path)
    processor(tmp_path, template)
    loaded = catalogue.load(str(tmp_path))
    assert isinstance(loaded, PromptedModel)
    picture = Image.new("RGB", (40, 30), "red")
    inputs = loaded.prepare([[picture], [picture, picture]], ["what is this?", "red?"])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert (ids == tiny.IMAGE).sum(1).tolist() == [36, 72]
    assert inputs["pixel_values"].shape == (3, 3, 24, 24)
    assert mask[0, 0] == 0 and bool(mask[:, -1].all()) and bool(mask[1].all())  # on the left
    assert [int((row == 1).sum()) for row in ids] == [1, 1]  # one token begins a prompt
    first = ids[0][mask[0] > 0]
    ahead = [1, 7, 9] if template is None else [1]
    behind = [3, 4, 5, 10] + ([8, 9] if template is None else [])
    assert first.tolist() == [*ahead, *[tiny.IMAGE] * 36, *behind]
    with bench.reduced(loaded.model, "divprune", keep_rate=0.5):
        assert answers(loaded, inputs).shape == (2, 4)
    assert loaded.decode(torch.tensor([[6, 5, tiny.PAD]])) == ["red this"]


def test_a_task_names_the_files_that_are_missing(saved: dict[str, Path]) -> None:
    task = tasks.load("emoji-vqa")
    with pytest.raises(BenchError, match=r"preprocessor_config.json, tokenizer.json"):
        task.evaluate(catalogue.load(str(saved["LLaVA"])), limit=1)


def test_a_tokenizer_without_its_files_is_none(tmp_path: Path) -> None:
    folder = folders.clip(tmp_path / "clip")
    for file in folder.glob("*token*"):
        file.unlink()
    loaded = catalogue.load(str(folder))
    assert isinstance(loaded, TwoTower)
    assert loaded.tokenizer is None and loaded.transform is not None


def test_unknown_parts_are_one_clear_line(tmp_path: Path) -> None:
    config = json.loads(tiny.llava().config.to_json_string())
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "gpt_neox", **small, "intermediate_size": 32, "vocab_size": 100}
    vision = {"model_type": "beit", **small, "intermediate_size": 32, "image_size": 24}
    mt5 = {
        "model_type": "mt5",
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
    }
    blip2 = {"model_type": "blip-2", "text_config": mt5, "vision_config": small}
    for values, message in (
        ({**config, "text_config": text}, "language model GPTNeoXModel is not supported"),
        ({**config, "vision_config": vision}, "image encoder BeitModel is not supported"),
        (blip2, "language model MT5Stack is not supported"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values))
        for random_weights in (False, True):
            with pytest.raises(BenchError, match=message) as error:
                catalogue.load(str(tmp_path), random_weights=random_weights)
            assert "\n" not in str(error.value)
