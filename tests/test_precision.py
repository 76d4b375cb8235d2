"""Cells that stop once their difference is known: by width alone, each sample asked about once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
import torch

from bench import tasks
from bench.core import redrawing
from bench.core.errors import BenchError
from bench.measure import profiles
from bench.measure.memory import PeakMemory
from bench.records import audit
from bench.records.derived import ALL_TAKEN
from bench.records.precision import half_width
from bench.records.record import Accuracy, Cell, Record
from bench.records.store import Store
from bench.report.data.stats import paired_difference
from bench.runs import cell as cells
from bench.runs import runner, seed_average, session, spec, stopping
from bench.runs.session import Session, apply
from bench.tasks.base import Evaluation, Feed, Task, shuffled
from bench.tasks.retrieval import Retrieval

LIMIT = 70


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks after 12, 18, 24, 36, 48 samples, none of which is a number of whole batches."""
    monkeypatch.setattr(stopping, "FIRST", 12)
    monkeypatch.setattr(cells, "evaluation_batch", lambda loaded: 5)
    monkeypatch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))


# --- the rule -------------------------------------------------------------------------------------


def test_half_an_interval_is_what_a_hand_gets() -> None:
    """Two won, one lost of six, and one of each imagined: 3 won, 2 lost of 8 (Student's 2.3646)."""
    ours, base = np.array([1.0, 1, 0, 1, 0, 1]), np.array([0.0, 0, 1, 1, 0, 1])
    deviation = ((5 - 1 / 8) / 7) ** 0.5
    assert half_width(ours, base) == pytest.approx(2.36462 * deviation / 8**0.5, rel=1e-5)
    graded = np.array([0.5, 0.0, 1.0]), np.zeros(3)  # deviation 1/2; Student's 4.3027
    assert half_width(*graded) == pytest.approx(4.30265 * 0.5 / 3**0.5, rel=1e-5)
    assert half_width(ours[:1] / 2, base[:1]) == float("inf")


def test_looks_are_at_fixed_sizes_and_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert stopping.looks(1050) == [128, 192, 256, 384, 512, 768, 1024, 1050]
    assert stopping.looks(128) == [128] and stopping.looks(40) == [40]


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0), (0.06, 0.04), (0.2, 0), (0.2, 0.1)])
def test_the_interval_where_it_stopped_is_one_of_95_percent(
    monkeypatch: pytest.MonkeyPatch, lost: float, won: float
) -> None:
    monkeypatch.undo()
    rng, times, held, taken = np.random.default_rng(0), 600, 0, []
    for _ in range(times):
        base = np.ones(1050)
        gap = rng.choice([0.0, 1.0, -1.0], 1050, p=[1 - lost - won, lost, won])
        base[gap < 0] = 0.0  # won: the unreduced model is wrong there
        ours = np.where(gap > 0, 0.0, 1.0)
        size = next(
            n
            for n in stopping.looks(1050)
            if n == 1050 or 100 * half_width(ours[:n], base[:n]) <= 4
        )
        result = paired_difference(ours[:size], base[:size])
        held += result.low - 1e-9 <= won - lost <= result.high + 1e-9
        taken.append(size)
    assert held / times >= 0.935
    assert np.mean(taken) < 512 or lost + won >= 0.2
    assert np.mean(taken) > 500 or lost + won < 0.3


# --- samples ----------------------------------------------------------------------------------


def cell(method: str = "tome", **changes: Any) -> Cell:
    params = {"tome": {"r": 6}, "random": {"keep_rate": 0.4}, "none": {}}[method]
    one = Cell("t", "embedded:vit-fashion", "fashion-mnist", method, params, method, "cpu")
    asked = {"limit": LIMIT, "precision": 12.0, "baseline": method == "none", **changes}
    return replace(one, **asked)


@pytest.fixture(scope="module")
def loaded() -> Session:
    return Session.open(cell(), profiles.get("cpu"))


@pytest.fixture
def opened(loaded: Session) -> Session:
    loaded.unreduced.clear()
    return loaded


def scored(opened: Session, one: Cell, task: Task) -> Accuracy:
    """As `measure_into` takes it, without the costs."""

    def of(samples: int | None = None) -> Accuracy:
        return cells.accuracy(one, opened, task, lambda what: None, samples)

    cells._know_unreduced(one, opened, task, lambda what: None)
    with apply(opened.loaded, one):
        first = of()
    samples = first.stop.samples if first.stop else None
    return seed_average.over_seeds(first, one, opened, lambda seed: of(samples))


