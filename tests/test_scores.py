"""Scores against what a hand gets: ranks, recalls, means, and which pictures a model is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
import torch
from fakes import Answering
from PIL import Image
from torch import Tensor

from bench import tasks
from bench.models import loaded
from bench.tasks.base import hash_of
from bench.tasks.classification import Classification
from bench.tasks.pictures import Arrays, Prepared
from bench.tasks.reasoning import Reasoning, Statement
from bench.tasks.retrieval import recalls
from bench.tasks.scores import average

CLASSES = 7


class Broken(Arrays):
    """Pictures of one pixel, of which the last does not decode."""

    def open(self, index: int) -> Image.Image:
        if index == len(self) - 1:
            raise OSError("broken")
        return super().open(index)


class Classifier(loaded.Classifier):
    """Puts the class of a picture's shade first, then those that follow, in a circle."""

    device, dtype = "cpu", torch.float32  # type: ignore[assignment]
    __setattr__ = object.__setattr__  # models are frozen

    def __init__(self, name: str = "fake", add: int = 0) -> None:
        super().__init__(name, None, (1, 1), channels=1, classes=CLASSES)
        self.add = add

    def pixels(self, picture: Any) -> Tensor:
        return torch.tensor([[[float(np.asarray(picture).flat[0]) + self.add]]])

    def logits(self, pixels: Tensor) -> Tensor:
        behind = torch.arange(CLASSES) - pixels[:, 0, 0, :1]
        return -(behind % CLASSES)


def shades(*of: int) -> Any:
    return np.array(of, np.uint8).reshape(-1, 1, 1)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_many_classes_are_scored_to_what_a_hand_gets(batch_size: int) -> None:
    labels = [0, 2, 6, 3, 2, 0]
    pictures = Broken(shades(0, 1, 2, 3, 4, 0))
    task = Classification("seven", "1", pictures, labels, CLASSES)
    scored = task.evaluate(Classifier(), batch_size=batch_size)
    # Shade 1 puts 1, 2, 3 ... in this order: 2 is second. 6 is fifth behind 2, 3, 4, 5; 2 is last
    # but one behind 4, 5, 6, 0, 1. The last picture does not decode; a black one would be right.
    assert scored.outcomes["rank"] == [0, 1, 4, 0, 5, 7]
    assert scored.outcomes["correct"] == [1, 0, 0, 1, 0, 0]
    assert scored.metrics["top1"].value == pytest.approx(100 * 2 / 6)
    assert scored.metrics["top5"].value == pytest.approx(100 * 4 / 6)
    assert scored.failed == ["image 5"]


def test_prepared_images_are_of_this_model_and_these_samples() -> None:
    prepared = Prepared(Arrays(shades(0, 1, 2, 3)))

    def shown(model: Classifier, *index: int) -> list[float]:
        batches = prepared.batches(model, index, 2)  # type: ignore[arg-type]
        return [pixel for images, _ in batches for pixel in images.flatten().tolist()]

    one, other = Classifier("one"), Classifier("other", add=10)
    assert shown(one, 0, 1, 2) == [0, 1, 2]
    assert shown(other, 0, 1, 2) == [10, 11, 12]
    assert shown(other, 0, 1, 3) == [10, 11, 13]
    assert shown(one, 0, 1, 2) == [0, 1, 2]


def test_averages_have_students_intervals() -> None:
    """Of 0, 1/2 and 1: a deviation of 1/2, so 4.3027 (two degrees of freedom) x 1/2 / sqrt(3)."""
    metric = average([0.0, 0.5, 1.0], "%", 100)
    half = 100 * 4.30265 * 0.5 / 3**0.5
    assert metric.value == pytest.approx(50) and metric.unit == "%" and metric.n == 3
    assert metric.ci95 == pytest.approx((50 - half, 50 + half), abs=0.01)
    assert average([0.25], "x").ci95 is None and average([0.25], "x").value == 0.25


def test_recalls_are_what_a_hand_gets() -> None:
    """Three images, of which the last has no text; two texts for each of the others."""
    to_texts = torch.tensor(
        [
            [0.1, 0.9, 0.5, 0.2],  # its second text is first of all
            [0.9, 0.8, 0.3, 0.7],  # two others' stand before the better of its own
            [0.9, 0.9, 0.9, 0.9],
        ]
    )
    to_images = torch.tensor(
        [  # columns: image 0 third, first; image 1 second, third
            [0.2, 0.9, 0.3, 0.6],
            [0.5, 0.1, 0.2, 0.5],
            [0.7, 0.1, 0.1, 0.9],
        ]
    )
    scored = recalls(to_texts, to_images, [0, 0, 1, 1], ["x"])
    assert scored.outcomes == {"rank_i2t": [0, 2], "rank_t2i": [2, 0, 1, 2]}
    assert {name: metric.value for name, metric in scored.metrics.items()} == {
        "i2t_r1": 50, "i2t_r5": 100, "i2t_r10": 100, "t2i_r1": 25, "t2i_r5": 100, "t2i_r10": 100,
    }  # fmt: skip
    assert scored.metrics["i2t_r1"].n == 2 and scored.metrics["t2i_r1"].n == 4
    assert scored.primary == "i2t_r1" and scored.failed == ["x"]


def test_a_sentence_is_consistent_where_all_its_pairs_are_right() -> None:
    """A model that takes everything for true: the first sentence is right of one pair of two."""
    said = [("dev-1-0-0", True), ("dev-1-1-0", False), ("dev-2-0-0", True)]
    statements = [Statement(name, "?", (0, 1), true) for name, true in said]
    judge = Answering("pair-classifier", lambda *_: "")
    judge.judge = lambda pairs, texts: torch.tensor([[0.0, 1.0]]).expand(len(pairs), 2)
    scored = Reasoning("three", "1", Arrays(shades(0, 1)), statements).evaluate(judge)
    assert scored.outcomes["correct"] == [1, 0, 1]
    assert scored.metrics["consistency"].value == 50 and scored.metrics["consistency"].n == 2


def test_classes_are_folders_in_alphabetical_order(tmp_path: Path) -> None:
    task: Any = tasks.load(f"imagefolder:{folders.images(tmp_path, each=2)}")
    named = [task.prepared.pictures.name(i) for i in range(len(task))]
    assert named == [f"{folder}/{i}.png" for folder in "abcde" for i in (0, 1)]
    assert task.labels == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_data_set_is_scored_on_its_test_split(tmp_path: Path) -> None:
    folders.images(tmp_path / "train", each=3)
    folders.images(tmp_path / "test", each=2)
    assert len(tasks.load(f"hf-dataset:{tmp_path}")) == 10
    assert len(tasks.load(f"hf-dataset:{tmp_path}@train")) == 15


def test_a_hash_tells_its_parts_apart() -> None:
    assert hash_of("ab", "c") != hash_of("a", "bc") != hash_of("abc")
    assert hash_of("a", 1) == hash_of(b"a", "1") != hash_of(1, "a")
