"""Zero-shot classification: CoOp's files and folders of classes, and scores a hand can get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import picture
from torch import Tensor

from bench import tasks
from bench.core.errors import BenchError, Unsupported
from bench.models.loaded import Classifier, TwoTower
from bench.tasks.base import Feed
from bench.tasks.pictures import Arrays
from bench.tasks.zeroshot import ENSEMBLE, USUAL, ZeroShot, templates_for

# What a text about a class points to, apart from its sentence.
WAYS = {"abyssinian": 0, "great pyrenees": 1, "Boeing 707": 2}


class Towers(TwoTower):
    """Pictures point where their shade says; texts where the class's name says."""

    device, dtype = torch.device("cpu"), torch.float32
    __setattr__ = object.__setattr__  # models are frozen

    def __init__(self) -> None:
        super().__init__("fake", self, (1, 1), 1, self.shaded, "pixels", tokenizer=self.pointed)
        self.texts: list[str] = []

    def shaded(self, image: Any) -> Tensor:
        return torch.tensor([[[np.asarray(image.convert("L"))[0, 0] // 60]]], dtype=torch.float32)

    def pointed(self, texts: list[str]) -> dict[str, Tensor]:
        self.texts += texts
        ways = [next(way for name, way in WAYS.items() if name in text) for text in texts]
        return {"ids": torch.tensor(ways), "short": torch.tensor([len(t) < 30 for t in texts])}

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return torch.eye(3)[pixels[:, 0, 0, 0].long()]

    def get_text_features(self, ids: Tensor, short: Tensor) -> Tensor:
        # Long sentences point elsewhere, three times as far: lengths must not count.
        return torch.where(short.unsqueeze(1), torch.eye(3)[ids], 3 * torch.eye(3)[(ids + 1) % 3])


def pets(folder: Path, **more: Any) -> Path:
    root = folder / "oxford_pets"
    rows = [["Abyssinian_1.jpg", 0, "abyssinian"], ["great_1.jpg", 1, "great_pyrenees"]]
    rows += [["great_2.jpg", 1, "great_pyrenees"], ["gone.jpg", 0, "abyssinian"]]
    for (name, _, _), tone in zip(rows[:3], (0, 60, 10), strict=True):
        picture(root / "images" / name, tone)
    splits = {"train": [["x.jpg", 2, "Boeing 707"]], "val": [], "test": rows, **more}
    (root / "split_zhou_OxfordPets.json").write_text(json.dumps(splits))
    return root


def test_coops_files_are_scored_to_what_a_hand_gets(tmp_path: Path) -> None:
    root = pets(tmp_path)
    task, model = tasks.load(f"zeroshot:{root}?prompt=a {{}}."), Towers()
    scored = task.evaluate(model)  # type: ignore[arg-type]
    # Shades 0, 60 and 10 point to classes 0, 1 and 0; the labels are 0, 1, 1; the last is missing.
    assert scored.outcomes["correct"] == [1, 1, 0, 0]
    # A picture of class 1 that points to 0: behind 0, and behind 2, which scores the same: third.
    assert scored.outcomes["rank"] == [0, 0, 2, 3]
    assert scored.metrics["top1"].value == 50 and "top5" not in scored.metrics
    assert scored.failed == ["images/gone.jpg"]
    # The third class has training pictures alone; it is a class all the same.
    assert model.texts == ["a abyssinian.", "a great pyrenees.", "a Boeing 707."]
    assert task.evaluate(model, limit=2).metrics["top1"].n == 2  # type: ignore[arg-type]


def test_each_data_set_has_its_sentence(tmp_path: Path) -> None:
    model = Towers()
    tasks.load(f"zeroshot:{pets(tmp_path)}").evaluate(model)  # type: ignore[arg-type]
    assert model.texts[1] == "a photo of a great pyrenees, a type of pet."
    assert templates_for("StanfordCars") == (USUAL,)
    assert templates_for("Food101", ensemble=True) == (
        *ENSEMBLE,
        "a photo of {}, a type of food.",
    )


def test_sentences_are_averaged_at_equal_length(tmp_path: Path) -> None:
    task = tasks.load(f"zeroshot:{pets(tmp_path)}?templates=ensemble")
    features = task.class_features(Feed(Towers(), (), 2))  # type: ignore[attr-defined]
    # Of the eight sentences about an abyssinian (10 letters) "a photo of the large", "... small",
    # and the pets' have 30 letters or more; they point to the next class, each once, not thrice.
    sentences = [t.format("abyssinian") for t in task.templates]  # type: ignore[attr-defined]
    long = sum(len(text) >= 30 for text in sentences)
    expected = torch.tensor([8.0 - long, long, 0])
    assert 0 < long < 8
    assert torch.allclose(features[0], expected / expected.norm())


def test_coops_halves_are_labelled_anew(tmp_path: Path) -> None:
    root = pets(tmp_path)
    base = tasks.load(f"zeroshot:{root}?classes=base")  # three classes: two of them
    assert base.classes == ["abyssinian", "great_pyrenees"] and len(base) == 4  # type: ignore[attr-defined]
    rows = [["Abyssinian_1.jpg", 0, "abyssinian"], ["great_1.jpg", 2, "Boeing 707"]]
    pets(tmp_path, test=rows, val=[["x", 1, "great_pyrenees"]])
    new = tasks.load(f"zeroshot:{root}?classes=new")
    assert new.classes == ["Boeing 707"] and new.labels == [0]  # type: ignore[attr-defined]
    assert new.version != base.version


def test_the_aircrafts_own_lists(tmp_path: Path) -> None:
    (tmp_path / "variants.txt").write_text("abyssinian\nBoeing 707\n")
    (tmp_path / "images_variant_test.txt").write_text("0034309 Boeing 707\n1 abyssinian\n")
    picture(tmp_path / "images" / "0034309.jpg", 120)
    picture(tmp_path / "images" / "1.jpg", 0)
    task, model = tasks.load(f"zeroshot:{tmp_path}"), Towers()
    assert task.labels == [1, 0]  # type: ignore[attr-defined]
    assert task.evaluate(model).failed == []  # type: ignore[arg-type]
    assert model.texts[1] == "a photo of a Boeing 707, a type of aircraft."


def test_folders_of_classes_named_by_a_list(tmp_path: Path) -> None:
    val = tmp_path / "val"
    picture(val / "n01440764" / "a.png", 0)
    picture(val / "n01443537" / "b.png", 60)
    with pytest.raises(BenchError, match="named by WordNet's numbers: add ?"):
        tasks.load(f"zeroshot:{val}")
    names = tmp_path / "classnames.txt"
    names.write_text("n01440764 abyssinian\nn01443537 great pyrenees\nn9 other\n")
    task = tasks.load(f"zeroshot:{val}?names={names}&prompt={{}}")
    assert task.evaluate(Towers()).metrics["top1"].value == 100  # type: ignore[arg-type]
    names.write_text("n01440764 abyssinian\n")
    with pytest.raises(BenchError, match="names no folder .*n01443537"):
        tasks.load(f"zeroshot:{val}?names={names}")


def test_who_points_everywhere_is_right_nowhere(tmp_path: Path) -> None:
    model = Towers()
    model.get_image_features = lambda pixels: torch.ones(len(pixels), 3)
    scored = tasks.load(f"zeroshot:{pets(tmp_path)}").evaluate(model)  # type: ignore[arg-type]
    assert scored.metrics["top1"].value == 0
    with pytest.raises(Unsupported, match="needs a two-tower model; fake is a classifier"):
        other = Classifier("fake", None, (1, 1))
        tasks.load(f"zeroshot:{tmp_path}/oxford_pets").evaluate(other)


class Circle(Towers):
    """Of seven classes: a picture is nearest to its shade's, then to those that follow."""

    def pointed(self, texts: list[str]) -> dict[str, Tensor]:
        return {"ids": torch.tensor([int(text) for text in texts])}

    def shaded(self, image: Any) -> Tensor:
        return torch.tensor([[[np.asarray(image)[0, 0]]]], dtype=torch.float32)

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return 7.0 - (torch.arange(7) - pixels[:, 0, 0, :1]) % 7

    def get_text_features(self, ids: Tensor) -> Tensor:
        return torch.eye(7)[ids]


def test_top_5_of_many_classes() -> None:
    pictures = Arrays(np.array([0, 1, 2, 4], np.uint8).reshape(-1, 1, 1))
    labels, classes = [0, 2, 6, 2], [str(i) for i in range(7)]
    task = ZeroShot("seven", "1", pictures, labels, classes, ("{}",))
    scored = task.evaluate(Circle(), batch_size=3)  # type: ignore[arg-type]
    # 2 is second behind 1; 6 is fifth behind 2, 3, 4, 5; 2 is sixth behind 4, 5, 6, 0, 1.
    assert scored.outcomes["rank"] == [0, 1, 4, 5]
    assert (scored.metrics["top1"].value, scored.metrics["top5"].value) == (25, 75)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zeroshot:{0}/none", "cannot read .*none"),
        ("zeroshot:{0}/empty", "no images under .*split_zhou_NAME.json beside"),
        ("zeroshot:{0}/oxford_pets?classes=old", "must be base or new"),
        ("zeroshot:{0}/oxford_pets?templates=all", "must be ensemble"),
        ("zeroshot:{0}/oxford_pets?prompt=a pet", "lacks {{}} for the name"),
        ("zeroshot:{0}/oxford_pets?template=x", "did you mean 'templates'"),
        ("zeroshot:{0}/odd", "no split of CoOp's: it has no 'test'"),
        ("zeroshot:{0}/bare", "none of 1 images can be opened"),
    ],
)
def test_wrong_folders_are_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    pets(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, splits in (("odd", {"train": []}), ("bare", {"test": [["a.jpg", 0, "x"]]})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "split_zhou_Caltech101.json").write_text(json.dumps(splits))
    with pytest.raises(BenchError, match=message.replace("{{}}", "{}")) as error:
        tasks.load(name.format(tmp_path))
    assert "\n" not in str(error.value)


def test_the_emoji_labels_ship_with_the_project() -> None:
    task = tasks.load("emoji-zeroshot")
    assert len(task) == len(set(task.classes)) == 1636  # type: ignore[attr-defined]
    assert task.classes[0] == "grinning face"  # type: ignore[attr-defined]