def plainly(opened: Session, one: Cell, task: Task, samples: int) -> Evaluation:
    """All of some samples in one go."""
    with apply(opened.loaded, one), redrawing(), torch.inference_mode():
        return task.score(Feed(opened.loaded, shuffled(len(task))[:samples], 5))


def counted(monkeypatch: pytest.MonkeyPatch, opened: Session) -> list[int]:
    """How many images each call of the model was about."""
    sizes: list[int] = []
    kind = type(opened.loaded)
    logits: Callable[..., Any] = kind.logits  # type: ignore[attr-defined]

    def counting(self: Any, images: Any) -> Any:
        sizes.append(len(images))
        return logits(self, images)

    monkeypatch.setattr(kind, "logits", counting)
    return sizes


def test_a_cell_stops_at_the_first_look_that_is_narrow_enough(
    monkeypatch: pytest.MonkeyPatch, opened: Session
) -> None:
    task, one = tasks.load("fashion-mnist"), cell()
    asked = counted(monkeypatch, opened)
    result = scored(opened, one, task)
    stop = result.stop
    assert stop and stop.early and stop.asked == LIMIT and stop.samples > 12
    assert sum(asked) == LIMIT + stop.samples  # the unreduced model's, then each once
    plain, unreduced = (plainly(opened, c, task, LIMIT) for c in (one, cell("none")))
    ours, base = (np.array(e.outcomes["correct"], dtype=float) for e in (plain, unreduced))
    assert result.outcomes["correct"] == ours[: stop.samples].tolist()
    assert stop.unreduced == base[: stop.samples].tolist()
    halves = [100 * half_width(ours[:n], base[:n]) for n in stopping.looks(LIMIT)]
    assert [half for _, half in stop.looks] == halves[: len(stop.looks)]
    assert halves[len(stop.looks) - 1] <= 12 < min(halves[: len(stop.looks) - 1])
    assert result.metrics["top1"].n == stop.samples and result.reason is None


def test_where_nothing_is_narrow_enough_all_samples_are_taken(opened: Session) -> None:
    result = scored(opened, cell(precision=0.5), tasks.load("fashion-mnist"))
    assert result.stop and not result.stop.early
    assert [size for size, _ in result.stop.looks] == stopping.looks(LIMIT)
    assert result.metrics["top1"].n == LIMIT


def test_the_unreduced_model_takes_all_and_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, opened: Session
) -> None:
    task = tasks.load("fashion-mnist")
    result = scored(opened, cell("none"), task)
    assert result.stop is None and len(result.outcomes["correct"]) == LIMIT
    asked = counted(monkeypatch, opened)
    stop = scored(opened, cell(), task).stop
    assert stop and sum(asked) == stop.samples


def test_random_draws_as_in_one_go_and_its_seeds_share_the_samples(opened: Session) -> None:
    task, one = tasks.load("fashion-mnist"), cell("random", precision=20.0)
    result = scored(opened, one, task)
    stop = result.stop
    assert stop and stop.early and len(result.repeats) == 4
    # Batches of 5 end at each look: 12 are 5 + 5 + 2. In one go they draw alike up to there.
    assert result.outcomes["correct"][:10] == plainly(opened, one, task, 10).outcomes["correct"]
    assert {len(each["correct"]) for each in result.repeats} == {stop.samples}
    assert result.metrics["top1"].n == stop.samples
    further = cells.accuracy(replace(one, precision=99.0), opened, task, lambda what: None, 31)
    assert further.stop is None and len(further.outcomes["correct"]) == 31


def retrieval(folder: Path, all_texts: bool) -> tuple[Session, Retrieval, Cell]:
    clip, pictures = folders.clip(folder / "clip"), folders.images(folder / "images", 8)
    files = tasks.load(f"karpathy:{folders.captions(folder, pictures)}:{pictures}")
    texts = [[text[0]] for text in files.texts]  # type: ignore[attr-defined]
    task = Retrieval("r", "v", files.prepared.pictures, texts, all_texts)  # type: ignore[attr-defined]
    one = cell(model=str(clip), task="r", params={"r": {"vision": 1}}, limit=None, precision=25.0)
    return Session.open(one, profiles.get("cpu")), task, one


def test_what_depends_on_the_pool_is_left_out_and_named(tmp_path: Path) -> None:
    opened, task, one = retrieval(tmp_path, all_texts=True)
    result = scored(opened, one, task)
    assert result.stop and result.stop.early
    assert list(result.metrics) == ["i2t_r1", "i2t_r5", "i2t_r10"]
    assert result.reason and result.reason.endswith("left out: t2i_r1, t2i_r5, t2i_r10")
    plain = plainly(opened, one, task, result.stop.samples)
    assert result.outcomes == plain.outcomes
    whole = scored(opened, replace(one, precision=0.5), task)
    assert whole.reason is None and "t2i_r1" in whole.metrics


