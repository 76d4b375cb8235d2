"""Visual question answering: greedy answers of a model that sees and reads, sample by sample.

bench.tasks.load("emoji-vqa").evaluate(loaded).metrics["accuracy"]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.models.loaded import Answerer, Multimodal
from bench.tasks import scenes
from bench.tasks.base import Evaluation, Feed, Task, hash_of
from bench.tasks.pictures import Arrays, Pictures, answered, opened
from bench.tasks.registry import task
from bench.tasks.scores import share

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


class QuestionAnswering(Task):
    """Questions about pictures."""

    kinds = (Multimodal, Answerer)

    def __init__(
        self,
        name: str,
        version: str,
        pictures: Pictures,
        questions: Sequence[Question],
        score: Score = exact,
        max_answer: int = MAX_ANSWER,
        ids: Sequence[int] = (),
    ) -> None:
        """Name the task and its data.

        Args:
            name: of the task.
            version: of its data.
            pictures: that the questions are about.
            questions: with their right answers.
            score: of an answer.
            max_answer: tokens after which answers are cut.
            ids: of each question, the number that an evaluation server knows it by.
        """
        super().__init__(name, version, questions)
        self.pictures, self.questions = pictures, questions
        self.score_of, self.max_answer, self.ids = score, max_answer, ids

    def by_sample(self, metric: str) -> bool:
        """Yes: a question is answered alone."""
        return True

    def score(self, feed: Feed) -> Evaluation:
        """Score a model. Outcomes: `correct` (0 to 1) and `answer`, "" to an undecoded picture.

        Questions without right answers, which a server keeps to itself, are answered alone.
        """
        asked = [self.questions[i] for i in feed.index]
        failed: list[str] = []
        answers = feed.answers(asked, partial(self._answers, feed, failed))
        return self._scored(asked, answers, failed)

    def _answers(self, feed: Feed, failed: list[str], some: Sequence[Question]) -> list[str | None]:
        """The answers to some questions, None where the picture does not decode."""
        texts = [self._text(feed, question) for question in some]
        images = [opened(self.pictures, question.picture, failed) for question in some]
        return answered(feed.loaded, images, texts, self.max_answer)

    def _text(self, feed: Feed, question: Question) -> str:
        """What a model is asked."""
        return question.text

    def _scored(
        self, asked: Sequence[Question], answers: Sequence[str | None], failed: list[str]
    ) -> Evaluation:
        written = [answer or "" for answer in answers]
        if not any(question.answers for question in self.questions):
            return Evaluation({}, None, {"answer": written}, failed)
        correct = [
            0.0 if answer is None else self.score_of(answer, question.answers)
            for question, answer in zip(asked, answers, strict=True)
        ]
        metrics = {"accuracy": share(correct)}
        for kind in dict.fromkeys(question.kind for question in asked if question.kind):
            of = [s for s, question in zip(correct, asked, strict=True) if question.kind == kind]
            metrics[f"accuracy_{kind}"] = share(of)
        plain = [int(s) if s in (0, 1) else s for s in correct]
        return Evaluation(metrics, "accuracy", {"correct": plain, "answer": written}, failed)


@task("emoji-vqa", "1,000 questions about scenes of small emoji drawings, new arrangements")
def emoji(count: int = EMOJI_QUESTIONS, seed: int = EMOJI_SEED) -> QuestionAnswering:
    """Return questions about unseen scenes of the committed drawings."""
    composed = scenes.scenes(count, seed)
    pixels = np.stack([scene.image for scene in composed])
    questions = [Question(i, s.question, (s.answer,), s.kind) for i, s in enumerate(composed)]
    version = hash_of(pixels.tobytes(), [(q.text, q.answers) for q in questions])
    return QuestionAnswering("emoji-vqa", version, Arrays(pixels, "scene"), questions)
