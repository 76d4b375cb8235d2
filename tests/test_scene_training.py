"""The small BLIPs and ViLT: their losses fall, their parts are shared, and what is saved loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench.core.registry import method
from bench.models import catalogue
from bench.models.loaded import Answerer, PairClassifier, Writer
from bench.models.sources.embedded import unpacked
from bench.tasks import scenes
from bench.training import pairs
from bench.training.finetune import Recipe, finetune
from bench.training.loop import Settings
from bench.training.losses import answers
from recipes import blip_emoji as blip
from recipes import scene_encoder
from recipes import vilt_emoji as vilt
from recipes.phases import Scratch

EPOCHS = 4 * blip.BATCH / blip.SCENES  # four steps


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blip, scene_encoder, vilt):
        monkeypatch.setattr(module, "BATCH", 4)
    for name, value in (("BLOCKS", 1), ("EPOCHS", 2 * 4 / scene_encoder.SCENES)):
        monkeypatch.setattr(scene_encoder, name, value)
    monkeypatch.setattr(vilt, "WATCHED", 8)


def test_blips_train_and_are_saved_as_three_models(tmp_path: Path) -> None:
    from transformers import AutoProcessor, BlipForImageTextRetrieval, BlipForQuestionAnswering

    last = blip.train(Scratch(tmp_path, epochs=EPOCHS))
    assert set(last) == {"answers", "captions", "contrast", "match", "named"}
    assert all((tmp_path / folder / "config.json").is_file() for folder in blip.FOLDERS.values())
    vqa = BlipForQuestionAnswering.from_pretrained(tmp_path / blip.FOLDERS["vqa"])
    match = BlipForImageTextRetrieval.from_pretrained(tmp_path / blip.FOLDERS["match"])
    ours, theirs = vqa.vision_model.state_dict(), match.vision_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not match.itm_head.weight[0].any() and match.itm_head.weight[1].any()
    packed = tmp_path / blip.PACKED
    for name, folder in blip.FOLDERS.items():
        one, other = unpacked(packed, name, False), catalogue.load(str(tmp_path / folder)).model
        assert type(one) is type(other)
        theirs = other.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())
    size = [
        sum(f.stat().st_size for f in tmp_path.glob(g))
        for g in (f"{blip.PACKED}/*.safetensors", "blip_emoji_*/*.safetensors")
    ]
    seen = 2 * sum(weight.numel() for weight in vqa.vision_model.parameters())  # bytes
    assert size[0] < size[1] - 1.9 * seen  # stored once, not three times, headers aside
    processor = AutoProcessor.from_pretrained(tmp_path / blip.FOLDERS["vqa"])
    ids = processor.tokenizer("is there a cat ?")["input_ids"]
    assert blip.UNKNOWN not in ids and ids[0] == blip.CLS and ids[-1] == blip.SEP


def test_a_batch_of_scenes_fits_the_losses() -> None:
    torch.manual_seed(0)
    words = blip.tokenizer()
    models = blip.Blips(len(words))
    optimizer = torch.optim.AdamW(models.parameters(), lr=3e-3)
    batch = blip.Batch(np.random.default_rng(0), words)
    losses = []
    for _ in range(12):
        loss = blip.loss_of(models, batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_an_exchanged_caption_is_another_and_no_other_thing_changes() -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(100):
        _, objects = scenes.compose(rng)
        other = blip.exchanged(objects, rng)
        assert scenes.describe(other) != scenes.describe(objects)
        assert len(other) == len(objects)
        same = {cell for cell in other if cell in objects and other[cell] == objects[cell]}
        assert len(same) == len(objects) - 1
        kinds.add(set(other) == set(objects))
    assert kinds == {True, False}


def test_a_miscounted_caption_has_one_thing_more_or_less() -> None:
    rng = np.random.default_rng(0)
    differs = set()
    for _ in range(100):
        _, objects = scenes.compose(rng)
        other = blip.miscounted(objects, rng)
        differs.add(len(other) - len(objects))
        assert len(set(objects) & set(other)) == min(len(objects), len(other))
        assert len({thing.name for thing in other.values()}) == len(other)
    assert differs == {-1, 1}


def test_every_word_that_is_said_is_known() -> None:
    words = blip.tokenizer()
    for seed in range(20):
        batch = blip.Batch(np.random.default_rng(seed), words)
        for ids in (batch.asked["input_ids"], batch.answers, batch.captions):
            assert (ids != blip.UNKNOWN).all()


def test_vilt_trains_and_judges_as_the_saved_model_does(tmp_path: Path) -> None:
    from transformers import ViltForImagesAndTextClassification

    torch.manual_seed(0)
    last = vilt.train(Scratch(tmp_path, epochs=4 * vilt.BATCH / vilt.PAIRS))
    assert set(last) == {"accuracy", "both", "only", "more", "place", "named"}
    saved = ViltForImagesAndTextClassification.from_pretrained(tmp_path / vilt.FOLDER).float()
    words, found = blip.tokenizer(), vilt.pairs(4, seed=5)
    reasoner = vilt.Reasoner(len(words))
    reasoner.model.load_state_dict(saved.state_dict())
    reasoner.eval(), saved.eval()
    with torch.no_grad():
        out = reasoner(found, words)
        images = np.stack([image for pair in found for image in pair.images])
        pixels = blip.normalise(images).unflatten(0, (4, 2))
        text = blip.padded(words, [pair.text for pair in found])
        theirs = saved(**text, pixel_values=pixels).logits
    torch.testing.assert_close(out.logits, theirs)
    assert out.of_patches().shape[:3] == out.depicted(found).shape == (2, 4, 256)


def test_patches_depict_what_is_there() -> None:
    rng = np.random.default_rng(1)
    names = list(scenes.NAMES.values())
    for _ in range(30):
        _, objects = scenes.compose(rng)
        shown = scenes.depicted(objects, 16)
        said = {names[i - 1] for i in np.unique(shown) if i}
        assert said == {found.name for found in objects.values()}
        for cell, found in objects.items():
            half = shown[cell // 2 * 8 : cell // 2 * 8 + 8, cell % 2 * 8 : cell % 2 * 8 + 8]
            share = (half == 1 + names.index(found.name)).sum() * 16 / found.side**2
            assert 0.7 < share < 1.4


@pytest.mark.parametrize("kind", ["vqa", "caption", "vilt"])
def test_saved_models_are_fine_tuned_with_crossget(kind: str, tmp_path: Path) -> None:
    if kind == "vilt":
        vilt.train(Scratch(tmp_path, epochs=2 * vilt.BATCH / vilt.PAIRS))
        folder = tmp_path / vilt.FOLDER
    else:
        blip.train(Scratch(tmp_path, epochs=2 * blip.BATCH / blip.SCENES))
        folder = tmp_path / blip.FOLDERS[kind]
    recipe = Recipe(
        model=str(folder),
        method="crossget",
        budget={"r": 4},
        weight=0.1,
        epochs=2 * 4 / pairs.SCENES,
        batch=4,
        rate=0.01,
    )
    out = tmp_path / "tuned"
    finetune(recipe, Settings(out))
    learned = method("crossget")(cross_tokens=out / "crossget.safetensors").tables
    towers = {"vqa": {"vision", "text"}, "caption": {"vision"}, "vilt": {"vision"}}[kind]
    assert set(learned) == towers
    assert all((table.abs().sum(1) > 0).all() for table in learned.values())
    loaded = catalogue.load(str(out))
    batch = pairs.Scenes(type(loaded)).batch(torch.arange(3), torch.Generator().manual_seed(0))
    shown = [list(own) for own in batch.pictures]
    with torch.inference_mode(), bench.reduced(loaded.model, "crossget", r=4, cross_tokens=learned):
        if isinstance(loaded, PairClassifier):
            assert loaded.judge(shown, batch.texts).shape == (3, 2)
        else:
            assert isinstance(loaded, Writer)
            assert all(isinstance(s, str) for s in loaded.answer(shown, batch.texts, 4))


def test_the_loss_of_a_blips_answers_does_not_depend_on_padding(tmp_path: Path) -> None:
    blip.train(Scratch(tmp_path, epochs=2 * blip.BATCH / blip.SCENES))
    loaded = catalogue.load(str(tmp_path / blip.FOLDERS["vqa"]), backend="eager")
    loaded.model.config.text_config.label_smoothing = 0.0
    batch = pairs.Scenes(Answerer).batch(torch.arange(5), torch.Generator().manual_seed(0))
    assert len({len(answer.split()) for answer in batch.answers}) > 1
    batched = answers(loaded)(batch)
    total, count = 0.0, 0
    for i in range(5):
        one = pairs.Batch(
            batch.images,
            [batch.texts[i]],
            batch.target[:1],
            [batch.answers[i]],
            [batch.pictures[i]],
        )
        words = len(batch.answers[i].split()) + 1  # and its end
        total += float(answers(loaded)(one).detach()) * words
        count += words
    assert abs(float(batched.detach()) - total / count) < 1e-4


def test_a_vilt_begins_with_what_the_encoder_knows() -> None:
    torch.manual_seed(0)
    begun = scene_encoder.Tower().eval()
    torch.nn.init.normal_(begun.model.embeddings.position_embedding)
    reasoner = vilt.Reasoner(len(blip.tokenizer())).eval()
    reasoner.begin(begun)
    with torch.no_grad():
        pixels, _ = scene_encoder.compose(0)
        expected = begun.model(pixel_values=pixels).last_hidden_state
        vilt_ = reasoner.model.vilt
        vilt_.encoder.layer = vilt_.encoder.layer[: scene_encoder.BLOCKS]
        x = vilt_.embeddings.patch_embeddings(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([vilt_.embeddings.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + vilt_.embeddings.position_embeddings
        found = vilt_.layernorm(vilt_.encoder(x, return_dict=True).last_hidden_state)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_name_looks_for_the_patches_that_depict_it() -> None:
    """Before training: words are named as patches are, and attention goes to what is alike."""
    torch.manual_seed(0)
    begun, words = scene_encoder.Tower(), blip.tokenizer()
    torch.nn.init.orthogonal_(begun.named.weight)
    models = blip.Blips(len(words))
    models.begin(begun, words)
    table = models.vqa.text_encoder.embeddings.word_embeddings.weight
    names = list(scenes.NAMES.values())
    own = models.vqa.text_encoder.encoder.layer[0].crossattention.self
    queries = own.query(table[words.convert_tokens_to_ids(names)])
    keys = own.key(begun.named.weight[1:])  # as patches are that depict just this
    assert torch.equal((queries @ keys.T).argmax(-1), torch.arange(len(names)))


def test_the_encoder_begins_as_llavas() -> None:
    clip = catalogue.load("embedded:llava-emoji").model.model.vision_tower
    clip = getattr(clip, "vision_model", clip)
    begun = scene_encoder.Tower().eval()
    scene_encoder.from_clip(clip, begun.model)
    pixels, _ = scene_encoder.compose(4)
    with torch.no_grad():
        x = clip.pre_layrnorm(clip.embeddings(pixels))
        block = clip.encoder.layers[0](x, attention_mask=None)
        ours = begun.model.embeddings(pixels)
        found = begun.model.encoder.layers[0](ours)
    torch.testing.assert_close(ours[:, 0], x[:, 0])  # the class token exactly
    patches = [(t - t.mean()).flatten() for t in (ours[:, 1:], x[:, 1:])]
    assert torch.cosine_similarity(*patches, dim=0) > 0.95
    outputs = [(o[0] if isinstance(o, tuple) else o).flatten() for o in (found, block)]
    assert torch.cosine_similarity(*outputs, dim=0) > 0.95
