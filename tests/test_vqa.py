"""Questions about pictures: batches, scores, broken pictures, and the embedded model's worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import vlm_models
from folders import vit
from PIL import Image

from bench import tasks
from bench.core.errors import BenchError, Unsupported
from bench.models import catalogue
from bench.models.loaded import Loaded
from bench.models.multimodal import PromptedModel
from bench.tasks.pictures import Arrays
from bench.tasks.vqa import Question, QuestionAnswering, exact

PATCHES = 36


def _prepare(images: list[list[Any]], questions: list[str]) -> dict[str, torch.Tensor]:
    """A token a letter; as many image tokens as the tiny model wants, and padding on the left."""
    rows = [[vlm_models.IMAGE] * PATCHES + [2 + ord(c) % 70 for c in q] for q in questions]
    longest = max(map(len, rows))
    ids = torch.tensor([[vlm_models.PAD] * (longest - len(row)) + row for row in rows])
    shown = [
        torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 128 - 1
        for own in images
        for image in own
    ]
    return {
        "input_ids": ids,
        "attention_mask": (ids != vlm_models.PAD).long(),
        "pixel_values": torch.stack(shown),
    }


class Tiny(PromptedModel):
    """Reads letters and writes numbers."""

    def prepare(self, images: Any, questions: Any, answers: Any = ()) -> dict[str, torch.Tensor]:
        return _prepare(images, questions)

    def decode(self, ids: torch.Tensor) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    model = vlm_models.llava()
    return Tiny("tiny", model, (24, 24), provenance={"weights": "path"})


@pytest.fixture(scope="module")
def task(tiny: Loaded) -> QuestionAnswering:
    """Questions of unlike lengths whose right answers are the tiny model's own, one at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    texts = ["why", "what is this", "where", "is there anything to be seen", "who", "how many"]
    kinds = ["a", "b", "a", "b", "a", "b"]
    asked = [
        Question(i % 4, text, ("?",), kind)
        for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    ]
    alone = QuestionAnswering("alone", "1", Arrays(pixels), asked, max_answer=4)
    said = alone.evaluate(tiny, batch_size=1).outcomes["answer"]
    right = [dataclasses.replace(q, answers=(a,)) for q, a in zip(asked, said, strict=True)]
    return QuestionAnswering("tiny-vqa", "1", Arrays(pixels), right, max_answer=4)


def test_a_padded_batch_answers_as_each_question_alone(
    tiny: Loaded, task: QuestionAnswering
) -> None:
    seen: list[tuple[int, int]] = []
    scored = task.evaluate(tiny, batch_size=4, progress=lambda *a: seen.append(a))
    assert seen == [(4, 6), (6, 6)]
    assert len(set(scored.outcomes["answer"])) > 1
    assert all(len(answer.split()) == 4 for answer in scored.outcomes["answer"])
    assert scored.outcomes["correct"] == [1] * 6 and scored.failed == []
    assert scored.primary == "accuracy"
    assert {name: m.n for name, m in scored.metrics.items()} == {
        "accuracy": 6, "accuracy_a": 3, "accuracy_b": 3,
    }  # fmt: skip
    metric = scored.metrics["accuracy"]
    assert metric.value == 100 and metric.ci95 == pytest.approx((60.97, 100), abs=0.01)
    assert task.evaluate(tiny, limit=3).metrics["accuracy"].n == 3


class Broken(Arrays):
    """Pictures of which one does not decode."""

    def open(self, index: int) -> Image.Image:
        if index == 1:
            raise OSError("broken")
        return super().open(index)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_picture_that_does_not_decode_counts_as_wrong(
    batch_size: int, tiny: Loaded, task: QuestionAnswering
) -> None:
    pixels = task.pictures.pixels  # type: ignore[attr-defined]
    broken = QuestionAnswering("b", "1", Broken(pixels), task.questions, max_answer=4)
    scored = broken.evaluate(tiny, batch_size=batch_size)
    assert scored.outcomes["correct"] == [1, 0, 1, 1, 1, 0]
    assert scored.outcomes["answer"][1] == ""
    assert scored.failed == ["image 1", "image 1"]
    assert scored.metrics["accuracy"].n == 6


def test_other_scores_can_be_given(tiny: Loaded, task: QuestionAnswering) -> None:
    shares = iter([0.0, 0.25, 0.5, 1.0, 1.0, 0.25])
    soft = QuestionAnswering(
        "soft", "1", task.pictures, task.questions, score=lambda *_: next(shares), max_answer=2
    )
    scored = soft.evaluate(tiny)
    assert scored.metrics["accuracy"].value == pytest.approx(50)
    assert scored.outcomes["correct"] == [0, 0.25, 0.5, 1, 1, 0.25]


def test_exact_answers_differ_by_case_and_outer_spaces_only() -> None:
    assert exact(" Top Left", ["top left"]) == exact("two", ["2", "TWO "]) == 1
    assert exact("left", ["top left"]) == exact("", ["no"]) == 0


def test_what_cannot_answer_is_told_so(
    tiny: Loaded, task: QuestionAnswering, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = catalogue.load(str(vit(tmp_path_factory.mktemp("models") / "vit")))
    with pytest.raises(Unsupported, match="needs a multimodal or answerer model"):
        task.evaluate(other)
    with pytest.raises(BenchError, match="random weights"):
        task.evaluate(dataclasses.replace(tiny, provenance={"weights": "random"}))
    with pytest.raises(BenchError, match="nothing says how questions are put"):
        task.evaluate(PromptedModel("mute", tiny.model, (24, 24)))


def test_the_emoji_questions_ship_with_the_project() -> None:
    task = tasks.load("emoji-vqa")
    assert isinstance(task, QuestionAnswering) and len(task) == 1000
    assert {q.kind for q in task.questions} == {"what", "there", "many", "where", "caption"}
    assert task.version == tasks.load("emoji-vqa").version
