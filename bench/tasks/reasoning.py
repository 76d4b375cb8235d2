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
from typing import TYPE_CHECKING, Any

from bench.core.errors import Unsupported
from bench.models.loaded import PairClassifier
from bench.records.record import Metric
from bench.tasks import files
from bench.tasks.base import (
    Evaluation,
    Files,
    Pictures,
    Progress,
    hash_of,
    in_batches,
    proportion,
    refuse_random,
    require,
    subset,
)

if TYPE_CHECKING:
    from bench.models.loaded import Loaded

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


class Reasoning:
    """Statements about pairs of pictures."""

    def __init__(
        self, name: str, version: str, pictures: Pictures, statements: Sequence[Statement]
    ) -> None:
        """Name the task and its data."""
        self.name, self.version = name, version
        self.pictures, self.statements = pictures, statements

    def __len__(self) -> int:
        """Return the number of statements."""
        return len(self.statements)

    def evaluate(
        self,
        loaded: Loaded,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score a model of two pictures; see `bench.tasks.Task`.

        Outcomes: `correct`, and `said`, which is None where a picture does not decode or the
        model does not decide. The metric
        `consistency` is the share of sentences that are judged right of all their pairs; a limit
        tears pairs apart, and leaves it out.
        """
        model = require(loaded, PairClassifier, self.name)
        refuse_random(loaded)
        asked = [self.statements[i] for i in subset(len(self), limit)]
        failed: list[str] = []
        judge = partial(self._judged, model, failed)
        said = in_batches(asked, batch_size, judge, progress)
        right = [s is not None and s == one.true for s, one in zip(said, asked, strict=True)]
        metrics = {"accuracy": _share(right)}
        if len(asked) == len(self):
            metrics["consistency"] = _consistency(asked, right)
        outcomes: dict[str, list[Any]] = {"correct": [int(r) for r in right], "said": said}
        return Evaluation(metrics, "accuracy", outcomes, failed)

    def _judged(
        self, model: PairClassifier, failed: list[str], some: Sequence[Statement]
    ) -> list[bool | None]:
        """Whether the model takes some statements for true; None where a picture is broken."""
        shown = []
        for one in some:
            pair = [files.opened(self.pictures, i, failed) for i in one.pictures]
            shown.append(None if None in pair else pair)
        pairs = [pair for pair in shown if pair is not None]
        texts = [one.text for one, pair in zip(some, shown, strict=True) if pair is not None]
        if not pairs:
            return [None] * len(some)
        logits = model.judge(pairs, texts).float()
        if logits.shape[1] != 2:
            raise Unsupported(
                f"{model.name} has {logits.shape[1]} outputs; task '{self.name}' needs 2"
            )
        margins = iter((logits[:, TRUE] - logits[:, 1 - TRUE]).tolist())
        return [None if pair is None else _side(next(margins)) for pair in shown]

    def submission(self, outcomes: Mapping[str, Sequence[Any]]) -> str:
        """Return the official program's predictions: a line `identifier,True` or `,False` each."""
        said = outcomes["said"]
        asked = [self.statements[i] for i in subset(len(self), len(said))]
        rows = zip(asked, said, strict=True)
        return "".join(f"{one.identifier},{bool(judged)}\n" for one, judged in rows)


def _side(margin: float) -> bool | None:
    """What a margin says; a tie, and what is no number, say nothing and are never right."""
    return True if margin > 0 else False if margin < 0 else None


def _share(right: Sequence[bool]) -> Metric:
    return proportion([0 if one else 1 for one in right], 1)


def _consistency(asked: Sequence[Statement], right: Sequence[bool]) -> Metric:
    by_sentence: dict[str, bool] = {}
    for one, ok in zip(asked, right, strict=True):
        by_sentence[one.sentence] = by_sentence.get(one.sentence, True) and ok
    return _share(list(by_sentence.values()))


def nlvr2(rest: str) -> Reasoning:
    """Return NLVR2 from one of its files, a JSON value a line, and the folder of its images."""
    (file, root), _ = files.places(rest, NLVR2, 2)
    paths: dict[Path, int] = {}
    with files.reading(file, "NLVR2 file", NLVR2):
        text = file.read_text(encoding="utf-8")
        statements = [_statement(row, root, paths) for row in files.lines_of(text)]
        if not statements:
            raise ValueError("no statements")
    files.require_any(list(paths), root, NLVR2)
    return Reasoning(f"nlvr2:{rest}", hash_of(text), Files(list(paths), root), statements)


def _statement(row: Mapping[str, Any], root: Path, paths: dict[Path, int]) -> Statement:
    """A statement from its row; where its images lie is added to `paths`."""
    identifier = str(row["identifier"])
    split, group, pair, _ = identifier.split("-")
    label = str(row["label"]).lower()
    if label not in ("true", "false"):
        raise ValueError(f"label {row['label']!r} of {identifier}")
    folders = [root, root / split]
    if "directory" in row:
        inner = str(row["directory"])
        folders += [root / split / inner, root / inner, root / "images" / split / inner]
    names = [f"{split}-{group}-{pair}-img{side}.png" for side in (0, 1)]
    left, right = (files.first_there([folder / name for folder in folders]) for name in names)
    numbers = (paths.setdefault(left, len(paths)), paths.setdefault(right, len(paths)))
    return Statement(identifier, str(row["sentence"]), numbers, label == "true")
