"""Contributed records: honest ones are ranked, tampered ones refused, and a few measured again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW
from test_page import Visit, browser, embedded
from test_report import synthetic, write

from bench.core.errors import BenchError
from bench.measure import profiles
from bench.records import audit, record
from bench.records.cell_keys import HASHED, key_from
from bench.records.outcomes import sample_scores
from bench.records.record import Accuracy, Generation, Metric, Record, Served, Speedup, Stage
from bench.records.sources import LIBRARIES, family_hash, measurement_hash
from bench.records.store import Store
from bench.report.leaderboard import site

__all__ = ["browser"]  # a fixture
SCRIPT = "<script>stolen()</script>"


def scored(accuracy: Accuracy) -> Accuracy:
    """Metrics as a task takes them from these outcomes."""
    metrics = {}
    for name, old in accuracy.metrics.items():
        hits = sample_scores(name, accuracy.outcomes)
        assert hits is not None
        n, low_high = len(hits), proportion_confint(int(hits.sum()), len(hits), method="wilson")
        ends = (100 * float(low_high[0]), 100 * float(low_high[1]))
        metrics[name] = Metric(100 * float(hits.mean()), old.unit, ends, n)
    return replace(accuracy, metrics=metrics)


def keyed(one: Record) -> Record:
    """The record with the key that its contents give."""
    key = key_from(
        one.cell,
        libraries={name: str(one.env.get(name)) for name in LIBRARIES},
        machine=one.env["machine"],
        profile=one.provenance["profile"],
        threads=one.env["threads"],
        provenance={k: v for k, v in one.provenance.items() if k in HASHED},
    )
    return replace(one, key=key)


def honest(one: Record) -> Record:
    """A synthetic record that says what follows from its own contents."""
    latency = []
    for timing in one.cost.latency:
        p50, p95, p99 = (float(np.percentile(timing.samples_ms, p)) for p in (50, 95, 99))
        rate = 1e3 * timing.batch / p50
        latency.append(replace(timing, p50_ms=p50, p95_ms=p95, p99_ms=p99, throughput_per_s=rate))
    profile = json.loads(json.dumps(asdict(profiles.get("cpu"))))
    hashes = {"measurement_sha256": measurement_hash(), "task_version": "1"}
    hashes |= {"family": "timm", "family_sha256": family_hash("timm")}
    return keyed(
        replace(
            one,
            accuracy=scored(one.accuracy),
            cost=replace(one.cost, latency=latency),
            provenance=one.provenance | hashes | {"profile": profile},
            env=one.env | dict.fromkeys(LIBRARIES, "2.0"),
        )
    )


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [honest(one) for one in synthetic()]


# --- the audit -----------------------------------------------------------------------------------


def test_honest_records_pass(records: list[Record], tmp_path: Path) -> None:
    assert len(audit.audit_all(write(records, tmp_path))) == len(records)
    assert all(audit.unchecked(one) == [] for one in records)


def test_committed_records_pass(repo: Path) -> None:
    passed = audit.audit_all(repo / "results")
    assert len(passed) > 150
    answers = next(one for path, one in passed.items() if "vlm" in path.parts)
    assert "accuracy_many" in str(audit.unchecked(answers))  # which question was of which kind


def top1(one: Record, **changes: Any) -> Record:
    metrics = dict(one.accuracy.metrics)
    metrics["top1"] = replace(metrics["top1"], **changes)
    return replace(one, accuracy=replace(one.accuracy, metrics=metrics))


def flipped(one: Record) -> Record:
    outcomes = {**one.accuracy.outcomes, "correct": [1] * 400}
    return replace(one, accuracy=replace(one.accuracy, outcomes=outcomes))


def cell(**changes: Any) -> Callable[[Record], Record]:
    return lambda one: replace(one, cell=replace(one.cell, **changes))


def env(**changes: Any) -> Callable[[Record], Record]:
    return lambda one: replace(one, env=one.env | changes)


def macs(**changes: Any) -> Callable[[Record], Record]:
    def change(one: Record) -> Record:
        assert one.cost.macs is not None
        return replace(one, cost=replace(one.cost, macs=replace(one.cost.macs, **changes)))

    return change


def timing(**changes: Any) -> Callable[[Record], Record]:
    def change(one: Record) -> Record:
        first, *rest = one.cost.latency
        speedup = {k: changes[k] for k in ("median", "ci95", "blocks") if k in changes}
        others = {k: v for k, v in changes.items() if k not in speedup}
        first = replace(first, speedup=replace(first.speedup, **speedup), **others)
        return replace(one, cost=replace(one.cost, latency=[first, *rest]))

    return change


TAMPERED: dict[str, tuple[Callable[[Record], Record], str]] = {
    "accuracy": (lambda one: top1(one, value=99.0, ci95=(98.0, 99.5)), r"top1\.value': 99, its"),
    "narrower": (lambda one: top1(one, ci95=(80.0, 86.0)), r"top1\.ci95'"),
    "no interval": (lambda one: top1(one, ci95=None), r"top1\.ci95': none, its outcomes give \["),
    "more samples": (lambda one: top1(one, n=4000), r"top1\.n': 4000, its outcomes are 400"),
    "outcomes": (flipped, r"top1\.value'"),
    "no outcomes": (
        lambda one: replace(one, accuracy=replace(one.accuracy, outcomes={})), "no outcomes that"
    ),
    "words": (
        lambda one: replace(one, accuracy=replace(one.accuracy, outcomes={"correct": ["x"]})),
        "are no numbers",
    ),
    "another seed": (
        lambda one: replace(one, accuracy=replace(one.accuracy, seed_values=[99.0])), "seed_values"
    ),
    "setting": (cell(params={"r": 7}, label="tome r=7"), "'key': its contents give"),
    "weights": (
        lambda one: replace(one, provenance=one.provenance | {"weights_sha256": "cd" * 32}),
        "'key': its contents give",
    ),
    "versions": (env(torch="9.9"), "'key': its contents give"),
    "no hash": (lambda one: replace(one, key="../" * 21 + "x"), "'key': '.*' is no sha256"),
    "closed form": (macs(closed_form=1), "closed_form': 1, the operators say"),
    "parts": (macs(by_op={"mm": 5}), "by_op': the parts do not add up"),
    "reduction": (macs(reduction=10**12), r"cost\.macs': a count below 0, or a part beyond"),
    "speed-up": (timing(median=9.0, ci95=(8.0, 10.0)), r"median': 9, the samples give"),
    "interval": (timing(ci95=(8.0, 9.0)), "ci95': the interval does not hold"),
    "blocks": (timing(blocks=(1.0, 2.0)), r"speedup\.ci95': .*, the blocks give"),
    "median time": (timing(p50_ms=0.1), "p50_ms': 0.1, the samples give"),
    "throughput": (timing(throughput_per_s=1e6), "throughput_per_s'"),
    "no time": (timing(samples_ms=[]), "samples_ms'"),
    "engine": (timing(engine="graphs"), r"engine': 'graphs' is not the cell's"),
    "NaN": (timing(p99_ms=float("nan")), "nan is no number that"),
    "script": (cell(model=SCRIPT), r"cell\.model': '.*' is no name"),
    "second line": (
        lambda one: replace(one, command="run_bench.py run '\nrm -rf ~'"),
        "'command': .* has markup or control",
    ),
    "another program": (
        lambda one: replace(one, command="python -c 'stolen()'"), "'command': .* no plain call"
    ),
    "first of a list": (
        cell(params={"r": [SCRIPT, "8"]}, label=f"tome r={SCRIPT},8"), r"cell\.params\.r'"
    ),
    "kind of a hash": (
        lambda one: replace(one, provenance=one.provenance | {"measurement_sha256": 7}), "no text"
    ),
    "kind of a fact": (env(torch=["2"]), r"env\.torch': a list or a mapping"),
    "script behind": (cell(model=f"timm:x{SCRIPT}"), r"cell\.model': '.*' is no name"),
    "folder": (env(machine="../../stolen"), r"env\.machine': '.*' is no name"),
    "path": (cell(task="/etc/passwd"), r"cell\.task'"),
    "climbing": (cell(model="a/../../b"), r"cell\.model'"),
    "parameter": (cell(params={"r": 8, "x": SCRIPT}), r"cell\.params\.x'"),
    "label": (cell(label="crossget r=8"), r"cell\.label'"),
    "short name": (cell(names={"embedded:vit-fashion": SCRIPT}), "markup or control"),
    "processor": (env(cpu="A\nB"), r"env\.cpu': 'A\\nB' has markup or control"),
    "command": (
        lambda one: replace(one, command="run_bench.py run; rm -rf ~"),
        "'command': .* no plain call",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused(what: str, records: list[Record]) -> None:
    change, message = TAMPERED[what]
    victim = next(one for one in records if one.cell.label == "tome r=8")
    with pytest.raises(BenchError, match=message) as refused:
        audit.audit(change(victim))
    assert "\n" not in str(refused.value)


STAGE = Stage("ttft", [1.0, 1.0], [2.0, 2.0], 1.0, Speedup(2.0, (1.9, 2.1)))
EDITED: dict[str, Stage] = {
    "p50_ms": replace(STAGE, p50_ms=0.5),
    "samples_ms": replace(STAGE, samples_ms=[0.5]),
    "speedup.median": replace(STAGE, speedup=Speedup(9.0, (8.0, 10.0))),
}


@pytest.mark.parametrize("field", EDITED)
def test_an_edited_stage_of_an_answer_is_refused(field: str, records: list[Record]) -> None:
    """Of the answer to one prompt, and to each batch of them."""
    answer = Generation(8, {}, {}, 1, 1, [STAGE], served=[Served(n, [STAGE]) for n in (4, 8)])

    def told(answer: Generation) -> None:
        one = records[0]
        audit.audit(replace(one, cost=replace(one.cost, generation=answer)))

    told(answer)
    stages = [EDITED[field]]
    with pytest.raises(BenchError, match=rf"^'cost\.generation, ttft\.{field}'"):
        told(replace(answer, stages=stages))
    few, many = answer.served
    for served in ([replace(few, stages=stages), many], [few, replace(many, stages=stages)]):
        with pytest.raises(BenchError, match=rf"^'cost\.generation of \d prompts, ttft\.{field}'"):
            told(replace(answer, served=served))


def test_an_interval_over_seeds_is_worked_out_too(repo: Path) -> None:
    seeded = [one for one in audit.audit_all(repo / "results").values() if one.accuracy.repeats]
    one = seeded[0]
    name = str(one.accuracy.primary)
    low, high = one.accuracy.metrics[name].ci95 or (0.0, 0.0)
    metric = replace(one.accuracy.metrics[name], ci95=(low + 0.1, high))
    metrics = {**one.accuracy.metrics, name: metric}
    with pytest.raises(BenchError, match=r"ci95': .* its outcomes give"):
        audit.audit(replace(one, accuracy=replace(one.accuracy, metrics=metrics)))


def test_graded_scores_have_students_interval(records: list[Record]) -> None:
    scores = [0.0, 1.0, 0.3, 0.9, 1.0]
    low, high = DescrStatsW(scores).tconfint_mean()
    metric = Metric(64.0, "%", (100 * low, 100 * high), 5)
    one = replace(
        records[0], accuracy=Accuracy("accuracy", {"accuracy": metric}, {"correct": scores})
    )
    audit.audit(one)
    with pytest.raises(BenchError, match="beyond 0 to 1"):
        wrong = {"correct": [*scores[:4], 3.0]}
        audit.audit(replace(one, accuracy=replace(one.accuracy, outcomes=wrong)))


def test_a_file_belongs_in_its_place(records: list[Record], tmp_path: Path) -> None:
    path = Store(tmp_path / "a").write(records[0])
    moved = path.parent / "other.json"
    path.rename(moved)
    with pytest.raises(BenchError, match=r"other\.json: 'key': it belongs to the file box/quick/"):
        audit.audit_file(moved)
    text = moved.read_text()
    path.write_text(re.sub(r'"value": [\d.]+', '"value": NaN', text, count=1))
    with pytest.raises(BenchError, match="NaN is no number of JSON"):
        audit.audit_file(path)
    path.write_text(text[:-30])
    with pytest.raises(BenchError, match=rf"{path.name}:\d+: not valid JSON"):
        audit.audit_all(path)


# --- the site ------------------------------------------------------------------------------------


def contest(
    method: str, right: range, machine: str = "box", *, created: str = "2026-02-01", **how: Any
) -> Record:
    """A setting at half the MACs that answers some of 400 samples rightly."""
    one = next(r for r in synthetic(machine, created) if r.cell.label == "tome r=16")
    assert one.cost.macs is not None
    base = 2 * one.cost.macs.total
    ranks = [0 if i in right else 9 for i in range(400)]
    outcomes = {"correct": [int(r == 0) for r in ranks], "rank": ranks}
    params = how.get("params", {"r": 16})
    latency = [replace(entry, **how.get("timing", {})) for entry in one.cost.latency]
    named = replace(
        one.cell, method=method, params=params, label=record.label(method, params), baseline=False
    )
    return honest(
        replace(
            one,
            cell=named,
            accuracy=replace(one.accuracy, outcomes=outcomes),
            cost=replace(
                one.cost, macs=replace(one.cost.macs, baseline_total=base), latency=latency
            ),
            provenance=one.provenance | how.get("provenance", {}),
        )
    )


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines: alpha and beta are equals, gamma is worse, delta has other weights."""
    root = tmp_path_factory.mktemp("board")
    ours = [contest("alpha", range(300), timing={"disturbed": True}), contest("gamma", range(200))]
    old = contest("alpha", range(100), "older", created="2025-01-01")
    theirs = [contest("beta", range(1, 300), "gpu"), contest("gamma", range(200), "gpu")]
    other = contest("delta", range(400), "gpu", provenance={"weights_sha256": "cd" * 32})
    write([*ours, old], root / "ours")
    write([*theirs, other], root / "theirs")
    return root


