"""Visual reasoning: is a statement about two pictures true? NLVR2.

    nlvr2:JSON:IMAGES

Images lie in one folder, or in folders by split and, for training, by directory, as the download
lays them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.core.documents import parse_json_lines, read_text
from bench.core.errors import Unsupported
from bench.models.loaded import PairClassifier
from bench.records.record import Metric
from bench.tasks import files
from bench.tasks.base import Evaluation, Feed, Task, hash_of, subset
from bench.tasks.pictures import Pictures, opened
from bench.tasks.registry import task
from bench.tasks.rows import Row, listed
from bench.tasks.scores import share

NLVR2 = "nlvr2:JSON:IMAGES"
TRUE = 1  # the output that says the statement is true, in ViLT's and BLIP's heads


@dataclass(frozen=True)
class Statement:
    """A statement about two pictures, by their numbers, and whether it is true."""

    identifier: str
    text: str
    pictures: tuple[int, int]
    true: bool

    @property
    def sentence(self) -> str:
        """What the statements share that say the same of other pairs: all but the pair's number."""
        split, group, _, number = self.identifier.split("-")[:4]
        return f"{split}-{group}-{number}"


class Reasoning(Task):
    """Statements about pairs of pictures."""

    kinds = (PairClassifier,)

    def __init__(
        self, name: str, version: str, pictures: Pictures, statements: Sequence[Statement]
    ) -> None:
        """Name the task and its data."""
        super().__init__(name, version, statements)
        self.pictures, self.statements = pictures, statements

    def by_sample(self, metric: str) -> bool:
        """All but consistency, which wants every pair of a sentence."""
        return metric != "consistency"

    def score(self, feed: Feed) -> Evaluation:
        """Score a model of two pictures.

        Outcomes: `correct`, and `said`, which is None where a picture does not decode or the model
        does not decide. The metric `consistency` is the share of sentences that are judged right of
        all their pairs; a limit tears pairs apart, and leaves it out.
        """
        asked = [self.statements[i] for i in feed.index]
        failed: list[str] = []
        judged = feed.answers(asked, partial(self._judged, feed.loaded, failed))
        right = [j is not None and j == one.true for j, one in zip(judged, asked, strict=True)]
        metrics = {"accuracy": share(right)}
        if len(asked) == len(self):
            metrics["consistency"] = _consistency(asked, right)
        outcomes: dict[str, list[Any]] = {"correct": [int(r) for r in right], "said": judged}
        return Evaluation(metrics, "accuracy", outcomes, failed)

    def _judged(
        self, loaded: PairClassifier, failed: list[str], some: Sequence[Statement]
    ) -> list[bool | None]:
        """Whether the model takes some statements for true; None where a picture is broken."""
        pairs = [[opened(self.pictures, i, failed) for i in one.pictures] for one in some]
        shown = [None not in pair for pair in pairs]
        if not any(shown):
            return [None] * len(some)
        texts = [one.text for one, ok in zip(some, shown, strict=True) if ok]
        logits = loaded.judge([pair for pair in pairs if None not in pair], texts).float()
        if logits.shape[1] != 2:
            raise Unsupported(
                f"{loaded.name} has {logits.shape[1]} outputs; task '{self.name}' needs 2"
            )
        margins = iter((logits[:, TRUE] - logits[:, 1 - TRUE]).tolist())
        return [_side(next(margins)) if ok else None for ok in shown]

    def submission(self, outcomes: Mapping[str, Sequence[Any]]) -> str:
        """Return the official program's predictions: a line `identifier,True` or `,False` each."""
        judged = outcomes["said"]
        asked = [self.statements[i] for i in subset(len(self), len(judged))]
        rows = zip(asked, judged, strict=True)
        return "".join(f"{one.identifier},{bool(answer)}\n" for one, answer in rows)


def _side(margin: float) -> bool | None:
    """What a margin says; a tie, and what is no number, say nothing and are never right."""
    return True if margin > 0 else False if margin < 0 else None


def _consistency(asked: Sequence[Statement], right: Sequence[bool]) -> Metric:
    by_sentence: dict[str, bool] = {}
    for one, ok in zip(asked, right, strict=True):
        by_sentence[one.sentence] = by_sentence.get(one.sentence, True) and ok
    return share(list(by_sentence.values()))


@task(NLVR2, "NLVR2: is a statement about two images true; accuracy, consistency")
def nlvr2(rest: str) -> Reasoning:
    """Return NLVR2 from one of its files, a JSON value a line, and the folder of its images."""
    (file, root), _ = files.places(rest, NLVR2, (2,))
    paths: dict[Path, int] = {}
    text = read_text(file)
    rows = listed(parse_json_lines(text, str(file)), file, "NLVR2 file", NLVR2)
    statements = [_statement(row, root, paths) for row in rows]
    pictures = files.pictures(list(paths), root, NLVR2)
    return Reasoning(f"nlvr2:{rest}", hash_of(text), pictures, statements)


def _statement(row: Row, root: Path, paths: dict[Path, int]) -> Statement:
    """A statement from its row; where its images lie is added to `paths`."""
    identifier = row.text("identifier")
    if identifier.count("-") != 3:
        raise row.fault("identifier", "SPLIT-GROUP-PAIR-NUMBER")
    split, group, pair, _ = identifier.split("-")
    label = str(row.value("label")).lower()
    if label not in ("true", "false"):
        raise row.fault("label", "True or False")
    folders = [root, root / split]
    if inner := str(row.identifier("directory", "")):
        folders += [root / split / inner, root / inner, root / "images" / split / inner]
    names = [f"{split}-{group}-{pair}-img{side}.png" for side in (0, 1)]
    left, right = (files.first_there([folder / name for folder in folders]) for name in names)
    numbers = (paths.setdefault(left, len(paths)), paths.setdefault(right, len(paths)))
    return Statement(identifier, row.text("sentence"), numbers, label == "true")
