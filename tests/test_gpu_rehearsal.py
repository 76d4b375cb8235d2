"""`make gpu` is rehearsed on a GPU that is pretended, so that the first real one finds no slip.

The suite of `make gpu`, on small models, and the tests in `tests/gpu` run in this process, with the
CPU's tensors and clocks: see `pretended_gpu`. Afterwards every line of `bench/` that speaks of CUDA
must have run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folders
import pytest
import torch
import vlm_models
import yaml
from cuda_lines import ROOT, Lines, speaking
from pretended_gpu import FREE, HELD, NAME, PEAK, Gpu, NotReady, pretended

from bench.cli import main
from bench.core.errors import BenchError
from bench.measure import generation, latency, machine, profiles
from bench.records.record import Record
from bench.records.store import Store
from bench.runs import lmms, measuring
from bench.training import loop, losses

SUITE = ROOT / "bench" / "assets" / "suites" / "cost-gpu.yaml"
FEWER = {"batch_sizes": [1], "latency_seconds": 0.01, "description": "the rehearsal"}
ON_BOTH = ("none", "tome")  # the other methods run on one of the two models
# Who hands jobs to several GPUs is tested with pretended devices: test_executors, test_cluster.
HANDING_OUT = ROOT / "bench" / "runs" / "executors"
RECHECKING = ROOT / "bench" / "runs" / "recheck.py"  # see test_recheck
STATEMENTS = speaking(
    p for p in ROOT.glob("bench/**/*.py") if HANDING_OUT not in p.parents and p != RECHECKING
)


@dataclass
class Rehearsal:
    """What came of it."""

    records: list[Record]
    gpu: Gpu
    lines: Lines


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """The suite of `make gpu`, and what it leaves out that has lines for CUDA."""
    folder = tmp_path_factory.mktemp("gpu")
    file, lines = suite(folder), Lines({one.file for one in STATEMENTS})
    with pretended() as gpu, lines.noted(), pytest.MonkeyPatch.context() as patch:
        quick = replace(profiles.get("h200"), warmup=1, repeats=16)
        patch.setitem(profiles._profiles(), "h200", quick)
        records = run_suite(file, folder / "results")
        beside(folder)
    yield Rehearsal(records, gpu, lines)


def suite(folder: Path) -> Path:
    """The suite of `make gpu` on two small models, of each method its first budget."""
    written = yaml.safe_load(SUITE.read_text())
    models = [str(folders.timm_vit(folder / "timm")), str(folders.clip(folder / "clip"))]
    methods = [_first(entry, models) for entry in written["methods"]]
    fewer = {**written, **FEWER, "methods": methods, "models": models}
    file = folder / "cost-gpu.yaml"
    file.write_text(yaml.safe_dump(fewer))
    return file


def _first(entry: Any, models: list[str]) -> Any:
    if isinstance(entry, str):
        return entry
    first = {key: value[0] if isinstance(value, list) else value for key, value in entry.items()}
    return first if first["name"] in ON_BOTH else {**first, "models": models[:1]}


def run_suite(file: Path, results: Path) -> list[Record]:
    """`run_bench.py run --suite FILE`; returns the records."""
    arguments = ["run_bench.py", "run", "--suite", str(file), "--results", str(results)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", arguments)
        main()
    assert not ended.value.code
    return Store(results).read_all()


def beside(folder: Path) -> None:
    """What has lines for CUDA and is not in the suite: answers, training, lmms-eval, profiles."""
    model, prompt = vlm_models.llava(blocks=2), vlm_models.llava_batch(1)
    times = generation.timed(model, prompt, 2)
    assert min(times.values()) > 0 and "synchronised" in generation.clock()
    loop.Settings(folder / "out", device="cuda").begun()
    said = SimpleNamespace(loss=torch.zeros(()))
    reader: Any = SimpleNamespace(
        device=torch.device("cuda"),
        model=lambda: said,
        placed=dict,
        require_processor=lambda: None,
        teach=lambda *shown: {},
    )
    batch: Any = SimpleNamespace(pictures=[], texts=[], answers=[])
    assert losses.answers(reader)(batch) is said.loss
    model.save_pretrained(folder / "llava")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(lmms.tensors, "from_pretrained", _interrupted)  # where to is known by then
        lmms.Bridge(str(folder / "llava"))
    assert machine.free_memory("cuda") == FREE
    assert measuring._out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))[0] == "oom"
    assert profiles.load("h200").sheet == profiles.get("h200").sheet
    with pytest.raises(BenchError, match="NVIDIA H200"):
        profiles.load("t4")


def _interrupted(*_: Any, **__: Any) -> None:
    raise InterruptedError


def test_the_suite_leaves_a_record_of_each_cell(rehearsal: Rehearsal) -> None:
    written = yaml.safe_load(SUITE.read_text())
    wanted = (len(written["methods"]) + len(ON_BOTH)) * len(written["dtypes"])
    done = [record for record in rehearsal.records if record.status == "ok"]
    assert len(done) == wanted, [record.reason for record in rehearsal.records]


def test_records_say_what_the_gpu_said(rehearsal: Rehearsal) -> None:
    for record in rehearsal.records:
        memory, timings = record.cost.memory, record.cost.latency
        assert record.env["gpu"] == NAME and record.cell.profile == "h200"
        assert memory is not None and memory.how == "peak of the CUDA allocator"
        assert (memory.weights_bytes, memory.peak_bytes) == (HELD, PEAK)
        assert [timing.device for timing in timings] == ["cuda"] * len(FEWER["batch_sizes"])  # type: ignore[arg-type]
        assert all(timing.utilisation for timing in timings)


def test_merged_tokens_stay_on_the_flash_kernel(rehearsal: Rehearsal) -> None:
    paths = {
        record.cell.label: {timing.attention_path for timing in record.cost.latency}
        for record in rehearsal.records
        if record.cell.method in ("tome", "topk") and "clip" not in record.cell.model
    }
    assert set().union(*paths.values()) == {"channel", "plain"}, paths


def test_every_line_that_speaks_of_cuda_ran(rehearsal: Rehearsal) -> None:
    assert len(STATEMENTS) > 40
    assert not rehearsal.lines.missing(STATEMENTS)


def test_every_call_of_cuda_was_made(rehearsal: Rehearsal) -> None:
    calls = set(rehearsal.gpu.calls)
    assert calls >= {
        "Event", "synchronize", "current_stream", "empty_cache", "mem_get_info",
        "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats",
        "get_device_name", "get_device_properties",
    }  # fmt: skip


# --- the rehearsal itself can fail ----------------------------------------------------------------


def test_an_event_that_nobody_waited_for_cannot_be_read() -> None:
    with pretended():
        begin, end = latency._event(), latency._event()
        begin.record()
        end.record()
        with pytest.raises(NotReady):
            begin.elapsed_time(end)
        torch.cuda.synchronize()
        assert begin.elapsed_time(end) >= 0


def test_a_misspelt_argument_or_name_fails() -> None:
    with pretended():
        with pytest.raises(TypeError):
            torch.cuda.synchronize(devices="cuda")  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            torch.cuda.Event(enable_time=True)
        with pytest.raises((RuntimeError, AssertionError)):
            torch.cuda.reset_accumulated_memory_stats()  # not replaced: there is no driver


def test_a_line_that_did_not_run_is_named(tmp_path: Path) -> None:
    lines = Lines({one.file for one in STATEMENTS})
    with lines.noted():
        assert latency.clock_of("cpu") == "perf_counter"
    missing = lines.missing(STATEMENTS)
    assert 40 < len(missing) < len(STATEMENTS)
    assert any(line.startswith("bench/measure/memory.py:") for line in missing)


# --- tests/gpu, and the target itself -------------------------------------------------------------


class Smaller:
    """Runs `tests/gpu` with images of fewer patches."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Tell the collected module before any of its tests run."""
        for module in {item.module for item in items}:
            module.SIDE, module.BATCH, module.AGREE = 64, 1, 0.8
            module.engaged = lambda model, engine, inputs: model  # code for a GPU needs one


