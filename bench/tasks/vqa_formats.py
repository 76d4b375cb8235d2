"""Question answering from the files that VQAv2 and POPE come in.

    vqav2:QUESTIONS[:ANNOTATIONS]:IMAGES      pope:JSON:IMAGES

A multimodal language model gets its question with the line that LLaVA's evaluation adds (`SHORT`);
a model made for answering gets the question alone. The line is part of the task's version.

Without annotations, which a server keeps to itself, the answers are recorded and not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.core.documents import parse_json, parse_json_lines, read_text
from bench.core.errors import BenchError, shown
from bench.models.loaded import Multimodal
from bench.records.record import Metric
from bench.tasks import files, vqa_score
from bench.tasks.base import Evaluation, Feed, hash_of, subset
from bench.tasks.pictures import Files
from bench.tasks.registry import task
from bench.tasks.rows import document, listed, unlike
from bench.tasks.scores import proportion
from bench.tasks.vqa import Question, QuestionAnswering

VQAV2 = "vqav2:QUESTIONS[:ANNOTATIONS]:IMAGES"
POPE = "pope:JSON:IMAGES"
SHORT = "\nAnswer the question using a single word or phrase."
VQAV2_TOKENS, POPE_TOKENS = 10, 16


class NumberedQuestions(QuestionAnswering):
    """Questions with the numbers that an evaluation server knows them by."""

    def _text(self, feed: Feed, question: Question) -> str:
        return question.text + (SHORT if isinstance(feed.loaded, Multimodal) else "")

    def submission(self, outcomes: Mapping[str, Sequence[Any]]) -> str:
        """Return the file that evaluation servers take: [{"question_id", "answer"}]."""
        answers = outcomes["answer"]
        asked = [self.ids[i] for i in subset(len(self), len(answers))]
        return files.answers_as_json("question_id", asked, "answer", answers)


@task(VQAV2, "VQAv2's files; the official soft accuracy")
def vqav2(rest: str) -> NumberedQuestions:
    """Return VQAv2 from its questions file, its annotations file and the folder of images."""
    (asked_file, *answers_files, root), _ = files.places(rest, VQAV2, (2, 3))
    text = read_text(asked_file)
    data = parse_json(text, str(asked_file))
    whole = document(data, asked_file, "VQAv2 questions file", VQAV2)
    rows = [
        (row.number("question_id"), row.number("image_id"), row.text("question"))
        for row in whole.rows("questions", least=1)
    ]
    unlike((number for number, _, _ in rows), asked_file, VQAV2)
    split = whole.text("data_subtype").replace("test-dev", "test")
    right, right_text = _people(answers_files[0]) if answers_files else ({}, "")
    for number, _, _ in rows if answers_files else ():
        if number not in right:
            raise BenchError(
                f"{shown(answers_files[0])} has no answers to question {number} of "
                f"{shown(asked_file)}: take questions and annotations of the same split"
            )
    at = files.numbered([image for _, image, _ in rows])
    return NumberedQuestions(
        f"vqav2:{rest}",
        hash_of(text, right_text, SHORT),
        _coco(list(at), split, root),
        [Question(at[image], words, *right.get(number, ((),))) for number, image, words in rows],
        vqa_score.soft_accuracy,
        VQAV2_TOKENS,
        ids=[number for number, _, _ in rows],
    )


def _people(file: Path) -> tuple[dict[int, tuple[tuple[str, ...], str]], str]:
    """What ten people said to each question, what kind of answer it has, and the file's text."""
    text = read_text(file)
    root = document(parse_json(text, str(file)), file, "VQAv2 annotations file", VQAV2)
    people = {
        row.number("question_id"): (
            tuple(one.text("answer") for one in row.rows("answers", least=1)),
            row.text("answer_type").replace("/", "_"),
        )
        for row in root.rows("annotations")
    }
    return people, text


def _coco(images: Sequence[int], split: str, root: Path) -> Files:
    """COCO's images of a split, which lie in the folder itself or in one named like the split."""
    names = [f"COCO_{split}_{image:012d}.jpg" for image in images]
    paths = [files.first_there([root / name, root / split / name]) for name in names]
    return files.pictures(paths, root, VQAV2)


class YesNo(NumberedQuestions):
    """Questions about what is in a picture and what is not: POPE."""

    def _scored(
        self, asked: Sequence[Question], answers: Sequence[str | None], failed: list[str]
    ) -> Evaluation:
        scored = super()._scored(asked, answers, failed)
        yes = [a is not None and vqa_score.yes_or_no(a) == "yes" for a in answers]
        present = [question.answers == ("yes",) for question in asked]
        return replace(scored, metrics=scored.metrics | detection(yes, present))


def detection(yes: Sequence[bool], present: Sequence[bool]) -> dict[str, Metric]:
    """Return precision, recall, their F1 and the share of yes; "yes" is the positive answer."""
    hits = sum(y and p for y, p in zip(yes, present, strict=True))
    of_yes = [0 if p else 1 for y, p in zip(yes, present, strict=True) if y]
    of_present = [0 if y else 1 for y, p in zip(yes, present, strict=True) if p]
    both = sum(yes) + sum(present)
    metrics = {"f1": Metric(100 * 2 * hits / both if both else 0.0, "%", None, len(yes))}
    for name, ranks in (("precision", of_yes), ("recall", of_present)):
        metrics[name] = proportion(ranks, 1) if ranks else Metric(0.0, "%", None, 0)
    metrics["yes_ratio"] = proportion([0 if y else 1 for y in yes], 1)
    return metrics


def yes_or_no_is_right(answer: str, right: Sequence[str]) -> float:
    """1 where the yes or no that POPE's program reads in an answer is right."""
    return float(vqa_score.yes_or_no(answer) in right)


@task(POPE, "POPE: is an object there; accuracy, precision, recall, F1, share of yes")
def pope(rest: str) -> YesNo:
    """Return POPE from one of its files, a JSON value a line, and the folder of COCO's images."""
    (file, root), _ = files.places(rest, POPE, (2,))
    text = read_text(file)
    rows = listed(parse_json_lines(text, str(file)), file, "POPE file", POPE)
    asked = [(row.text("image"), row.text("text"), row.text("label")) for row in rows]
    ids = [row.number("question_id", i) for i, row in enumerate(rows, 1)]
    for row, (_, _, label) in zip(rows, asked, strict=True):
        if label not in ("yes", "no"):
            raise row.fault("label", "yes or no")
    at = files.numbered([image for image, _, _ in asked])
    pictures = files.pictures([root / image for image in at], root, POPE)
    questions = [Question(at[image], words, (label,)) for image, words, label in asked]
    version, right = hash_of(text, SHORT), yes_or_no_is_right
    return YesNo(f"pope:{rest}", version, pictures, questions, right, POPE_TOKENS, ids=ids)
