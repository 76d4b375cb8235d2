"""What ties a record to what made it: sessions, keys, solved budgets, hosts, equal things."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import folders
import pytest
import torch

import bench
from bench import tasks
from bench.core.code import code_of
from bench.engine.families import adapter_for
from bench.measure import blocks, generation, load, machine, profiles
from bench.measure.memory import PeakMemory
from bench.models import catalogue
from bench.models.multimodal import PromptedModel
from bench.records import sources
from bench.records.record import Cell, Cost, Record
from bench.records.store import Store
from bench.runs import (
    budgets,
    cell,
    planning,
    runner,
    seed_average,
    session,
    shape_only,
    solved_budgets,
    spec,
)
from bench.runs import keys as cell_keys
from bench.runs.jobs import Job
from bench.runs.measuring import Measurer
from bench.runs.resources import Resources
from bench.runs.timings import CellTiming


@pytest.fixture(autouse=True)
def no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))


def suite_of(folder: Path, more: str = "", **changes: str) -> tuple[spec.Suite, Any]:
    """The tiny suite of `folders`, in a file below `folder`; changes are of its text."""
    if not (folder / "vit").is_dir():
        folders.vit(folder / "vit"), folders.images(folder / "images")
    text = folders.SUITE.format(vit=folder / "vit", images=folder / "images") + more
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "tiny.yaml"
    file.write_text(text)
    return spec.load(str(file))


def run(folder: Path, more: str = "", **changes: str) -> dict[str, Record]:
    """Records of the suite by label."""
    suite, origin = suite_of(folder, more, **changes)
    summary = runner.run(suite, origin, folder / "results", machine="m", quiet=True)
    assert summary.failed == 0, summary.reasons
    return {record.cell.label: record for record in Store(folder / "results").read_all()}


# --- the model that is measured is the cell's -------------------------------------------------


def test_a_random_cell_is_not_measured_on_weights_that_planning_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights load, data are missing: as of a hub model, planning has to load it to know them."""
    real = catalogue.fingerprint
    monkeypatch.setattr(
        catalogue,
        "fingerprint",
        lambda name, random_weights=False, seed=0: (
            real(name, random_weights=True, seed=seed) if random_weights else None
        ),
    )
    measured: list[bool] = []
    count = cell.count
    monkeypatch.setattr(
        cell,
        "count",
        lambda examples, of: measured.append(of.loaded.random) or count(examples, of),
    )
    records = run(tmp_path, "missing: cost\n", images="nowhere")
    assert measured == [True] * 4
    for record in records.values():
        assert record.cell.random_weights and record.provenance["weights"] == "random"


