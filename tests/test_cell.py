"""What a cell says of a method that keeps as many tokens as an image needs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from bench import profiles, tasks
from bench.cell import accuracy, measure
from bench.core import observing
from bench.measure.kept import Kept, unlike
from bench.measure.memory import Memory
from bench.record import Cell
from bench.session import Session, apply
from bench.tasks.base import subset


def cell(method: str, keep_rate: float) -> Cell:
    return Cell(
        suite="t",
        model="embedded:vit-fashion",
        task="fashion-mnist",
        method=method,
        params={"keep_rate": keep_rate},
        label=method,
        profile="auto",
        limit=24,
        batch_sizes=(1,),
        latency_seconds=0.05,
    )


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(cell("none", 1.0), profiles.detect())


def test_tokens_of_the_task_beside_those_that_are_counted(session: Session) -> None:
    one, task = cell("ats", 0.7), tasks.load("fashion-mnist")
    with apply(session.loaded, one), torch.inference_mode():
        with observing(Kept()) as kept:
            found = accuracy(one, session, task, lambda stage: None)
        (note,) = unlike(session.loaded, kept)
        alone = Kept()
        for image in images(session, task):
            with observing(alone):
                session.loaded.model(image)
        example = Kept()
        with observing(example):
            session.loaded.model(**session.loaded.example_inputs(1))
    assert found.primary == "top1"
    said = [float(text) for text in re.findall(r"\d+\.\d", note)]
    assert said == pytest.approx([alone.mean, example.mean], abs=0.051)
    assert alone.samples == 24 * example.samples


def test_a_record_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.session.peak", lambda *a, **k: Memory(2, 1, 1, "fake"))
    task = tasks.load("fashion-mnist")
    for method, notes in (("ats", 1), ("evit", 0)):
        found = measure(cell(method, 0.7), session, task, lambda stage: None)
        assert len(found.notes) == notes and found.accuracy.primary == "top1"


def images(session: Session, task: Any) -> tuple[torch.Tensor, ...]:
    """The images that the task takes, one by one."""
    index = subset(len(task), 24)
    (batch,) = [batch for batch, _ in task.prepared.batches(session.loaded, index, 24)]
    return torch.as_tensor(batch).split(1)


def test_nothing_is_said_where_all_images_keep_as_many(session: Session) -> None:
    task = tasks.load("fashion-mnist")
    for method in ("evit", "dynamicvit"):  # the second is adaptive in training alone
        one = cell(method, 0.7)
        with apply(session.loaded, one), observing(Kept()) as kept:
            accuracy(one, session, task, lambda stage: None)
            assert kept.samples and unlike(session.loaded, kept) == []
