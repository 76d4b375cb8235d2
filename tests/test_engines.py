"""Engines: compiled passes say what eager ones say; cells and tables keep them apart."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from bench.core.errors import BenchError, Unsupported
from bench.measure import engines, profiles
from bench.records.record import EAGER, Cell
from bench.report.data import rows
from bench.runs import options, session
from bench.runs.timings import CellTiming


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    engines.forget()
    yield
    engines.forget()


@pytest.fixture
def comparing(repo: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    monkeypatch.delitem(__import__("sys").modules, "engines", raising=False)
    return importlib.import_module("engines")


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("timm", "tome"),
        ("timm", "crossget"),
        ("eva", "tome"),
        ("beit", "random"),
        ("dinov2", "evit"),
        ("siglip", "random"),
    ],
)
def test_code_of_a_pass_says_what_the_eager_pass_says(
    comparing: ModuleType, family: str, method: str
) -> None:
    """`benchmarks/engines.py` tries all of them, which takes minutes."""
    assert comparing.difference(family, method) <= comparing.TOLERANCE


def test_a_pass_that_is_no_one_graph_is_refused() -> None:
    class Waits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum().item() > 0 else x

    with pytest.raises(Unsupported, match="engine 'compile' cannot make one graph of it"):
        engines.engaged(Waits(), "compile", {"x": torch.ones(2)})


def test_compiled_code_is_not_compiled_again() -> None:
    run = engines.engaged(nn.Linear(3, 3), "compile", {"input": torch.ones(2, 3)})
    with engines.settled("compile"):
        run(input=torch.ones(2, 3))
        with pytest.raises(RuntimeError, match="recompile"):
            run(input=torch.ones(5, 3))


def test_what_an_engine_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="needs a CUDA device, not cpu: use --engine compile"):
        engines.require("graphs", "cpu")
    engines.require("graphs", "cuda")
    engines.require(EAGER, "cpu")
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    with pytest.raises(BenchError, match="needs a C\\+\\+ compiler"):
        engines.require("compile", "cpu")


def small_cell(**changes: Any) -> Cell:
    fields = {"batch_sizes": (1,), "latency_seconds": 0.01, "engine": "compile", **changes}
    return Cell("s", "embedded:vit-fashion", "cost", "tome", {}, "tome", "cpu-1-thread", **fields)


def test_both_sides_of_a_timing_run_under_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[tuple[nn.Module, str]] = []

    def noted(model: nn.Module, engine: str, inputs: Any) -> Any:
        began.append((model, engine))
        return model

    for module in ("bench.runs.timings", "bench.runs.session"):
        monkeypatch.setattr(f"{module}.engaged", noted)
    one, stages = small_cell(), []
    of = session.Session.open(one, profiles.get("cpu-1-thread"))
    timing = CellTiming(one, of, of.loaded.example_inputs, stages.append)
    for _ in range(timing.rounds):
        timing.round()
    assert began[:2] == [(of.plain, "compile"), (of.loaded.model, "compile")]
    assert {engine for _, engine in began[2:]} == {"compile", EAGER}  # who is fastest?
    (latency,) = timing.latencies(1)
    assert latency.engine == latency.speedup.engine == "compile"
    assert latency.speedup_vs_fastest is not None
    assert latency.speedup_vs_fastest.engine == of.fastest(1).engine
    assert latency.reduction_share is None
    assert "compile, batch 1" in stages
    assert rows.condition(latency) == "cpu · float32 · sdpa, compile · 1 thread"


def test_engines_are_cells_and_sessions_of_their_own() -> None:
    chosen = {"model": ["embedded:vit-fashion"], "method": ["tome"], "r": ["8"]}
    suite, _ = options.suite({**chosen, "engine": ["eager", "compile"]})
    assert [cell.engine for cell in suite.cells()] == [EAGER, EAGER, "compile", "compile"]
    assert [cell.engine for cell in options.suite(chosen)[0].cells()] == [EAGER, EAGER]
    profile = profiles.get("cpu-1-thread")
    keys = {session.Session.key(small_cell(engine=e), profile) for e in (EAGER, "compile")}
    assert len(keys) == 2


def test_answers_of_a_language_model_are_timed_eagerly() -> None:
    one = dataclasses.replace(small_cell(), model="embedded:llava-emoji")
    with pytest.raises(Unsupported, match="engine 'compile' times encoders"):
        session.Session.open(one, profiles.get("cpu-1-thread"))