@pytest.mark.parametrize("change", [{"random_weights": True}, {"seed": 1}, {"dtype": "bfloat16"}])
def test_cells_that_differ_in_their_model_share_no_session(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    suite, _ = suite_of(tmp_path)
    first = planning.plan(suite, "m").cells[0]
    measurer = Measurer(Resources())

    def opened(planned: planning.PlannedCell) -> session.Session:
        return measurer.session(Job(planned), lambda what: None)

    of_first = opened(first)
    assert opened(first) is of_first
    other = dataclasses.replace(first, cell=dataclasses.replace(first.cell, **change))
    assert opened(other) is not of_first


# --- keys -------------------------------------------------------------------------------------


def keys(folder: Path) -> set[str]:
    return {planned.key for planned in planning.plan(suite_of(folder)[0], "m").cells}


@pytest.mark.parametrize("library", sources.LIBRARIES)
def test_another_version_of_a_library_is_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    before = keys(tmp_path)
    versions = {**sources.library_versions(), library: "0.0.1"}
    monkeypatch.setattr(cell_keys, "library_versions", lambda: versions)
    assert not keys(tmp_path) & before


def test_other_measuring_code_is_another_key_and_a_record_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(tmp_path)
    provenance = run(tmp_path)["none"].provenance
    assert provenance["measurement_sha256"] == sources.measurement_hash()
    assert provenance["family_sha256"] == sources.family_hash(provenance["family"])
    for name in ("measurement_hash", "family_hash"):
        with monkeypatch.context() as patch:
            patch.setattr(cell_keys, name, lambda *_: "other")
            assert not keys(tmp_path) & before


def test_a_family_is_measured_by_its_own_files_and_what_they_import() -> None:
    files = {family: set(sources.family_files(family)) for family in sources.FAMILIES}
    every = set(sources.family_files(""))
    assert set().union(*files.values()) == every and all(of != every for of in files.values())
    assert not every & set(sources.measuring_files())
    families = sources.HERE / "engine" / "families"
    assert files["timm"] == {
        families / f"{name}.py" for name in ("attended", "placed", "timm_blocks", "timm_vit")
    }
    assert sources.HERE / "models" / "noise.py" in files["multimodal"]  # which its model imports


SHIPPED = [name for name in catalogue.listing() if re.fullmatch("embedded:[^@]+", name)]


@pytest.mark.parametrize(
    "name", [*SHIPPED, "embedded:clip-emoji@none", "timm:vit_tiny_patch16_224"]
)
def test_the_family_of_a_model_has_the_code_of_its_adapter_towers_and_passes(name: str) -> None:
    loaded = shape_only.on_meta(name, "float32")
    adapter = adapter_for(loaded.model)
    towers = [*adapter.towers(loaded.model).values()]
    passes = [tower.pass_class for tower in towers if hasattr(tower, "pass_class")]
    classes = [type(loaded), type(adapter), *map(type, towers), *passes]
    files = {Path(inspect.getfile(part)) for cls in classes for part in cls.mro()[:-1]}
    apart = files & {*sources.family_files("")}
    assert apart and apart <= {*sources.family_files(catalogue.family_of(name))}


CODE = '''"""A module."""
# a comment


class A:
    """A class."""

    def scale(self, x: int) -> int:
        """A function."""
        return 2 * x  # twice
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# a comment", "# another", True),
        ('"""A module."""\n', "", True),
        ('        """A function."""\n', "", True),
        ("return 2 * x", "return (2 *\n            x)", True),
        ("2 * x", "3 * x", False),
        ("2 * x", "x * 2", False),
        ("x: int", "x: float", False),
        ("scale", "scaled", False),
    ],
)
def test_code_is_hashed_without_what_is_said_about_it(
    tmp_path: Path, old: str, new: str, same: bool
) -> None:
    assert old in CODE
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text(CODE)
    b.write_text(CODE.replace(old, new, 1))
    assert (code_of(a) == code_of(b)) is same


def test_all_that_measures_is_hashed(repo: Path) -> None:
    files_hashed = [*sources.measuring_files(), *sources.family_files("")]
    hashed = {path.relative_to(repo / "bench").as_posix() for path in files_hashed}
    for room in ("core", "engine", "measure", "tasks"):
        files = {
            p.relative_to(repo / "bench").as_posix() for p in repo.glob(f"bench/{room}/**/*.py")
        }
        assert files and files - set(sources.ESTIMATING) <= hashed
    measured_in = sys.modules[cell.measure.__module__], sys.modules[CellTiming.__module__]
    for module in (*measured_in, session, budgets, solved_budgets, seed_average):
        assert f"runs/{Path(str(module.__file__)).name}" in hashed
    for pattern in (*sources.MEASURING, *sources.FAMILY_CODE, *sources.ESTIMATING):
        assert list((repo / "bench").glob(pattern)), f"{pattern} names no file"


def test_a_key_holds_the_machine_and_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, _ = suite_of(tmp_path)
    here, there = ({p.key for p in planning.plan(suite, name).cells} for name in "mn")
    assert len(here) == 4 and not here & there
    suite, _ = suite_of(tmp_path, "random_weights: true\n")
    first = suite.cells()[0]
    two = [dataclasses.replace(first, seed=seed) for seed in (0, 1)]
    monkeypatch.setattr(spec.Suite, "cells", lambda self: two)  # as no suite's file can ask for
    zero, one = planning.plan(suite, "m").cells
    assert zero.provenance["weights_sha256"] != one.provenance["weights_sha256"]


# --- budgets ----------------------------------------------------------------------------------


def solved_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, budget: str, machine_name: str
) -> set[str]:
    """The keys under which answers lie after planning on a machine."""
    monkeypatch.setattr(budgets, "solve", lambda *a, **k: budgets.Solved({"r": 8}, 50.0))
    file = folder / "budgets.json"
    suite, _ = suite_of(folder, **{"r: [4, 8]": f"budget: {budget}"})
    planning.plan(suite, machine_name, file)
    return set(json.loads(file.read_text()))


@pytest.mark.parametrize(("budget", "shared"), [("50% latency", False), ("50% gmacs", True)])
def test_a_solved_latency_is_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str, shared: bool
) -> None:
    here = solved_keys(tmp_path, monkeypatch, budget, "here")
    assert solved_keys(tmp_path, monkeypatch, budget, "here") == here
    there = solved_keys(tmp_path, monkeypatch, budget, "there")
    assert (there == here) is shared
    monkeypatch.setattr(machine, "hardware", lambda: "other")  # under the same name
    assert (solved_keys(tmp_path, monkeypatch, budget, "here") == there) is shared
    monkeypatch.setattr(solved_budgets, "measurement_hash", lambda: "other")
    assert solved_keys(tmp_path, monkeypatch, budget, "here") > there


def test_an_adaptive_method_meets_its_budget_on_the_images_of_the_task(tmp_path: Path) -> None:
    suite = spec.parse(
        {
            "name": "seen",
            "models": [{"name": "embedded:vit-fashion", "tasks": ["fashion-mnist"]}],
            "methods": [{"name": "ats", "budget": ["45% gmacs", "75% gmacs"]}],
            "limit": 24,
        },
        spec.Options(),
    )
    plan = planning.plan(suite, "m", tmp_path / "budgets.json")
    loaded, params = catalogue.load("embedded:vit-fashion"), plan.cells[1].cell.params
    task: Any = tasks.load("fashion-mnist")
    index = tasks.base.subset(len(task), 24)
    ((images, _),) = task.prepared.batches(loaded, index, 24)
    full = bench.count_macs(loaded.model, images[:1]).total
    with bench.reduced(loaded.model, "ats", **params):
        shares = [bench.count_macs(loaded.model, x).total / full for x in images.split(1)]
    assert 100 * sum(shares) / len(shares) == pytest.approx(45, abs=1.5)
    refused = plan.cells[2].refused  # all samples of a layer are no more tokens than that
    assert refused is not None and "ats has nothing near 75 % of the gmacs" in refused


# --- hosts ------------------------------------------------------------------------------------


def test_two_hosts_of_one_name_have_two_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> str:
        machine.fingerprint.cache_clear(), machine.hardware.cache_clear()
        return machine.fingerprint()

    here = now()
    assert here == now() and len(here) == 12
    with monkeypatch.context() as other:
        other.setattr(machine.platform, "node", lambda: "another-host")
        assert now() != here
    with monkeypatch.context() as other:
        other.setattr(machine, "total_memory", lambda: 7 << 30)
        assert now() != here
    assert now() == here
    host = machine.environment("m", "cpu", 2)
    assert host["fingerprint"] == here and host["memory_gib"] > 0
    assert machine.platform.node() not in json.dumps(host)


# --- timings ----------------------------------------------------------------------------------


def test_a_record_holds_the_timing_of_equal_things(tmp_path: Path) -> None:
    records = run(tmp_path)
    (alone,) = records["none"].cost.latency
    (timing,) = records["tome r=8"].cost.latency
    assert timing.equal == alone.equal == alone.speedup
    assert timing.speedup != alone.speedup and len(timing.speedup.blocks) == 4
    assert len(timing.samples_ms) == len(timing.baseline_samples_ms) >= 16
    for path in (tmp_path / "results").rglob("*tome*.json"):
        path.unlink()
    (again,) = run(tmp_path)["tome r=8"].cost.latency  # in another run the record tells it
    assert again.equal == alone.speedup


def test_the_baseline_of_a_cell_is_compared_with_the_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: list[float | None] = []
    begun = CellTiming._pass_blocks

    def noted(self: CellTiming, *arguments: Any) -> Any:
        blocks = begun(self, *arguments)
        usual.append(blocks.usual_ms)
        return blocks

    monkeypatch.setattr(CellTiming, "_pass_blocks", noted)
    records = run(tmp_path)
    medians = [
        sorted(records[label].cost.latency[0].baseline_samples_ms)
        for label in ("none", "tome r=4", "tome r=8")
    ]
    least = [torch.tensor(ms).quantile(0.5).item() for ms in medians]
    own = [ms for ms in usual if ms is not None]
    assert usual[0] is None
    assert own[0] == pytest.approx(least[0], abs=1e-3)
    assert min(own) == pytest.approx(min(least), abs=1e-3)


def test_answers_are_timed_without_garbage_collection_and_warmed_up_as_the_profile_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import vlm_models

    calls: list[bool] = []

    def timed(model: Any, inputs: Any, new_tokens: int) -> dict[str, float]:
        calls.append(gc.isenabled())
        return dict.fromkeys(generation.TIMES, 2.0 if model is loaded.model else 3.0)

    monkeypatch.setattr(generation, "timed", timed)
    profile = dataclasses.replace(profiles.get("cpu"), warmup=5, batch_sizes=())
    model = vlm_models.llava()
    loaded = PromptedModel("llava", model, (8, 8))
    one = Cell("s", "llava", "cost", "none", {}, "none", "cpu", latency_seconds=0.8)
    of = session.Session(loaded, profile, "float32", "sdpa")
    timing = CellTiming(one, of, lambda batch: {}, lambda stage: None)
    gc.enable()
    timing.round()
    assert calls[:18] == [False] * 18 and len(calls) >= 2 * 5 + 2 * 4
    assert gc.isenabled()
    for _ in range(3):
        timing.round()
    answer, notes = timing.generation()
    assert not notes
    assert answer is not None and [stage.name for stage in answer.stages] == [*generation.TIMES]
    for stage in answer.stages:
        assert stage.speedup.median == pytest.approx(1.5) and stage.p50_ms == 2.0
        assert set(stage.samples_ms) == {2.0} and set(stage.baseline_samples_ms) == {3.0}
    assert not answer.disturbed and answer.attempts == 1 and answer.new_tokens == 16
    assert of.usual_ms == {"answers": 3.0}
    again = CellTiming(one, of, lambda batch: {}, lambda stage: None)
    again.round()
    assert again._answers is not None
    blocks = again._answers._blocks[1]
    assert blocks.usual_ms == 3.0 and blocks.lead == generation.ANSWER


def small_session(**profile: Any) -> session.Session:
    """A session of the embedded ViT on one thread."""
    changed = dataclasses.replace(profiles.get("cpu-1-thread"), **profile)
    return session.Session(catalogue.load("embedded:vit-fashion"), changed, "float32", "sdpa")


def timing_of(of: session.Session, *, rounds: int = 4, **changes: Any) -> CellTiming:
    """Some rounds of a cell's timing, at batch 1 and 3."""
    fields = {"batch_sizes": (1, 3), "latency_seconds": 0.01, **changes}
    one = Cell("s", "embedded:vit-fashion", "cost", "none", {}, "none", "cpu-1-thread", **fields)
    timing = CellTiming(one, of, of.loaded.example_inputs, lambda stage: None)
    for _ in range(rounds):
        timing.round()
    return timing


def test_the_fastest_backend_is_the_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    of = small_session()
    seconds = {id(of.plain): 3.0}
    monkeypatch.setattr(session, "_seconds", lambda one, inputs: seconds.get(id(one.model), 2.0))
    fastest = of.fastest(1)
    rival = fastest.model
    assert fastest.backend == "eager" and rival is not of.plain
    times = {id(of.plain): 30.0, id(rival): 20.0, id(of.loaded.model): 10.0}
    monkeypatch.setattr(of, "_fastest", {1: fastest, 3: fastest})
    ran: list[int] = []
    for model in (of.plain, rival, of.loaded.model):
        model.register_forward_hook(lambda module, *_: ran.append(id(module)))

    def time_ms(run: Any, device: Any) -> float:
        run()
        return times[ran[-1]]

    monkeypatch.setattr("bench.measure.latency._time_ms", time_ms)
    for timing in timing_of(of).latencies(1):
        assert timing.speedup.median == pytest.approx(3) and timing.speedup.backend == "sdpa"
        versus = timing.speedup_vs_fastest
        assert versus is not None and versus.backend == "eager"
        assert versus.median == pytest.approx(2)


def test_a_disturbed_timing_is_marked_and_is_nobodys_usual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = small_session()
    monkeypatch.setattr(blocks, "PAUSES_S", ())
    monkeypatch.setattr(load, "disturbance", lambda *arguments: "it rained")
    for timing in timing_of(of).latencies(1):
        assert timing.disturbed and timing.disturbance == "it rained"
    assert of.usual_ms == {}
    monkeypatch.setattr(load, "disturbance", lambda *arguments: None)
    for timing in timing_of(of).latencies(1):
        assert not timing.disturbed and timing.disturbance is None
    assert set(of.usual_ms) == {"1", "3"}


def test_equal_things_are_those_of_the_same_batch_size() -> None:
    of = small_session()
    alone = timing_of(of, baseline=True).latencies(1)
    assert [timing.equal for timing in alone] == [timing.speedup for timing in alone]
    for timing, equal in zip(timing_of(of).latencies(1), alone, strict=True):
        assert timing.equal == equal.speedup != timing.speedup


def test_utilisation_is_of_the_whole_batch() -> None:
    sheet = profiles.Sheet({"float32": 0.5}, 1, "a test", "", 1)
    for timing in timing_of(small_session(sheet=sheet)).latencies(10**6):
        share = 2e6 * timing.batch / (timing.p50_ms * 1e-3) / 0.5e12
        assert timing.utilisation == pytest.approx(share)


def test_the_usual_time_is_the_least() -> None:
    of = small_session()
    for ms in (3.0, 2.0, None, 4.0):
        of.note_baseline("1", ms)
    assert of.usual_ms == {"1": 2.0}


def test_an_earlier_run_tells_its_undisturbed_baseline() -> None:
    of = small_session()
    one, three = timing_of(of).latencies(1)
    samples = [9.0, 7.0, 8.0]
    of.usual_ms.clear()
    quiet = dataclasses.replace(one, baseline_samples_ms=samples)
    of.recall(Cost(latency=[quiet, dataclasses.replace(three, disturbed=True)]))
    assert of.usual_ms == {"1": 8.0}
    assert of.equal == {1: one.speedup, 3: three.speedup}


def test_the_baselines_memory_is_measured_without_the_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, asked = small_session(), []
    monkeypatch.setattr(of, "memory", lambda cell, batch: asked.append((cell, batch)))
    one = Cell("s", "embedded:vit-fashion", "cost", "tome", {"r": 8}, "tome r=8", "cpu-1-thread")
    of.baseline_memory(one, 3), of.baseline_memory(one, 3)
    ((plain, batch),) = asked  # once a batch size
    assert (plain.method, plain.params, plain.baseline, batch) == ("none", {}, True, 3)
