"""Visual question answering: greedy answers of a model that sees and reads, sample by sample.

bench.tasks.load("emoji-vqa").evaluate(loaded).metrics["accuracy"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.models.loaded import Answerer, Multimodal, Writer
from bench.records.record import Metric
from bench.tasks import files
from bench.tasks.base import (
    Evaluation,
    Pictures,
    Progress,
    average,
    hash_of,
    in_batches,
    proportion,
    refuse_random,
    require,
    subset,
)

if TYPE_CHECKING:
    from bench.models.loaded import Loaded

QUESTION_WORDS = 6  # of a typical question: the prompt whose cost is counted and timed
EMOJI_QUESTIONS, EMOJI_SEED = 1000, 0
MAX_ANSWER = 8  # tokens; the longest right answer, a caption of four, has 7 and an end

Score = Callable[[str, Sequence[str]], float]  # (answer, right answers) -> 0 to 1


@dataclass(frozen=True)
class Question:
    """A question about one picture, by its number, the right answers, and what kind it is."""

    picture: int
    text: str
    answers: tuple[str, ...]
    kind: str = ""


def exact(answer: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, apart from case and outer spaces."""
    return float(answer.strip().lower() in {one.strip().lower() for one in right})


class QuestionAnswering:
    """Questions about pictures."""

    def __init__(
        self,
        name: str,
        version: str,
        pictures: Pictures,
        questions: Sequence[Question],
        score: Score = exact,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        """Name the task and its data; answers are cut after `max_answer` tokens."""
        self.name, self.version, self.pictures = name, version, pictures
        self.questions, self.score, self.max_answer = questions, score, max_answer

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.questions)

    def evaluate(
        self,
        loaded: Loaded,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score a model; see `bench.tasks.Task`. Outcomes: `correct` (0 to 1) and `answer`."""
        model: Writer = require(loaded, (Answerer, Multimodal), self.name)
        refuse_random(loaded)
        asked = [self.questions[i] for i in subset(len(self), limit)]
        failed: list[str] = []
        say = partial(self._answers, model, failed)
        return self._scored(asked, in_batches(asked, batch_size, say, progress), failed)

    def _answers(self, model: Writer, failed: list[str], some: Sequence[Question]) -> list[str]:
        """The answers to some questions, "" where the picture does not decode."""
        images = [files.opened(self.pictures, question.picture, failed) for question in some]
        texts = [q.text for q, image in zip(some, images, strict=True) if image is not None]
        shown = [[image] for image in images if image is not None]
        said = iter(model.answer(shown, texts, self.max_answer) if shown else [])
        return ["" if image is None else next(said) for image in images]

    def _scored(
        self, asked: Sequence[Question], answers: Sequence[str], failed: list[str]
    ) -> Evaluation:
        correct = [
            self.score(answer, question.answers)
            for question, answer in zip(asked, answers, strict=True)
        ]
        metrics = {"accuracy": share(correct)}
        for kind in dict.fromkeys(question.kind for question in asked if question.kind):
            of = [s for s, question in zip(correct, asked, strict=True) if question.kind == kind]
            metrics[f"accuracy_{kind}"] = share(of)
        plain = [int(s) if s in (0, 1) else s for s in correct]
        return Evaluation(metrics, "accuracy", {"correct": plain, "answer": list(answers)}, failed)


def share(scores: Sequence[float]) -> Metric:
    """Return the mean score in percent; Wilson's interval where scores are 0 or 1."""
    if all(score in (0, 1) for score in scores):
        return proportion([0 if score else 1 for score in scores], 1)
    return average(scores, "%", 100)


def emoji(count: int = EMOJI_QUESTIONS, seed: int = EMOJI_SEED) -> QuestionAnswering:
    """Return questions about unseen scenes of the committed drawings."""
    import numpy as np

    from bench.tasks import scenes
    from bench.tasks.base import Arrays

    found = scenes.scenes(count, seed)
    pixels = np.stack([scene.image for scene in found])
    questions = [Question(i, s.question, (s.answer,), s.kind) for i, s in enumerate(found)]
    version = hash_of(pixels.tobytes(), [(q.text, q.answers) for q in questions])
    return QuestionAnswering("emoji-vqa", version, Arrays(pixels, "scene"), questions)