def test_a_metric_of_the_pool_stops_nothing_and_says_so(tmp_path: Path) -> None:
    opened, task, one = retrieval(tmp_path, all_texts=False)
    result = scored(opened, one, task)
    assert result.stop is None and result.metrics["i2t_r1"].n == len(task)
    assert result.reason == "all samples were taken: i2t_r1 depends on which samples there are"
    assert result.reason.startswith(ALL_TAKEN)  # what the audit believes


def test_broken_pictures_of_all_looks_are_named(tmp_path: Path) -> None:
    vit, pictures = folders.vit(tmp_path / "vit"), folders.images(tmp_path / "images", 6)
    for broken in ("a/1.png", "d/0.png", "e/4.png"):
        (pictures / broken).write_bytes(b"no picture")
    one = cell(model=str(vit), task=f"imagefolder:{pictures}", params={"r": 1}, precision=0.5)
    opened = Session.open(one, profiles.get("cpu"))
    result = scored(opened, one, tasks.load(one.task))
    assert result.reason and all(name in result.reason for name in ("a/1", "d/0", "e/4"))
    assert "wrong (3)" in result.reason


# --- records ----------------------------------------------------------------------------------


def records(folder: Path) -> dict[str, Record]:
    """What a suite with a precision leaves, by label."""
    data = {
        "name": "precise",
        "models": [{"name": "embedded:vit-fashion", "tasks": ["fashion-mnist"]}],
        "methods": [{"name": "tome", "r": 6}],
        "profiles": ["cpu"],
        "batch_sizes": [1],
        "latency_seconds": 0.02,
        "limit": LIMIT,
        "precision": 12.0,
    }
    suite = spec.parse(data, spec.Options())
    command = "run_bench.py run --suite precise"
    summary = runner.run(suite, spec.Options(), folder, machine="m", command=command, quiet=True)
    assert summary.failed == 0, summary.reasons
    return {record.cell.label: record for record in Store(folder).read_all()}


def forged(record: Record, **changes: Any) -> Record:
    assert record.accuracy.stop is not None
    stop = replace(record.accuracy.stop, **changes)
    return replace(record, accuracy=replace(record.accuracy, stop=stop))


def test_a_record_says_when_it_stopped_and_a_lie_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = records(tmp_path)
    check_lies(known, monkeypatch)
    check_later_run(tmp_path, known["tome r=6"], monkeypatch)


def check_lies(known: dict[str, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    for record in known.values():
        audit.audit(Record.from_json(record.to_json()))
    assert known["none"].accuracy.stop is None
    stop = known["tome r=6"].accuracy.stop
    assert stop is not None and len(stop.looks) > 1
    (size, half), others = stop.looks[-1], stop.looks[:-1]
    lies: dict[str, dict[str, Any]] = {
        "not the cell's": {"precision": 50.0},
        "its outcomes give": {"looks": [*others, (size, half / 2)]},
        "as many samples as were scored": {"looks": [*others, (size + 1, half)]},
        "up to those asked for": {"asked": size - 1},
        "the cell's limit is": {"asked": LIMIT + 1},
        "more and more": {"looks": [*others[::-1], others[0], (size, half)]},
        "it was narrow enough": {},
        "before it was narrow enough": {},
    }
    for problem, change in lies.items():
        record = known["tome r=6"]
        if problem == "it was narrow enough":  # a look that it went past
            record = replace(record, cell=replace(record.cell, precision=99.0))
            change = {"precision": 99.0}
        elif problem == "before it was narrow enough":
            record = replace(record, cell=replace(record.cell, precision=half / 2))
            change = {"precision": half / 2}
        monkeypatch.setattr(audit, "_key", lambda record: iter(()))
        with pytest.raises(BenchError, match=problem):
            audit.audit(forged(record, **change))
    for reason in (None, "it was enough"):
        silent = replace(known["tome r=6"].accuracy, stop=None, reason=reason)
        with pytest.raises(BenchError, match="nothing tells"):
            audit.audit(replace(known["tome r=6"], accuracy=silent))


def check_later_run(folder: Path, first: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows the unreduced model from its record."""
    for path in folder.rglob("*tome*.json"):
        path.unlink()
    notes: list[str] = []
    score = stopping.score

    def noting(cell: Cell, *rest: Any) -> Any:
        notes.append(cell.label)
        return score(cell, *rest)

    monkeypatch.setattr(stopping, "score", noting)
    assert records(folder)["tome r=6"].accuracy == first.accuracy
    assert notes == ["tome r=6"]
