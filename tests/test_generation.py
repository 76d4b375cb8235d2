"""The cost of an answer, stage by stage."""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vlm_models as tiny
from test_vlm import WAYS

import bench
from bench.measure import generation
from bench.measure.blocks import Limits
from bench.measure.closed_form import check_counters
from bench.measure.conventions import CONVENTIONS, Decoder, prompt_macs
from bench.measure.generation import TIMES, paired_stages, stage_macs


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_stages_add_up_and_a_shorter_cache_is_cheaper_to_read(family: str) -> None:
    make, batch_of = tiny.MODELS[family]
    model, inputs = make(), batch_of(1)
    plain = stage_macs(model, inputs)
    method, given = WAYS["ahead"]
    with bench.reduced(model, method, **given):
        reduced = stage_macs(model, inputs)
        count = bench.count_macs(model, **inputs)
        check_counters(model, bench.trace(model, **inputs), count)
    assert count.total >= reduced.prompt  # the head runs on every position in a plain pass
    assert reduced.macs["vision"] == plain.macs["vision"]
    assert reduced.macs["projector"] == plain.macs["projector"]
    assert reduced.macs["prefill"] < plain.macs["prefill"]
    assert reduced.macs["decode"] < plain.macs["decode"]
    assert reduced.kv_bytes < plain.kv_bytes


def test_a_stage_has_the_macs_of_its_modules() -> None:
    model, inputs = tiny.llava(), tiny.llava_batch(1)
    by_module = bench.count_macs(model, **inputs, logits_to_keep=1).by_module
    language, head = by_module["model.language_model"], by_module["lm_head"]
    assert head > 0
    assert stage_macs(model, inputs).macs | {"decode": 0} == {
        "vision": by_module["model.vision_tower"],
        "projector": by_module["model.multi_modal_projector"],
        "prefill": language + head,
        "decode": 0,
    }


def test_transformers_finds_nothing_out_of_date(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage_macs(tiny.llava(), tiny.llava_batch(1))
    assert not caplog.records


def test_cache_bytes_and_decoding_follow_the_tokens_left() -> None:
    model, inputs = tiny.llava(), tiny.llava_batch(1)
    n = inputs["input_ids"].shape[1]
    a_token = 2 * 2 * 8 * 4  # keys and values, heads, channels, bytes
    plain = stage_macs(model, inputs)
    assert plain.kv_bytes == 6 * n * a_token
    method, _ = WAYS["ahead"]
    with bench.reduced(model, method, keep_rate={"language": 0.5}, layers={"language": [2]}):
        reduced = stage_macs(model, inputs)
    assert reduced.kv_bytes == (2 * n + 4 * (n - 18)) * a_token
    gone = 4 * 18 * 2 * 32  # blocks, tokens, two products, query width
    assert plain.macs["decode"] - reduced.macs["decode"] == gone


def test_times_are_taken_in_pairs_for_every_stage() -> None:
    plain, model = tiny.llava(), tiny.llava()
    method, given = WAYS["ahead"]
    with bench.reduced(model, method, **given):
        pairs = paired_stages(plain, model, tiny.llava_batch(1), new_tokens=4, limits=Limits(8))
    assert tuple(pairs) == TIMES
    for pair in pairs.values():
        assert len(pair.a.samples_ms) == len(pair.b.samples_ms) == 8
        assert min(pair.a.samples_ms) > 0
    total = pairs["end_to_end"].b.samples_ms
    for first, token, all_ in zip(
        pairs["ttft"].b.samples_ms, pairs["decode"].b.samples_ms, total, strict=True
    ):
        assert first + 3 * token <= all_


def test_the_sides_are_the_plain_and_the_reduced_model(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, reduced = torch.nn.Identity(), torch.nn.Identity()
    monkeypatch.setattr(
        generation,
        "timed",
        lambda model, *rest: dict.fromkeys(TIMES, 3.0 if model is plain else 2.0),
    )
    for pair in paired_stages(plain, reduced, {}, new_tokens=2, limits=Limits(8)).values():
        assert set(pair.a.samples_ms) == {3.0} and set(pair.b.samples_ms) == {2.0}
        assert pair.speedup.median == pytest.approx(1.5)


def test_a_stage_is_timed_from_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = {
        "vision": [(1.0, 3.0)],
        "nested": [(2.0, 2.5)],
        "language": [(4.0, 9.0), (10.0, 11.0), (12.0, 13.0)],
        "token": [(4.0, 10.0), (10.0, 12.0), (12.0, 14.0)],
    }
    now = iter([0.5, 20.0])
    monkeypatch.setattr(generation, "_clocks", lambda model: contextlib.nullcontext(ticks))
    monkeypatch.setattr(generation, "_now", lambda: next(now))
    asked: dict[str, Any] = {}
    model = SimpleNamespace(generate=lambda **given: asked.update(given))
    assert generation.timed(model, {"input_ids": 1}, 3) == {
        "vision": 1.5,  # less what is nested in it
        "prefill": 5.0,
        "ttft": 9.5,
        "decode": 2.0,  # the second and the third token
        "end_to_end": 19.5,
    }
    assert asked["min_new_tokens"] == asked["max_new_tokens"] == 3 and not asked["do_sample"]


def test_paper_conventions() -> None:
    llama = Decoder(4096, 11008)
    tokens = [576] * 32
    assert prompt_macs(tokens, llama, "two-product") / 1e12 == pytest.approx(2.986, abs=5e-4)
    assert prompt_macs(tokens, llama, "three-product") / 1e12 == pytest.approx(3.817, abs=5e-4)
    assert set(CONVENTIONS) == {"two-product", "three-product"}


def test_a_cell_records_the_cost_of_an_answer(tmp_path: Any) -> None:
    from bench.measure import profiles
    from bench.records.record import Cell
    from bench.runs.cell import measure
    from bench.runs.session import Session

    tiny.llava().save_pretrained(tmp_path)
    cell = Cell(
        suite="t",
        model=str(tmp_path),
        task="cost",
        method="fastv",
        params={"keep_rate": 0.5, "layers": [2]},
        label="fastv",
        profile="auto",
        batch_sizes=(1,),
        latency_seconds=0.05,
    )
    torch.manual_seed(0)
    found = measure(cell, Session.open(cell, profiles.detect()), None, lambda stage: None)
    cost = found.cost.generation
    assert cost is not None and cost.kv_bytes < cost.baseline_kv_bytes
    assert [stage.name for stage in cost.stages] == list(TIMES)
    assert cost.macs["decode"] < cost.baseline_macs["decode"]
