"""Random pruning as a judge: a draw for each batch of an accuracy pass, and five seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
import vlm_models as vlm
from scipy.stats import t
from tiny import clip, images, inputs, timm_vit

import bench
from bench import tasks
from bench.core import Plan, Site, redrawing
from bench.core.registry import method
from bench.measure import profiles
from bench.measure.memory import PeakMemory
from bench.records.record import COST_ONLY, Accuracy, Cell, Metric, Record
from bench.runs.cell import EVALUATION_BATCH, accuracy, measure
from bench.runs.seed_average import averaged, mean
from bench.runs.session import Session, apply
from bench.tasks.base import subset

LIMIT = 2 * EVALUATION_BATCH + 8
BATCHES = 3
Random: Any = method("random")


class Draws(list[tuple[str, int, int]]):
    """Tower, layer and batch number of each decision of `random`."""

    def of(self, tower: str) -> list[int]:
        return [draw for name, _, draw in self if name == tower]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    noted, plan = Draws(), Random.plan

    def noting(self: Any, site: Site, r: int) -> Plan:
        noted.append((site.tower, site.layer, site.draw))
        answer: Plan = plan(self, site, r)
        return answer

    monkeypatch.setattr(Random, "plan", noting)
    return noted


def site(draw: int = 0, layer: int = 3, n: int = 17) -> Site:
    x = torch.zeros(1, n, 4)
    none = x[:, None]
    protect = (torch.arange(n) < 1)[None]
    return Site(x, none, none, none, x[..., :1], protect, layer, 12, draw=draw)


def kept(draw: int = 0, seed: int = 0, **where: int) -> list[int]:
    plan: Plan = Random(seed=seed).plan(site(draw, **where), 8)
    row: list[int] = plan.keep[0].tolist()
    return row


# --- a draw for each batch ------------------------------------------------------------------------


def test_batch_zero_draws_as_ever() -> None:
    assert kept() == [0, 1, 2, 4, 6, 7, 8, 13, 14]
    assert kept(seed=3, layer=6) == [0, 2, 5, 6, 7, 9, 11, 13, 16]


def test_no_batch_of_a_seed_draws_as_a_batch_of_another() -> None:
    each = [tuple(kept(draw, seed, n=65)) for draw in range(20) for seed in range(5)]
    assert len(set(each)) == 100
    share = np.mean([[place in row for place in range(1, 65)] for row in each], axis=0)
    assert share.min() > 0.7 and share.max() < 1  # 56 of 64 stay, wherever they are


def test_batches_are_numbered_in_an_accuracy_pass_alone(draws: Draws) -> None:
    model, x = timm_vit(), images(2)
    with bench.reduced(model, "random", keep_rate=0.5, layers=(1, 2)), torch.inference_mode():
        before = [model(x) for _ in range(2)]
        with redrawing():
            within = [model(x) for _ in range(3)]
        with redrawing():  # another pass, from the start
            again = [model(x) for _ in range(3)]
        after = model(x)
    assert [draw for _, _, draw in draws] == [0] * 4 + 2 * [0, 0, 1, 1, 2, 2] + [0] * 2
    assert torch.equal(before[0], before[1]) and torch.equal(before[0], after)
    assert torch.equal(before[0], within[0])
    assert not torch.equal(within[0], within[1]) and not torch.equal(within[1], within[2])
    assert all(map(torch.equal, within, again))


def test_each_tower_and_part_counts_the_same_batches(draws: Draws) -> None:
    model, pair = clip(), inputs(clip())
    entries = [
        {"name": "random", "keep_rate": {"vision": 0.5, "text": 0.5}, "layers": [1]},
        {"name": "random", "keep_rate": {"vision": 0.5}, "layers": [2], "seed": 7},
    ]
    with bench.reduced(model, "compose", of=entries), redrawing(), torch.inference_mode():
        model(**pair)
        model.get_text_features(pair["input_ids"])
        model(**pair)
    assert draws.of("vision") == [0, 0, 1, 1]
    assert draws.of("text") == [0, 1, 2]


@pytest.mark.parametrize("family", list(vlm.MODELS))
def test_an_answer_is_one_batch(family: str, draws: Draws) -> None:
    """However many tokens are decoded, and however many images or crops a prompt has."""
    make, batch_of = vlm.MODELS[family]
    model, batch = make(), batch_of(2)
    for where in ("vision", "projector", "language"):
        draws.clear()
        given = {"keep_rate": {where: 0.5}, "layers": {where: [0 if where == "projector" else 1]}}
        with bench.reduced(model, "random", **given), redrawing(), torch.inference_mode():
            for _ in range(3):
                vlm.answers(model, batch, 4)
        times = len(draws) // 3
        assert times >= 1
        assert draws.of(where) == [0] * times + [1] * times + [2] * times


# --- five seeds -----------------------------------------------------------------------------------


def cell(name: str = "random", task: str = "fashion-mnist", **params: Any) -> Cell:
    return Cell(
        suite="t",
        model="embedded:vit-fashion",
        task=task,
        method=name,
        params={"keep_rate": 0.4, **params},
        label=name,
        profile="auto",
        seed=2,
        limit=LIMIT,
        batch_sizes=(1,),
        latency_seconds=0.05,
    )


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(cell(), profiles.detect())


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.runs.session.peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))


def silent(_: str) -> None:
    """Say nothing of the stage."""


def test_the_number_of_a_batch_does_not_depend_on_what_ran_before(
    session: Session, draws: Draws
) -> None:
    one, task = cell(), tasks.load("fashion-mnist")
    with apply(session.loaded, one):
        first = accuracy(one, session, task, silent)
        numbers = list(draws)
        assert sorted(set(draws.of("vision"))) == list(range(BATCHES))
        draws.clear()
        session.loaded.model(**session.loaded.example_inputs(1))
        assert set(draws.of("vision")) == {0}
        draws.clear()
        assert accuracy(one, session, task, silent) == first  # from the prepared batches
        assert draws == numbers


def by_hand(session: Session, task: Any, seed: int) -> list[int]:
    """What each image scores, each batch under a draw of its own."""
    index, model = subset(len(task), LIMIT), session.loaded.model
    correct: list[int] = []
    one = cell(seed=seed)
    with apply(session.loaded, one), torch.inference_mode(), redrawing():
        for batch, _ in task.prepared.batches(session.loaded, index, EVALUATION_BATCH):
            correct += model(batch).argmax(1).tolist()
    labels = [task.labels[i] for i in index]
    return [int(a == b) for a, b in zip(correct, labels, strict=True)]


@pytest.mark.usefixtures("no_memory")
def test_a_record_of_random_holds_five_seeds(session: Session) -> None:
    task = tasks.load("fashion-mnist")
    scored = measure(cell(), session, task, silent).accuracy
    each = [by_hand(session, task, seed) for seed in range(2, 7)]
    assert [scored.outcomes["correct"], *(one["correct"] for one in scored.repeats)] == each
    assert len({tuple(one) for one in each}) == 5
    assert scored.seed_values == pytest.approx([100 * fmean(one) for one in each])
    assert len(set(scored.seed_values)) > 1
    top1 = scored.metrics["top1"]
    assert top1.value == pytest.approx(fmean(scored.seed_values)) and top1.n == LIMIT
    assert "forward" not in session.loaded.model.blocks[0].__dict__  # type: ignore[union-attr, index]


@pytest.mark.usefixtures("no_memory")
def test_a_seed_that_the_cell_names_is_the_first(session: Session) -> None:
    task = tasks.load("fashion-mnist")
    scored = measure(cell(seed=4), session, task, silent).accuracy
    assert scored.outcomes["correct"] == by_hand(session, task, 4)
    assert scored.repeats[3]["correct"] == by_hand(session, task, 8)


@pytest.mark.usefixtures("no_memory")
def test_what_draws_nothing_runs_once(session: Session) -> None:
    for name in ("evit", "kmedoids"):  # the second has a seed too, which chooses its start alone
        scored = measure(cell(name), session, tasks.load("fashion-mnist"), silent).accuracy
        assert scored.primary == "top1" and scored.repeats == [] and scored.seed_values == []
    nothing = measure(cell(task=COST_ONLY), session, None, silent).accuracy
    assert nothing.primary is None and nothing.repeats == [] and nothing.reason


def test_the_interval_covers_samples_and_seeds() -> None:
    values = [80.0, 82.0, 81.0, 79.0, 84.0]
    each = [Metric(value, "%", (value - 3, value + 2), 200) for value in values]
    found = mean(each)
    seeds = t.ppf(0.975, 4) * stdev(values) / 5**0.5
    assert found.value == pytest.approx(81.2) and found.n == 200
    ends = 81.2 - (9 + seeds**2) ** 0.5, 81.2 + (4 + seeds**2) ** 0.5
    assert found.ci95 == pytest.approx(ends)
    assert mean([replace(one, ci95=None) for one in each]).ci95 is None
    sure = [Metric(value, "%", (value, 100.0), 200) for value in (100.0, 97.0)]
    assert mean(sure).ci95 == (pytest.approx(98.5 - t.ppf(0.975, 1) * 1.5), 100.0)


def test_records_keep_the_seeds_and_old_ones_are_read() -> None:
    each = [
        Accuracy("top1", {"top1": Metric(50.0 * k, "%", (0.0, 100.0), 2)}, {"correct": [0, k]})
        for k in (0, 1)
    ]
    both = averaged(each)
    assert both.seed_values == [0.0, 50.0] and both.metrics["top1"].value == 25
    assert both.outcomes == {"correct": [0, 0]} and both.repeats == [{"correct": [0, 1]}]
    new = record(both)
    assert Record.from_json(new.to_json()) == new
    old = json.loads(new.to_json())
    del old["accuracy"]["repeats"], old["accuracy"]["seed_values"]
    assert Record.from_json(json.dumps(old)).accuracy == replace(both, repeats=[], seed_values=[])


def record(scored: Accuracy) -> Record:
    from bench.records.record import Cost

    return Record("k", "ok", None, cell(), scored, Cost(), {}, {}, "run", "2026-01-01", 1.0)
