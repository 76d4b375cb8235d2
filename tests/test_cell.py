"""What a cell says of a method that keeps as many tokens as an image needs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import bench
from bench import tasks
from bench.core import observing
from bench.measure import profiles
from bench.measure.kept import Kept, note_if_unlike
from bench.measure.memory import PeakMemory
from bench.records.record import Cell, Macs
from bench.runs.cell import Examples, evaluation_batch, measure
from bench.runs.counting import mean_count
from bench.runs.session import Session, apply
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


def test_an_adaptive_method_is_counted_on_images_of_the_task(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.runs.session.peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))
    one, task = cell("ats", 0.7), tasks.load("fashion-mnist")
    cost = measure(one, session, task, lambda stage: None).cost
    with apply(session.loaded, one):
        counts = [bench.count_macs(session.loaded.model, x).total for x in images(session, task)]
        noise = bench.count_macs(session.loaded.model, **session.loaded.example_inputs(1)).total
        traces = [bench.trace(session.loaded.model, x).tokens for x in images(session, task)]
    assert cost.macs is not None and len(counts) == 24
    assert cost.macs.total == pytest.approx(sum(counts) / 24, abs=1)
    assert abs(noise / cost.macs.total - 1) > 0.005  # which is what was counted before
    assert sum(cost.macs.by_op.values()) == pytest.approx(cost.macs.total, rel=1e-4)
    last = [trace["vision"][-1][1] for trace in traces]
    assert cost.tokens["vision"][-1][1] == pytest.approx(sum(last) / 24, abs=0.01)
    assert cost.notes == []


def test_an_adaptive_method_is_timed_on_images_of_the_task(session: Session) -> None:
    one, task = cell("ats", 0.7), tasks.load("fashion-mnist")
    with apply(session.loaded, one):
        examples = Examples.of(one, session, task)
        batch = examples.batch(26)["x"]
    own = torch.cat(images(session, task))
    assert torch.equal(batch, torch.cat([own, own[:2]]))  # from the start again
    with apply(session.loaded, cell("evit", 0.7)):
        assert Examples.of(cell("evit", 0.7), session, task).pixels is None


def test_an_adaptive_method_without_a_task_says_what_it_is_counted_on(session: Session) -> None:
    one, task = cell("ats", 0.7), tasks.load("fashion-mnist")
    with apply(session.loaded, one), torch.inference_mode():
        with observing(Kept()) as kept:
            session.loaded.model(images(session, task)[0])
        with observing(Kept()) as noise:
            session.loaded.model(**session.loaded.example_inputs(1))
    (note,) = note_if_unlike(kept, noise, Examples(session.loaded, True).what)
    said = [float(text) for text in re.findall(r"\d+\.\d", note)]
    assert said == pytest.approx([kept.mean, noise.mean], abs=0.051)
    assert "the noise image" in note and note_if_unlike(kept, kept, "it") == []


def images(session: Session, task: Any) -> tuple[torch.Tensor, ...]:
    """The images that the task takes, one by one."""
    index = subset(len(task), 24)
    (batch,) = [batch for batch, _ in task.prepared.batches(session.loaded, index, 24)]
    return torch.as_tensor(batch).split(1)


def test_the_mean_of_several_counts() -> None:
    def macs(total: int, reduction: int, closed: int, by_op: dict[str, int]) -> Macs:
        return Macs(total, reduction, closed, 100, "one image", by_op=by_op)

    counts = [
        (macs(10, 2, 8, {"mm": 4, "bmm": 2}), {"vision": [(5, 4), (4, 2)]}),
        (macs(14, 6, 10, {"mm": 6, "merge": 8}), {"vision": [(5, 3), (3, 2)]}),
    ]
    total, tokens = mean_count(counts)
    assert total == macs(12, 4, 9, {"mm": 5, "bmm": 1, "merge": 4})
    assert tokens == {"vision": [(5, 3.5), (3.5, 2)]}


def test_what_does_not_depend_on_the_images_is_measured_once(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.runs.session.peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))
    task = tasks.load("fashion-mnist")
    topk, ats = cell("topk", 0.7), cell("ats", 0.7)
    first = measure(topk, session, task, lambda stage: None)
    second = measure(replace(topk, task="another"), session, task, lambda stage: None)
    assert second.accuracy == first.accuracy and second.cost.notes == [
        "its costs were measured once, with task fashion-mnist: they do not depend on the images"
    ]
    assert replace(second.cost, notes=[]) == first.cost
    for other in (replace(topk, params={"keep_rate": 0.5}), replace(topk, latency_seconds=0.06)):
        assert measure(other, session, task, lambda stage: None).cost.notes == []
    for name in ("fashion-mnist", "another"):  # adaptive
        one = replace(ats, task=name)
        assert measure(one, session, task, lambda stage: None).cost.notes == []


def test_large_images_come_in_small_batches(session: Session) -> None:
    assert evaluation_batch(session.loaded) == 64
    sides = {(64, 64): 64, (224, 224): 16, (336, 336): 7, (2000, 2000): 1}
    for side, size in sides.items():
        assert evaluation_batch(replace(session.loaded, image_size=side)) == size
