"""Referring expressions: where in a picture is what a sentence describes?

A model answers with a box. Right is an answer whose first box has an intersection over union of 0.5
or more with the box that people drew, as RefCOCO's papers have it (Acc@0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.models.loaded import Multimodal
from bench.tasks import boxes
from bench.tasks.base import Evaluation, Feed, Task
from bench.tasks.boxes import Box, Convention
from bench.tasks.pictures import Pictures, answered, opened
from bench.tasks.scores import share

RIGHT = 0.5  # intersection over union
MAX_ANSWER = 100  # tokens; Qwen2.5-VL's JSON has about 60


@dataclass(frozen=True)
class Expression:
    """What a sentence describes in a picture.

    Attributes:
        picture: its number.
        text: the sentence.
        box: where that is, in pixels of a picture of `size`.
        size: (width, height); None: of the picture itself.
    """

    picture: int
    text: str
    box: Box
    size: tuple[int, int] | None = None

    def overlap(self, box: Box | None, size: tuple[int, int]) -> float:
        """Return the intersection over union with a box in a picture of (width, height)."""
        if box is None:
            return 0.0
        across, down = (one / other for one, other in zip(size, self.size or size, strict=True))
        left, top, right, bottom = self.box
        return boxes.iou(box, (left * across, top * down, right * across, bottom * down))


class Localisation(Task):
    """Expressions and where in their pictures is what they describe."""

    kinds = (Multimodal,)

    def __init__(
        self,
        name: str,
        version: str,
        pictures: Pictures,
        expressions: Sequence[Expression],
        unit: str | None = None,
        prompt: str | None = None,
    ) -> None:
        """Name the task and its data.

        Args:
            name: of the task.
            version: of its data.
            pictures: that the expressions are about.
            expressions: with the boxes that people drew.
            unit: that models write boxes in, see `bench.tasks.boxes`; None: their family's.
            prompt: with `{}` for the expression; None: as the unit has it.
        """
        super().__init__(name, version, expressions)
        self.pictures, self.expressions = pictures, expressions
        self.unit, self.prompt = unit, prompt

    def by_sample(self, metric: str) -> bool:
        """Yes: an expression is looked for in its image alone."""
        return True

    def score(self, feed: Feed) -> Evaluation:
        """Score a model. Outcomes: `correct`, `iou` (0 to 1) and `answer`, "" to a broken picture.

        Raises:
            BenchError: nobody says how the model writes boxes.
        """
        way = boxes.convention(feed.loaded, self.unit, self.prompt, self.name)
        asked = [self.expressions[i] for i in feed.index]
        failed: list[str] = []
        replies = feed.answers(asked, partial(self._answers, feed.loaded, way, failed))
        overlaps = [overlap for _, overlap in replies]
        right = [int(overlap >= RIGHT) for overlap in overlaps]
        metrics = {"accuracy": share(right), "iou": share(overlaps)}
        outcomes: dict[str, list[Any]] = {"correct": right, "iou": overlaps}
        outcomes["answer"] = [answer for answer, _ in replies]
        return Evaluation(metrics, "accuracy", outcomes, failed)

    def _answers(
        self, loaded: Multimodal, way: Convention, failed: list[str], some: Sequence[Expression]
    ) -> list[tuple[str, float]]:
        """The answers to some expressions, and how well each one's box fits."""
        images = [opened(self.pictures, one.picture, failed) for one in some]
        texts = [way.prompt.replace("{}", one.text) for one in some]
        results = []
        answers = answered(loaded, images, texts, MAX_ANSWER)
        for one, image, answer in zip(some, images, answers, strict=True):
            if image is None or answer is None:
                results.append(("", 0.0))
                continue
            processor = loaded.require_processor().image_processor
            box = boxes.located(answer, way.unit, processor, image)
            results.append((answer, one.overlap(box, image.size)))
        return results
