"""A LLaVA is fine-tuned on answers with reduction on, CrossGET's vectors in both towers with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.errors import BenchError
from bench.core.registry import method
from bench.models import catalogue
from bench.models.loaded import Multimodal
from bench.models.multimodal import PromptedModel
from bench.tasks.clutter import NAMES
from bench.training import finetune as finetuning
from bench.training import losses, pairs
from bench.training.finetune import Recipe, finetune
from bench.training.loop import Settings
from bench.training.losses import answers
from recipes import llava_emoji as llava

STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained `llava-emoji` with a language model of two layers."""
    out = tmp_path_factory.mktemp("llava") / "model"
    torch.manual_seed(0)
    processor = llava.build_processor()
    model = llava.build(len(processor.tokenizer))
    language = model.model.language_model
    language.layers = language.layers[:2]
    model.config.text_config.num_hidden_layers = 2
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def recipe(folder: Path, **changes: object) -> Recipe:
    told = {
        "method": "crossget",
        "budget": {"r": 13},
        "params": {"importance": "attention"},
        "weight": 0.1,
        "epochs": STEPS * 2 / pairs.SCENES,
        "batch": 2,
        "rate": 0.01,
    }
    return Recipe(model=str(folder), **{**told, **changes})  # type: ignore[arg-type]


def test_crossget_learns_in_both_towers_of_a_llava(folder: Path, tmp_path: Path) -> None:
    finetune(recipe(folder, freeze=True), Settings(tmp_path))
    cell_reads = catalogue.load(str(tmp_path))
    learned = method("crossget")(cross_tokens=tmp_path / "crossget.safetensors").tables
    assert {k: tuple(v.shape) for k, v in learned.items()} == {
        "vision": (8, 128),
        "language": (2, 128),
    }
    assert all((table.abs().sum(1) > 0).all() for table in learned.values())
    assert cell_reads.provenance["weights"] == "fine-tuned"


def test_adapters_load_as_trained_where_the_head_is_the_word_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pairs.Scenes(Multimodal).batch(torch.arange(2), torch.Generator().manual_seed(0))

    def loss(loaded: Any) -> float:
        with torch.no_grad():
            return float(answers(loaded)(batch))

    trained: list[float] = []
    write = finetuning._write

    def spy(*arguments: Any) -> None:
        (model,) = [a for a in arguments if isinstance(a, torch.nn.Module)]
        loaded = catalogue.load(str(folder), backend="eager")
        trained.append(loss(dataclasses.replace(loaded, model=model.eval())))
        write(*arguments)

    monkeypatch.setattr(finetuning, "_write", spy)
    changes = {"method": "none", "budget": {}, "params": {}, "rank": 2, "rate": 0.3}
    finetune(recipe(folder, **changes), Settings(tmp_path))
    before, after = (loss(catalogue.load(str(f), backend="eager")) for f in (folder, tmp_path))
    assert abs(after - before) > 0.02
    assert abs(after - trained[0]) < 0.05 * abs(after - before)


def test_the_loss_is_that_of_the_answers_alone(folder: Path) -> None:
    loaded = catalogue.load(str(folder), backend="eager")
    batch = pairs.Scenes(Multimodal).batch(torch.arange(4), torch.Generator().manual_seed(0))
    loss = answers(loaded)(batch)
    assert isinstance(loaded, PromptedModel)
    words = loaded.prepare([[]] * 4, list(batch.answers))["attention_mask"].sum(1) - 1  # <bos>
    total, count = 0.0, 0
    for i in range(4):  # one by one, so without padding
        inputs = loaded.prepare([batch.pictures[i]], [batch.texts[i]], [batch.answers[i]])
        with torch.no_grad():
            logits = loaded.model(**inputs).logits[0].log_softmax(-1)
        n = int(words[i]) + 1  # and <eos>
        said = inputs["input_ids"][0, -n:]
        total -= float(logits[-n - 1 : -1].gather(1, said[:, None]).sum())
        count += n
    assert abs(float(loss.detach()) - total / count) < 1e-4


def test_training_scenes_are_not_those_of_the_test() -> None:
    batch = pairs.Scenes(Multimodal).batch(torch.arange(3), torch.Generator().manual_seed(0))
    again = pairs.Scenes(Multimodal).batch(torch.arange(3), torch.Generator().manual_seed(0))
    other = pairs.Scenes(Multimodal).batch(torch.arange(3), torch.Generator().manual_seed(1))
    assert batch.texts == again.texts
    assert batch.pictures[0][0].tobytes() == again.pictures[0][0].tobytes()
    assert batch.pictures[0][0].tobytes() != other.pictures[0][0].tobytes()


def test_questions_about_clutter_are_told_by_the_step_and_their_answers_are_right() -> None:
    drawn = {name: [np.full((96, 96, 3), i, np.uint8)] for i, name in enumerate(NAMES.values())}
    data = pairs.Clutter(Multimodal, drawn)
    batch = data.batch(torch.arange(10), torch.Generator().manual_seed(0))
    half = data.batch(torch.arange(10), torch.Generator().manual_seed(0), slice(5, 10))
    assert half.texts == batch.texts[5:] and half.answers == batch.answers[5:]
    assert [kind.split()[0] for kind in batch.texts[:5]] == [
        "what",
        "is",
        "how",
        "where",
        "describe",
    ]
    for (picture,), text, answer in zip(batch.pictures, batch.texts, batch.answers, strict=True):
        assert picture.size == (224, 224)
        if text.startswith("what"):  # a drawing of one dark colour, in one quarter of the image
            shade = list(drawn).index(answer)
            there = (
                (np.asarray(picture) <= shade).all(2) if shade else np.asarray(picture).max(2) == 0
            )
            assert there.sum() >= 48**2


def test_the_precision_is_what_the_hardware_multiplies_fast(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, sees = catalogue.load(str(folder)), catalogue.load("embedded:vit-fashion")
    for capability, words in (("AVX2", "float32"), ("AVX512", "bfloat16 autocast")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert losses.precision(reads) == "float32" and losses.precision(sees) == words
        for reading in (True, False):
            with losses.autocast("cpu", reading):
                product = torch.ones(2, 2) @ torch.ones(2, 2)
            fast = capability == "AVX512" and not reading
            assert product.dtype == (torch.bfloat16 if fast else torch.float32)


def test_a_model_without_processor_and_other_data_are_one_clear_line(
    folder: Path, tmp_path: Path
) -> None:
    loaded = catalogue.load(str(folder))
    bare = dataclasses.replace(loaded, processor=None)
    with pytest.raises(BenchError, match="no processor: put its files beside"):
        answers(bare)
    with pytest.raises(BenchError, match="unknown training data 'fashion'.*takes scenes"):
        finetune(recipe(folder, data="fashion"), Settings(tmp_path / "other"))