def test_the_tests_for_a_gpu_run(tmp_path: Path) -> None:
    arguments = [
        str(ROOT / "tests" / "gpu"),
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tmp_path}",
    ]
    with pretended() as gpu:
        ended = pytest.main(arguments, plugins=[Smaller()])
    assert ended == pytest.ExitCode.OK
    assert gpu.calls["Event"]


STUB = """#!/bin/sh
case "$1" in -c) exec {python} "$@" ;; esac
echo "$@" >> {log}
"""


@pytest.mark.parametrize("reached", [True, False], ids=["GPU", "no GPU"])
def test_the_target_goes_its_way(tmp_path: Path, reached: bool) -> None:
    log, stub = tmp_path / "log", tmp_path / "bin" / "python3"
    (tmp_path / "torch.py").write_text(f"class cuda:\n    is_available = lambda: {reached}\n")
    stub.parent.mkdir()
    stub.write_text(STUB.format(python=sys.executable, log=log))
    stub.chmod(0o755)
    path = f"{stub.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "gpu", f"VENV={tmp_path}"],
        cwd=ROOT, env={**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if reached:
        ran = log.read_text().splitlines()
        assert ran == ["-m pytest -q tests/gpu", "run_bench.py run --suite cost-gpu"]
    else:
        assert "skipped" in done.stdout and not log.exists()