@pytest.fixture(scope="module")
def page(board: Path) -> Path:
    return site.build([board / "ours", board / "theirs"], board / "site")


def test_ties_ranks_and_history(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    data = embedded(text, "data")
    cells = {cell["method"]: cell for cell in data["cells"]}
    assert {name: cell["best"] for name, cell in cells.items()} == {
        "alpha": True, "beta": True, "gamma": False, "delta": True
    }  # fmt: skip
    assert [cells[name]["tied"] for name in ("alpha", "beta", "delta")] == [2, 2, 1]
    assert cells["alpha"]["panel"] == cells["beta"]["panel"] != cells["delta"]["panel"]
    assert cells["alpha"]["accuracy_value"] == 75.0 and cells["alpha"]["band"] == "45–55 %"
    history = [(one["machine"], one["created"], one["value"]) for one in cells["alpha"]["records"]]
    assert history == [("box", "2026-02-01", 75.0), ("older", "2025-01-01", 25.0)]
    assert {one["machine"] for one in cells["gamma"]["records"]} == {"box", "gpu"}
    table = text[text.index('id="ranks"') : text.index("</table>")]
    rows = re.findall(
        r"<td>(\d+)</td><th scope=\"row\">(\w+)</th><td>(\d+) %</td><td>(.*?)<", table
    )
    assert rows == [
        ("1", "alpha", "75", "1 of 1"), ("1", "beta", "75", "1 of 1"), ("3", "gamma", "0", "1 of 1")
    ]  # fmt: skip


def test_a_disturbed_timing_wins_nothing(page: Path, board: Path) -> None:
    def crowned(file: Path) -> set[str]:
        cells = embedded(file.read_text(encoding="utf-8"), "data")["cells"]
        return {
            cell["method"]
            for cell in cells
            for one in cell["records"]
            for speed in one["speeds"].values()
            if len(speed) > 6
        }

    assert crowned(page) == set()  # beta is alone: nobody to be faster than
    quiet = [
        contest("alpha", range(300)),
        contest("beta", range(1, 300), timing={"disturbed": True}),
    ]
    quiet.append(contest("epsilon", range(300)))
    file = site.build([write(quiet, board / "quiet")], board / "quiet-site")
    assert len(crowned(file)) == 1 and "beta" not in crowned(file)


def test_the_site_needs_nothing_else_and_its_records_pass(page: Path, board: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", text)
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|sendBeacon", text)
    assert "default-src 'none'" in text and text.count("</script>") == 2  # data and code
    files = [one["file"] for cell in embedded(text, "data")["cells"] for one in cell["records"]]
    assert len(files) == len(set(files)) == 6
    for file in files:
        audit.audit_file(page.parent / file)
    again = site.build([board / "ours", board / "theirs"], board / "site")
    assert again.read_text(encoding="utf-8") == text


def test_the_table_in_a_browser(browser: Any, page: Path) -> None:
    visit = Visit(browser, page)
    assert visit.count("#rows tr") == 3  # the best: alpha and beta, and delta alone
    visit.page.uncheck("#leaders")
    assert visit.count("#rows tr") == 4
    visit.page.locator("#rows tr", has_text="alpha").locator(".open").click()
    assert visit.page.locator("#history tbody tr").count() == 2
    assert visit.page.inner_text("#remake").count("run_bench.py recheck records/") == 2
    visit.page.keyboard.press("Escape")
    assert len(visit.landmarks()) > 2
    visit.page.select_option("#hardware", index=1)
    visit.page.select_option("#front", "gmacs")
    rows = visit.saved()
    assert rows and all(row["hardware"] in row["timed_on"] for row in rows)
    again = Visit(browser, page, place=visit.page.url.partition("#")[2])
    assert again.saved() == rows and not again.page.is_checked("#leaders")
    again.context.close()
    assert visit.errors == [] and visit.requests == [visit.address]
    visit.context.close()


def test_one_refused_record_refuses_all(board: Path, tmp_path: Path) -> None:
    forged = top1(contest("alpha", range(300)), value=99.0)
    bad = write([forged, contest("gamma", range(200))], tmp_path / "bad")
    with pytest.raises(BenchError, match=r"bad/box/quick/.*alpha.*top1.*edit no record"):
        site.build([board / "ours", bad], tmp_path / "site")
    assert not (tmp_path / "site").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(BenchError, match="is not part of a report"):
        site.build([board / "ours"], tmp_path / "mine")
    with pytest.raises(BenchError, match="no records in"):
        site.build([tmp_path / "nowhere"], tmp_path / "site")
    costs = replace(contest("alpha", range(3)), accuracy=Accuracy(None, reason="costs alone"))
    with pytest.raises(BenchError, match="nothing can be ranked"):
        site.build([write([costs], tmp_path / "costs")], tmp_path / "site")
