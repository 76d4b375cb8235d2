"""A cell's accuracy in shards, on every kind of task: bit for bit that of one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import folders
import pytest

from bench import tasks
from bench.core import observing
from bench.core.errors import BenchError
from bench.measure import profiles
from bench.measure.kept import Kept
from bench.models import catalogue
from bench.records.record import Accuracy, Cell
from bench.runs import cell, seed_average
from bench.runs.numbering import Numbers, Undivided
from bench.runs.session import Session, apply
from bench.runs.shards import Answered, Shard, Share, take
from bench.tasks import Task
from bench.tasks.zeroshot import ENSEMBLE, ZeroShot

SHARDS = (1, 2, 3, 7)  # five batches: of seven shards some have none
METHODS = {"tome": {"r": 2}, "random": {"keep_rate": 0.6}, "none": {}, "ats": {"keep_rate": 0.5}}


@pytest.fixture(autouse=True)
def batches_of_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "evaluation_batch", lambda loaded: 5)


def opened(model: str, task: str, method: str, limit: int | None = 22) -> tuple[Cell, Session]:
    baseline = method == "none"
    asked = Cell("s", model, task, method, METHODS[method], "", "cpu", limit=limit)
    asked = dataclasses.replace(asked, baseline=baseline)
    return asked, Session.open(asked, profiles.get("cpu"))


def accuracy(asked: Cell, session: Session, task: Task) -> tuple[Accuracy, Kept]:
    """As `measure_into` takes it."""

    def take_it(*_: Any) -> Accuracy:
        return cell.accuracy(asked, session, task, lambda what: None)

    with apply(session.loaded, asked), observing(Kept()) as kept:
        first = take_it()
    return seed_average.over_seeds(first, asked, session, take_it), kept


def divided(asked: Cell, session: Session, task: Task, of: int) -> list[Share]:
    shares = [
        take(asked, session, task, Shard(number, of), lambda what: None)
        for number in range(1, of + 1)
    ]
    return [Share.from_bytes(share.to_bytes()) for share in reversed(shares)]


def check(asked: Cell, session: Session, task: Task, shards: tuple[int, ...] = SHARDS) -> None:
    whole, _ = accuracy(asked, session, task)
    assert whole.metrics and whole.outcomes
    for of in shards:
        shares = divided(asked, session, task, of)
        assert accuracy(asked, session, Answered(task, shares))[0] == whole


@pytest.mark.parametrize("method", ["tome", "random", "none"])
def test_retrieval_with_several_texts_an_image(tmp_path: Path, method: str) -> None:
    clip, images = folders.clip(tmp_path / "clip"), folders.images(tmp_path / "images", 6)
    name = f"karpathy:{folders.captions(tmp_path, images)}:{images}"
    asked, session = opened(str(clip), name, method)
    check(asked, session, tasks.load(name))


def test_images_that_do_not_decode_are_named_and_count_as_wrong(tmp_path: Path) -> None:
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images", 5)
    for broken in ("a/1.png", "d/0.png", "e/4.png"):
        (images / broken).write_bytes(b"no picture")
    asked, session = opened(str(vit), f"imagefolder:{images}", "random", limit=None)
    task = tasks.load(asked.task)
    whole, _ = accuracy(asked, session, task)
    assert "(3): a/1.png, d/0.png, e/4.png" in (whole.reason or "")
    check(asked, session, task)


def test_an_adaptive_method_knows_what_all_shards_kept(tmp_path: Path) -> None:
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images", 5)
    asked, session = opened(str(vit), f"imagefolder:{images}", "ats", limit=None)
    task = tasks.load(asked.task)
    _, kept = accuracy(asked, session, task)
    _, merged = accuracy(asked, session, Answered(task, divided(asked, session, task, 3)))
    assert (merged.tokens, merged.samples) == (kept.tokens, kept.samples) != (0, 0)


def test_zero_shot_classes_of_several_sentences() -> None:
    """Texts are gone through once a sentence: the draws of `random` go on from one to the next."""
    emoji = tasks.load("emoji-zeroshot")
    assert isinstance(emoji, ZeroShot)
    task = ZeroShot(
        "few", "1", emoji.prepared.pictures, range(23), emoji.classes[:23], ENSEMBLE[:3]
    )
    asked, session = opened("embedded:clip-emoji", "few", "random")
    check(asked, session, task, (2, 7))


ANSWERS = [
    ("embedded:blip-vqa-emoji", "emoji-vqa"),
    ("embedded:llava-emoji", "emoji-vqa"),
    ("embedded:vilt-emoji", "emoji-reasoning"),
]


@pytest.mark.parametrize(("model", "task"), ANSWERS)
def test_answers(model: str, task: str) -> None:
    asked, session = opened(model, task, "tome")
    check(asked, session, tasks.load(task), (3,))


@pytest.mark.parametrize(("model", "task"), ANSWERS)
def test_draws_of_answers_are_those_of_one_process_or_refused(model: str, task: str) -> None:
    """Where a batch is more than one pass through a tower, its number cannot be told."""
    asked, session = opened(model, task, "random", limit=12)
    try:
        check(asked, session, tasks.load(task), (2,))
    except Undivided as error:
        assert "not one pass" in str(error)


def test_what_asks_again_is_not_divided() -> None:
    asked, session = opened("embedded:blip-match-emoji", "emoji-rerank", "none")
    with pytest.raises(Undivided, match="asks again about what it found"):
        take(asked, session, tasks.load("emoji-rerank"), Shard(1, 2), lambda what: None)


def test_a_task_that_asks_in_its_own_way_is_not_divided(tmp_path: Path) -> None:
    class Own(type(tasks.load("fashion-mnist"))):  # type: ignore[misc]
        def score(self, feed: Any) -> Any:
            return feed.loaded.model

    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    asked, session = opened(str(vit), f"imagefolder:{images}", "none")
    task = tasks.load(asked.task)
    task.__class__ = Own
    with pytest.raises(Undivided, match="asks for the model's model"):
        take(asked, session, task, Shard(1, 2), lambda what: None)


def test_draws_are_numbered_as_in_one_process() -> None:
    """Two kinds of phases with a pass each; the second phase of a kind goes on."""
    numbers, seen = Numbers(), []

    def run(of: str) -> None:
        seen.append((of, numbers.get(of, 0)))
        numbers[of] = seen[-1][1] + 1

    for kind, mine, count in (
        ("images", range(2, 4), 5), ("texts", range(1, 2), 3), ("texts", range(1, 2), 3),
        ("images", range(0), 5), ("images", range(0, 1), 5),
    ):  # fmt: skip
        numbers.begin(kind, mine)
        for _ in mine or range(1):
            run(kind)
        numbers.end(kind, mine, count)
    assert seen == [
        ("images", 2), ("images", 3), ("texts", 1), ("texts", 4), ("images", 5), ("images", 10),
    ]  # fmt: skip
    numbers.begin("images", range(1, 2))
    run("images"), run("images")
    with pytest.raises(Undivided, match="not one pass"):
        numbers.end("images", range(1, 2), 5)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    vit, images = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images")
    asked, session = opened(str(vit), f"imagefolder:{images}", "tome")
    task = tasks.load(asked.task)
    first, second = reversed(divided(asked, session, task, 2))
    with pytest.raises(BenchError, match="not all shards"):
        Answered(task, [first, first])
    with pytest.raises(BenchError, match="not all shards"):
        Answered(task, [second])
    fewer = dataclasses.replace(asked, limit=7)
    with pytest.raises(BenchError, match="20 of 7 samples"):
        accuracy(fewer, session, Answered(task, [first, second]))
    with pytest.raises(BenchError, match="not a shard's answers"):
        Share.from_bytes(b"nothing")


def test_shards_are_parsed_and_take_every_batch_once() -> None:
    for of in range(1, 9):
        for count in range(12):
            ranges = [Shard(number, of).batches(count) for number in range(1, of + 1)]
            assert [batch for one in ranges for batch in one] == list(range(count))
    assert Shard.parse("2/3") == Shard(2, 3) and str(Shard(2, 3)) == "2/3"
    for wrong in ("0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/2", "1/99999"):
        with pytest.raises(BenchError, match="--shard: "):
            Shard.parse(wrong)


def test_models_in_shards_are_taken_for_their_kind() -> None:
    from bench.models.loaded import TwoTower
    from bench.runs.asking import Recording

    feed = Recording(catalogue.load("embedded:clip-emoji"), range(3))
    assert isinstance(feed.loaded, TwoTower) and feed.loaded.kind == "two-tower"
