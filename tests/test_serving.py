"""Answers in batches of unequal prompts: how they are made, timed and shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import vlm_models as tiny
from test_report_rows import ANSWER, STAGES, base, record

import bench
from bench.engine.families.t5 import padding_side
from bench.measure import profiles
from bench.measure.blocks import Limits
from bench.measure.generation import filled_share
from bench.models.noise import noise, unequal
from bench.records.record import Cell, Served
from bench.report.data import frame
from bench.report.tables.serving import serving_table
from bench.runs import answers, spec
from bench.runs.answers import AnswerTiming
from bench.runs.session import Session, apply

CELL = Cell(
    suite="t", model="embedded:llava-emoji", task="cost", method="prumerge",
    params={"keep_rate": 0.5}, label="prumerge", profile="auto", answer_batches=(3, 1),
    latency_seconds=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(CELL, profiles.detect())


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_prompts_lose_unequally_many_words_and_no_image(family: str) -> None:
    model = tiny.MODELS[family][0]()
    inputs = noise(model, 4, words=9)
    batch = unequal(model, inputs)
    lengths = batch["attention_mask"].sum(1).tolist()
    most = inputs["input_ids"].shape[1]
    behind = 9 if family.startswith("BLIP-2") else 8
    assert lengths == [most - behind * i // 4 for i in range(4)]
    for row, mask, whole in zip(
        batch["input_ids"], batch["attention_mask"], inputs["input_ids"], strict=True
    ):
        assert torch.equal(row[mask > 0], whole[: int(mask.sum())])
        first = 0 if padding_side(model) == "right" else -1
        assert mask[first] == 1
    assert (batch["input_ids"] == tiny.IMAGE).sum(1).unique().numel() == 1
    assert batch["pixel_values"] is inputs["pixel_values"]
    assert model.generate(**batch, max_new_tokens=2).shape[0] == 4


def test_empty_slots_are_those_that_padding_and_removal_leave() -> None:
    model = tiny.llava()
    batch = unequal(model, noise(model, 2, words=9))  # 45 slots, 4 of the second sample's empty
    assert filled_share(model, batch) == pytest.approx(86 / 90)
    with bench.reduced(model, "random", keep_rate={"language": 0.5}, layers={"language": [2]}):
        share = filled_share(model, batch)
    # three blocks of six see all tokens, three 18 fewer of each sample
    assert share == pytest.approx((3 * 86 + 3 * 50) / (3 * 90 + 3 * 54))
    ragged = tiny.qwen_batch(4)
    qwen = tiny.qwen2_vl()
    with bench.reduced(qwen, "random", keep_rate={"projector": 0.25}):
        share = filled_share(qwen, ragged)
    lengths = ragged["attention_mask"].sum(1) - (ragged["input_ids"] == tiny.IMAGE).sum(1)
    lengths += torch.tensor([3, 2, 2, 4])  # of 9, 8, 6 and 16 groups
    assert share == pytest.approx(float(lengths.sum() / (4 * lengths.max())))


def test_answers_in_batches_stand_beside_one_prompts(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[bool, int]] = []

    def timed(model: Any, inputs: Any, new: int) -> dict[str, float]:
        batch = len(inputs["input_ids"])
        calls.append((model is session.plain, batch))
        ms = batch * (8.0 if model is session.plain else 2.0)
        return {"vision": ms, "prefill": ms, "ttft": ms, "decode": ms, "end_to_end": 4 * ms}

    monkeypatch.setattr("bench.measure.generation.timed", timed)
    with apply(session.loaded, CELL):
        inputs = session.loaded.example_inputs
        timing = AnswerTiming(CELL, session, inputs, Limits(8), lambda stage: None)
        for _ in range(4):
            timing.round()
        cost, notes = timing.generation()
    assert notes == [] and {batch for _, batch in calls} == {1, 3}
    (served,) = cost.served
    assert served.batch == 3 and [stage.name for stage in served.stages] == [
        "ttft", "decode", "end_to_end",
    ]  # fmt: skip
    for stage, one in zip(served.stages, cost.stages[2:], strict=True):
        assert stage.speedup.median == one.speedup.median == 4.0
        assert set(stage.samples_ms) == {3 * one.p50_ms}
        assert set(stage.baseline_samples_ms) == {12 * one.p50_ms}
    assert served.filled and served.baseline_filled and 0 < served.baseline_filled < 1


def test_a_batch_that_does_not_fit_is_left_out_with_a_note(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(model: Any, inputs: Any, new: int) -> dict[str, float]:
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return dict.fromkeys(("vision", "prefill", "ttft", "decode", "end_to_end"), 1.0)

    monkeypatch.setattr("bench.measure.generation.timed", timed)
    with apply(session.loaded, CELL):
        inputs = session.loaded.example_inputs
        timing = AnswerTiming(CELL, session, inputs, Limits(8), lambda stage: None)
        for _ in range(4):
            timing.round()
        cost, notes = timing.generation()
    assert cost.served == [] and cost.stages
    assert notes == ["answers to 3 prompts at once need more memory: left out"]


def test_suites_and_options_name_batches_of_answers() -> None:
    data = {"name": "s", "models": ["m"], "methods": ["none"], "answer_batches": [1, 8]}
    assert spec.parse(data, spec.Options()).cells()[0].answer_batches == (1, 8)
    assert answers.NEW_TOKENS > 1


def served(speed: float, filled: float) -> list[Served]:
    speedup = replace(STAGES[0].speedup, median=speed, ci95=(speed, speed))
    stages = [replace(stage, p50_ms=40.0, speedup=speedup) for stage in STAGES[2:]]
    return [Served(8, stages, filled, 0.9)]


def test_a_table_says_where_unequal_lengths_undo_a_gain() -> None:
    def table(speed: float, filled: float) -> Any:
        cost = replace(ANSWER, served=served(speed, filled))
        frames = frame.build([base(), record(generation=cost)])
        return serving_table(frames, frames.groups()[0])

    rows = [row for row in table(1.2, 0.5).rows if row["batch"] == 8]
    assert rows[0]["tokens_per_s"] == 8 * 8 / 0.04
    assert rows[0]["prompts_per_gib"] == 204  # of 5 MiB
    assert rows[0]["empty_percent"] == 50
    undone = "of 8 prompts 50 % of the slots are empty (unreduced 10 %), and its speed-up falls"
    assert undone in table(1.2, 0.5).caption
    assert "falls" not in table(1.2, 0.88).caption  # not emptier than the unreduced model's
    assert "falls" not in table(2.3, 0.5).caption  # as fast as one prompt
    alone = frame.build([base(), record()])
    assert serving_table(alone, alone.groups()[0]) is None
