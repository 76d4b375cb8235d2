"""The report: every printed number comes from the records, and odd records do no harm."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, bootstrap, permutation_test
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from bench.core.errors import BenchError
from bench.records.record import (
    COST_ONLY,
    Accuracy,
    Cell,
    Cost,
    Latency,
    Macs,
    Memory,
    Metric,
    Params,
    Record,
    Speedup,
)
from bench.records.store import Store
from bench.report import build
from bench.report.data import differences, frame, load, stats
from bench.report.data.names import metric_name, setting
from bench.report.figures import style
from bench.report.page import page_data

SAMPLES = 400
DEPTH = 12
METHODS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "random": [{"r": 8}, {"r": 13}, {"r": 16}],
    "pool": [{"r": 8}, {"r": 13}, {"r": 16}],
    "downsample": [{"keep_rate": 0.75}, {"keep_rate": 0.5}, {"keep_rate": 0.35}],
    "tome": [{"r": 8}, {"r": 13}, {"r": 16}],
    "topk": [{"keep_rate": 0.8}, {"keep_rate": 0.7}, {"keep_rate": 0.5}],
    "evit": [{"keep_rate": 0.8}, {"keep_rate": 0.7}, {"keep_rate": 0.5}],
    "crossget": [{"r": 8}, {"r": 13}, {"r": 16}],
}
LOSS = {"none": 0, "random": 9, "pool": 7, "downsample": 8, "tome": 2, "topk": 6, "evit": 5}
KEPT = {"random": 1.02, "pool": 1.06, "downsample": 0.99, "tome": 0.95, "topk": 1.0, "evit": 0.97}


def synthetic(machine: str = "box", created: str = "2026-01-01") -> list[Record]:
    """Realistic records: 2 models × 8 methods × 3 budgets."""
    rng = np.random.default_rng(7)
    records = []
    for model, task in (
        ("embedded:vit-fashion", "fashion-mnist"),
        ("embedded:clip-emoji", "emoji-retrieval"),
    ):
        for method, settings in METHODS.items():
            for params in settings:
                records.append(make(model, task, method, params, rng, machine, created))
    return records


def make(
    model: str,
    task: str,
    method: str,
    params: dict[str, Any],
    rng: np.random.Generator,
    machine: str = "box",
    created: str = "2026-01-01",
) -> Record:
    counts = token_counts(params)
    share = sum(counts[1:]) / (DEPTH * counts[0]) if params else 1.0
    label = " ".join([method, *(f"{k}={v}" for k, v in params.items())])
    cell = Cell("quick", model, task, method, params, label, "cpu", 0, SAMPLES, method == "none")
    return Record(
        key=stable_key(model, task, label),
        status="ok",
        reason=None,
        cell=cell,
        accuracy=accuracy(task, LOSS.get(method, 3) * (1 - share), rng),
        cost=cost(model, method, share, counts, rng),
        provenance={"weights": "trained here", "weights_sha256": "ab" * 32, "how": "measured"},
        env={"machine": machine, "cpu": "Some CPU", "gpu": None, "threads": 2, "torch": "2.9"},
        command="run_bench.py run --suite quick",
        created=f"{created}T00:00:{len(label):02d}Z",
        seconds=12.5,
    )


def stable_key(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def token_counts(params: dict[str, Any]) -> list[int]:
    counts = [197]
    for layer in range(DEPTH):
        now = counts[-1]
        if "r" in params:
            now -= min(params["r"], (now - 1) // 2)
        elif layer in (3, 6, 9):
            now = 1 + round(params.get("keep_rate", 1.0) * (now - 1))
        counts.append(now)
    return counts


def accuracy(task: str, loss: float, rng: np.random.Generator) -> Accuracy:
    if task == "fashion-mnist":
        noise = np.random.default_rng(1).random(SAMPLES)  # the samples' own difficulty, shared
        ranks = np.where(noise + rng.normal(0, 0.02, SAMPLES) < 0.88 - loss / 40, 0, 2)
        outcomes = {"correct": (ranks < 1).astype(int).tolist(), "rank": ranks.tolist()}
        values = {"top1": np.asarray(ranks < 1), "top5": np.asarray(ranks < 5)}
        return Accuracy("top1", {k: metric(v) for k, v in values.items()}, outcomes)
    outcomes, metrics = {}, dict[str, Metric]()
    for way in ("i2t", "t2i"):
        hard = np.random.default_rng(2 if way == "i2t" else 3).exponential(4, SAMPLES)
        ranks = np.floor(hard * (1 + loss / 8) * rng.uniform(0.9, 1.1, SAMPLES)).astype(int)
        outcomes[f"rank_{way}"] = ranks.tolist()
        metrics |= {f"{way}_r{k}": metric(ranks < k) for k in (1, 5, 10)}
    return Accuracy("i2t_r1", metrics, outcomes)


def metric(hits: Any) -> Metric:
    value, n = 100 * float(np.mean(hits)), len(hits)
    half = 196 * float(np.sqrt(value / 100 * (1 - value / 100) / n))
    return Metric(value, "%", (max(0.0, value - half), min(100.0, value + half)), n)


def cost(
    model: str, method: str, share: float, counts: list[int], rng: np.random.Generator
) -> Cost:
    base = 412_345_678 if "vit" in model else 98_765_432
    total = int(base * share)
    reduction = 0 if method == "none" else int(0.008 * total)
    latency = []
    for batch in (1, 8, 32):
        kept = KEPT.get(method, 0.93) - (0.2 if batch == 1 else 0.0)
        speed = 1.0 if method == "none" else 1 + (base / total - 1) * kept
        p50 = 9.5 * batch**0.9 / speed
        times = (p50 * rng.normal(1, 0.03, 11)).tolist()
        latency.append(
            Latency(
                batch,
                "float32",
                "sdpa",
                "cpu",
                2,
                times,
                [t * speed for t in times],
                p50,
                p50 * 1.05,
                p50 * 1.09,
                1000 * batch / p50,
                Speedup(speed, (speed * 0.98, speed * 1.025)),
                None,
                0.04,
                "mask",
                None,
            )
        )
    tokens = {"vision": list(zip(counts, counts[1:], strict=False))}
    if "clip" in model:
        tokens["text"] = [(32, 32)] * 4
    return Cost(
        Macs(total, reduction, total + 11, base, "one image through the encoder"),
        Params(1_234_567, 0),
        tokens,
        latency,
        Memory(int(2e8 * (0.5 + share / 2)), 5_000_000, 8, "VmHWM of a fresh process", 200_000_000),
    )


def write(records: list[Record], root: Path) -> Path:
    store = Store(root)
    for record in records:
        store.write(record)
    return root


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return synthetic()


@pytest.fixture(scope="module")
def results(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(records, tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def report(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "bench.report.figures.plots.save", lambda plot, folder: None
        )  # drawn in other tests
        return build([results], tmp_path_factory.mktemp("report") / "out")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out where a test is about the tables."""
    monkeypatch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)


def tables_in(text: str) -> list[list[dict[str, str]]]:
    """Parse every Markdown table; a repeated header gets the number of its column."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.M):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        head = [cell.strip() for cell in lines[0]]
        names = [name if head.count(name) == 1 else f"{name} {i}" for i, name in enumerate(head)]
        assert all(len(line) == len(head) for line in lines), block
        rows = [[cell.strip().replace("**", "") for cell in line] for line in lines[2:]]
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    return found


def main_tables(text: str) -> list[list[dict[str, str]]]:
    """The main tables, each row with its costs, which stand in a table of their own."""
    tables = tables_in(text)
    costs = [i for i, table in enumerate(tables) if "Params M" in table[0]]
    mains = [max(j for j in range(i) if "% of unreduced" in tables[j][0]) for i in costs]
    return [
        [main | cost for main, cost in zip(tables[j], tables[i], strict=True)]
        for j, i in zip(mains, costs, strict=True)
    ]


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text.replace("−", "-"))]


def same(printed: str, *expected: float) -> None:
    """Check printed numbers to half of their last digit."""
    printed = printed.partition(" (p ")[0].replace("−", "-")
    found = re.findall(r"-?\d+(?:\.\d+)?", printed)
    assert len(found) == len(expected), (printed, expected)
    for text, value in zip(found, expected, strict=True):
        decimals = len(text.partition(".")[2])
        assert abs(float(text) - value) <= 0.5000001 * 10**-decimals, (printed, expected)


def record_of(row: dict[str, str], records: list[Record], task: str) -> Record:
    label = " ".join([row["Method"].rstrip(" †‡"), row["Setting"]]).replace(" –", "")
    (record,) = [r for r in records if (r.cell.task, r.cell.label) == (task, label)]
    return record


def scores(record: Record, name: str) -> Any:
    outcomes = record.accuracy.outcomes
    if name.startswith("top"):
        return np.asarray(outcomes["rank"]) < int(name[3:])
    return np.asarray(outcomes[f"rank_{name[:3]}"]) < int(name[5:])


def delta(record: Record, base: Record, name: str) -> tuple[float, float, float]:
    """The paired difference and its bootstrap interval, from the outcomes, in points."""
    gap = scores(record, name).astype(int) - scores(base, name).astype(int)
    n = len(gap) + 2  # one imagined sample is won, one lost
    lost, won = (np.sum(gap < 0) + 1) / n, (np.sum(gap > 0) + 1) / n
    chances = np.ones(1)
    for _ in range(n):
        chances = np.convolve(chances, (lost, 1 - lost - won, won))
    low, high = np.searchsorted(np.cumsum(chances), [0.025, 0.975])
    return 100 * gap.mean(), 100 * (low - n) / n, 100 * (high - n) / n


def mcnemar(record: Record, base: Record, name: str) -> float:
    gap = scores(record, name).astype(int) - scores(base, name).astype(int)
    table = [[0, np.sum(gap > 0)], [np.sum(gap < 0), 0]]
    return float(statsmodels_mcnemar(table, exact=True).pvalue) if gap.any() else 1.0


def holm(values: list[float]) -> list[float]:
    return [float(p) for p in multipletests(values, method="holm")[1]]


def share_of(record: Record) -> float:
    assert record.cost.macs
    return record.cost.macs.total / record.cost.macs.baseline_total


def middle(record: Record) -> int:
    """The middle of the band of MACs that a record falls in."""
    return 10 * math.floor(10 * share_of(record) + 0.5)


TASKS = ("emoji-retrieval", "fashion-mnist")


def test_main_table_prints_what_the_records_hold(report: Path, records: list[Record]) -> None:
    tables = main_tables(report.read_text())
    assert len(tables) == 2
    for task, table in zip(TASKS, tables, strict=True):
        own = [record for record in records if record.cell.task == task]
        assert len(table) == len(own) == 22
        base = next(record for record in own if record.cell.baseline)
        found = [(row, record_of(row, records, task)) for row in table]
        for row, record in found:
            check_accuracy(row, record, base)
            check_cost(row, record)
        check_flags(found, base)


def check_accuracy(row: dict[str, str], record: Record, base: Record) -> None:
    name = record.accuracy.primary or ""
    value = record.accuracy.metrics[name]
    assert value.ci95 is not None
    head = {"top1": "top-1 %", "i2t_r1": "image→text R@1 %"}[name]
    same(row[head], value.value, (value.ci95[1] - value.ci95[0]) / 2)
    if record.cell.baseline:
        assert row["Δ to none"] == "–"
    else:
        same(row["Δ to none"], *delta(record, base, name))


def check_flags(found: list[tuple[dict[str, str], Record]], base: Record) -> None:
    """The marks are Holm's verdicts on McNemar's tests, over all rows of the table."""
    name = base.accuracy.primary or ""
    own = [(row, record) for row, record in found if record is not base]
    values = holm([mcnemar(record, base, name) for _, record in own])
    for (row, _), p in zip(own, values, strict=True):
        assert ("≈" in row["Δ to none"]) == (p >= 0.05)
    randoms = [record for _, record in own if record.cell.method == "random"]
    cheapest = min(map(share_of, randoms))
    pairs = []
    for row, record in own:
        gap = min(abs(share_of(other) - share_of(record)) for other in randoms)
        if record.cell.method == "random" or gap > 0.1 or cheapest - share_of(record) > 0.02:
            assert row["Δ to random"] == "–"
        else:
            pairs.append((row, record, at_macs(record, [*randoms, base], name)))
    found = [stats.paired_difference(scores(record, name), near) for _, record, near in pairs]
    for (row, _, _), one, p in zip(pairs, found, holm([one.p for one in found]), strict=True):
        shown = row["Δ to random"].partition(" (p ")[0]
        same(shown, 100 * one.value, 100 * one.low, 100 * one.high)
        mark = "†" if p >= 0.05 else "‡" if one.value < 0 else "]"
        assert shown[-1] == mark and len(set(shown) & {"†", "‡"}) == (mark != "]")
    marks = [row["Δ to random"].partition(" (p ")[0][-1] for row, _, _ in pairs]
    assert len(set(marks)) > 1, "the data should hold methods on both sides"


def at_macs(record: Record, others: list[Record], name: str) -> Any:
    """The samples' scores of random reduction at a record's MACs, on the line between two."""
    x = share_of(record)
    fewer = max((o for o in others if share_of(o) <= x), key=share_of, default=None)
    more = min((o for o in others if share_of(o) >= x), key=share_of)
    if fewer is None or fewer is more:
        return scores(more, name).astype(float)
    part = (x - share_of(fewer)) / (share_of(more) - share_of(fewer))
    return (1 - part) * scores(fewer, name) + part * scores(more, name)


def check_cost(row: dict[str, str], record: Record) -> None:
    macs, params, memory = record.cost.macs, record.cost.params, record.cost.memory
    assert macs and params and memory
    same(row["GMACs"], macs.total / 1e9)
    same(row["% of unreduced"], 100 * macs.total / macs.baseline_total)
    same(row["% reducing"], 100 * macs.reduction / macs.total)
    same(row["Params M"], params.total / 1e6)
    same(row["peak MiB, b8"], memory.peak_bytes / 2**20)
    for entry in record.cost.latency:
        if entry.batch == 8:  # only the smallest and the largest batch
            assert "p50 ms, b8" not in row
            continue
        same(row[f"p50 ms, b{entry.batch}"], entry.p50_ms)
        same(row[f"speed-up, b{entry.batch}"], entry.speedup.median, *entry.speedup.ci95)
        share = 100 * entry.speedup.median * macs.total / macs.baseline_total
        same(row[f"of MAC bound %, b{entry.batch}"], share)
        if entry.batch == 32:
            same(row["per s, b32"], entry.throughput_per_s)


def test_accuracy_table_prints_every_metric(report: Path, records: list[Record]) -> None:
    tables = [t for t in tables_in(report.read_text()) if any(k.startswith("Δ 4") for k in t[0])]
    for task, table in zip(TASKS, tables, strict=True):
        base = next(r for r in records if r.cell.task == task and r.cell.baseline)
        for row in table:
            record = record_of(row, records, task)
            cells = list(row.values())[3:]
            for place, (name, value) in enumerate(record.accuracy.metrics.items()):
                assert value.ci95 is not None
                half = (value.ci95[1] - value.ci95[0]) / 2
                same(cells[2 * place], value.value, half)
                if not record.cell.baseline:
                    same(cells[2 * place + 1], *delta(record, base, name))


def test_pairs_are_compared_within_their_band(report: Path, records: list[Record]) -> None:
    tables = [t for t in tables_in(report.read_text()) if "More accurate" in t[0]]
    for task, table in zip(TASKS, tables, strict=True):
        own = {r.cell.label: r for r in records if r.cell.task == task}
        name = own["none"].accuracy.primary or ""
        pairs = [(own[row["More accurate"]], own[row["Less accurate"]]) for row in table]
        values = [mcnemar(ours, theirs, name) for ours, theirs in pairs]
        assert len({row["MACs left"] for row in table}) > 1
        for row, (ours, theirs), p, q in zip(table, pairs, values, holm(values), strict=True):
            same(row["Lead"], *delta(ours, theirs, name))
            assert middle(ours) == middle(theirs)
            assert ("≈" in row["Lead"]) == (q >= 0.05)
            for head, value in (("p", p), ("p by Holm", q)):
                assert row[head] == (f"{value:.3f}" if value >= 0.0005 else "&lt;0.001")


def test_across_tasks_a_band_holds_one_setting_and_the_mean_that_is_kept(
    report: Path, records: list[Record]
) -> None:
    part = report.read_text().partition("## Accuracy at matched budgets\n")[2]
    band, several = "", 0
    for row in tables_in(part.partition("\n## ")[0])[0]:
        band, kept = row["MACs left"] or band, []
        for task in TASKS:
            (head,) = [name for name in row if task in name]
            base = next(r for r in records if (r.cell.task, r.cell.label) == (task, "none"))
            near = [
                (abs(100 * share_of(r) - middle(r)), r)
                for r in records
                if (r.cell.task, r.cell.method) == (task, row["Method"])
                and band.startswith(f"{middle(r) - 5}–")
            ]
            if not near:
                assert row[head] == "–"
                continue
            record = min(near, key=lambda pair: pair[0])[1]
            found = record.accuracy.metrics[record.accuracy.primary or ""]
            assert found.ci95 is not None
            same(row[head], found.value, (found.ci95[1] - found.ci95[0]) / 2)
            whole = base.accuracy.metrics[base.accuracy.primary or ""].value
            kept.append(100 * found.value / whole)
        same(row["retained %"], sum(kept) / len(kept))
        several += len(kept) > 1
        assert "mean rank" not in row  # of two tasks
    assert several > 4


def test_metrics_are_named_for_people() -> None:
    names = ("i2t_r1", "mean_recall", "cider_plain_near_domain", "rouge_l", "accuracy_what", "auc")
    assert [metric_name(name) for name in names] == [
        "image→text R@1",
        "mean recall",
        "CIDEr, plain tokens near domain",
        "ROUGE-L",
        "accuracy, what",
        "auc",
    ]


def test_timing_tables_print_every_batch(report: Path, records: list[Record]) -> None:
    tables = [t for t in tables_in(report.read_text()) if "p99 ms" in t[0]]
    assert len(tables) == 6  # 2 tasks × 3 batch sizes
    found = main_tables(report.read_text())
    mains = [
        {record_of(row, records, task).cell.label: row for row in table}
        for task, table in zip(TASKS, found, strict=True)
    ]
    assert "†" in report.read_text() and "≈" in report.read_text()
    for index, table in enumerate(tables):
        for row in table:
            record = record_of(row, records, TASKS[index // 3])
            entry = record.cost.latency[index % 3]
            same(row["p50 ms"], entry.p50_ms)
            same(row["p95 ms"], entry.p95_ms)
            same(row["p99 ms"], entry.p99_ms)
            same(row["per s"], entry.throughput_per_s)
            same(row["speed-up"], entry.speedup.median, *entry.speedup.ci95)
            low, high = entry.speedup.ci95
            assert ("≈" in row["speed-up"]) == (low <= 1 <= high)
            main = "".join(mains[index // 3][record.cell.label].values())
            for mark in "†‡":
                assert (mark in row["Method"]) == (mark in main)
            same(row["reducing %"], 100 * (entry.reduction_share or 0))
            assert row["attention"] == "mask"


def test_bold_is_the_best_within_a_band_and_never_the_baseline(
    report: Path, records: list[Record]
) -> None:
    for line in report.read_text().splitlines():
        if line.startswith("|  | none |"):
            assert "**" not in line
    table = next(t for t in report.read_text().split("\n\n") if "| % of unreduced |" in t)
    place = table.splitlines()[0].split(" | ").index("image→text R@1 %")
    band: list[tuple[float, bool]] = []
    bands = []
    for line in table.splitlines()[3:]:
        cells = line.strip("| ").split(" | ") if line.startswith("|  |") else line[2:].split(" | ")
        if not line.startswith("|  |"):
            band = []
            bands.append(band)
        cell = line.split(" | ")[place] if line.startswith("| ") else cells[place]
        band.append((numbers(cell)[0], "**" in cell))
    reduced = [r for r in records if r.cell.task == TASKS[0] and r.cell.method != "none"]
    assert len(bands) == len({middle(r) for r in reduced if r.status == "ok"}) > 2
    for members in bands:
        winners = [value for value, bold in members if bold]
        others = [value for value, bold in members if not bold]
        assert others and (not winners or min(winners) >= max(others))


def test_csv_keeps_every_digit(report: Path, records: list[Record]) -> None:
    import pandas as pd

    path = report.parent / "tables/embedded-vit-fashion--fashion-mnist--main.csv"
    table = pd.read_csv(path).set_index("label")
    for record in records:
        if record.cell.task == "fashion-mnist":
            row = table.loc[record.cell.label]
            assert record.cost.macs and row["gmacs"] == record.cost.macs.total / 1e9
            assert row["accuracy_value"] == record.accuracy.metrics["top1"].value
            assert row["p50_ms_batch8"] == record.cost.latency[1].p50_ms


def test_same_records_give_the_same_bytes_and_every_link_leads_somewhere(
    records: list[Record], tmp_path: Path
) -> None:
    write(vit(records)[::3], tmp_path / "a")
    write(vit(records)[::3][::-1], tmp_path / "b")
    first = build([tmp_path / "a"], tmp_path / "first").parent
    again = build([tmp_path / "b"], tmp_path / "again").parent
    files = {path.relative_to(first).as_posix() for path in first.rglob("*.*")}
    for path in files:
        assert (first / path).read_bytes() == (again / path).read_bytes(), path
    # Every link leads to a file, and no file is without a link.
    text = (first / "report.md").read_text()
    links = re.findall(r"\]\(((?:figures|tables)/[^)]+)\)", text)
    assert {*links, "report.md", "index.html"} == files
    pictures = [link for link in links if link.endswith(".png")]
    assert len(pictures) == 6
    assert all((first / link).read_bytes().startswith(b"\x89PNG") for link in pictures)


def test_provenance_is_there(report: Path) -> None:
    text = report.read_text()
    for fact in ("Machine box", "Some CPU", "`run_bench.py run --suite quick`", "2026-01-01T"):
        assert fact in text
    for fact in (
        "fvcore's rules",
        "trained here",
        "abababababab",
        "cpu · float32 · sdpa · 2 threads",
    ):
        assert fact in text


def test_building_loads_neither_torch_nor_transformers(
    records: list[Record], tmp_path: Path
) -> None:
    results = write(vit(records)[:2], tmp_path / "r")
    code = (
        "import sys; from pathlib import Path; from bench.report import build\n"
        f"build([Path({str(results)!r})], Path({str(tmp_path / 'out')!r}))\n"
        "heavy = {'torch', 'transformers', 'timm', 'fvcore'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not sys.modules['matplotlib.pyplot'].get_fignums()"  # seaborn's; nobody draws there
    )
    # A configuration folder that cannot be made must not matter either.
    env = os.environ | {"MPLCONFIGDIR": "/dev/null/none", "HOME": "/dev/null/home"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def one(results: Path, tmp_path: Path, records: list[Record]) -> str:
    return build([write(records, results)], tmp_path / "out").read_text()


def vit(records: list[Record]) -> list[Record]:
    return [record for record in records if record.cell.task == "fashion-mnist"]


@pytest.mark.usefixtures("no_figures")
def test_failed_cells_stand_apart_with_their_reason(records: list[Record], tmp_path: Path) -> None:
    broken = replace(vit(records)[4], status="oom", reason="out of memory at batch 8 | 3 GiB")
    text = one(tmp_path / "r", tmp_path, [*vit(records)[:3], broken])
    (table,) = [t for t in tables_in(text) if "reason" in t[0]]
    assert table[0]["status"] == "oom"
    assert table[0]["reason"] == "out of memory at batch 8 \\| 3 GiB"
    assert "3 finished cells" in text and "1 did not finish" in text
    (main,) = main_tables(text)
    assert len(main) == 3


@pytest.mark.usefixtures("no_figures")
def test_only_failures_still_make_a_report(records: list[Record], tmp_path: Path) -> None:
    text = one(tmp_path / "r", tmp_path, [replace(records[0], status="failed", reason="no disk")])
    assert "no disk" in text and "0 finished cells" in text


def test_cost_only_cells_say_why_there_is_no_accuracy(
    records: list[Record], tmp_path: Path
) -> None:
    why = "random weights: an accuracy would mean nothing"
    cells = [
        replace(
            record,
            cell=replace(record.cell, task=COST_ONLY, random_weights=True),
            accuracy=Accuracy(None, {}, {}, why),
        )
        for record in vit(records)
    ]
    text = one(tmp_path / "r", tmp_path, cells[::4])
    assert f"No accuracy for any cell: {why}" in text
    assert "Δ to none" not in text and "accuracy-gmacs" not in text
    assert "speedup-bound.png" in text


@pytest.mark.usefixtures("no_figures")
def test_one_cell_without_accuracy_does_not_spoil_the_table(
    records: list[Record], tmp_path: Path
) -> None:
    bare = replace(vit(records)[5], accuracy=Accuracy(None, {}, {}, "no test images here"))
    others = [r for r in vit(records) if r is not vit(records)[5]]
    text = one(tmp_path / "r", tmp_path, [*others, bare])
    assert "No accuracy for pool r=13: no test images here" in text
    (table,) = main_tables(text)
    (row,) = [row for row in table if (row["Method"], row["Setting"]) == ("pool", "r=13")]
    assert row["top-1 %"] == row["Δ to none"] == "–"
    check_cost(row, bare)


@pytest.mark.usefixtures("no_figures")
def test_what_could_not_be_measured_is_said(records: list[Record], tmp_path: Path) -> None:
    cells = vit(records)[:3]
    cells[1] = replace(
        cells[1], cost=replace(cells[1].cost, memory=None, notes=["memory: no fork"])
    )
    text = one(tmp_path / "r", tmp_path, cells)
    assert "Cost of random r=8: memory: no fork" in text
    (table,) = main_tables(text)
    assert [row["peak MiB, b8"] == "–" for row in table].count(True) == 1


@pytest.mark.parametrize("place", [0, 6])
def test_a_single_record_is_enough(records: list[Record], tmp_path: Path, place: int) -> None:
    text = one(tmp_path / "r", tmp_path, [vit(records)[place]])
    (table,) = main_tables(text)
    assert len(table) == 1 and "**" not in text.partition("## How to")[0]


def test_records_without_any_cost_are_tabled(records: list[Record], tmp_path: Path) -> None:
    text = one(tmp_path / "r", tmp_path, [replace(r, cost=Cost()) for r in vit(records)[:4]])
    (table,) = main_tables(text)
    assert [row["GMACs"] for row in table] == ["–"] * 4
    assert "no timings recorded" in text


def test_weird_names_are_escaped_everywhere(records: list[Record], tmp_path: Path) -> None:
    names = ["a | b", "_hidden $x$ <b>", "*star*/../..", "名前 `tick`", "x" * 90]
    cells = [vit(records)[0]]
    for index, name in enumerate(names):
        old = vit(records)[4 + index]
        cell = replace(old.cell, method=name, label=f"{name} {index}", params={"k|v": "a_b|c"})
        cells.append(replace(old, cell=cell, key=stable_key(name)))
    text = one(tmp_path / "r", tmp_path, cells)
    (table,) = main_tables(text)
    named = {row["Method"] for row in table}
    assert named > {r"a \| b, k\|v a_b\|c", r"\_hidden $x$ &lt;b&gt;, k\|v a_b\|c"}
    assert all(path.parent.parent == tmp_path / "out" for path in (tmp_path / "out").rglob("*.png"))


@pytest.mark.usefixtures("no_figures")
def test_unlike_numbers_get_tables_of_their_own(records: list[Record], tmp_path: Path) -> None:
    half = [
        replace(r, key=stable_key(r.key, "half"), cell=replace(r.cell, dtype="bfloat16"))
        for r in vit(records)
    ]
    fewer = [
        replace(r, key=stable_key(r.key, "fewer"), cell=replace(r.cell, limit=100))
        for r in vit(records)
    ]
    elsewhere = [replace(r, env=r.env | {"machine": "other"}) for r in vit(records)]
    root = write([*vit(records), *half, *fewer], tmp_path / "a")
    write(elsewhere, tmp_path / "b")
    text = build([root, tmp_path / "b"], tmp_path / "out").read_text()
    assert "accuracy_vs_gmacs.png" in text and "accuracy_vs_speedup.png" in text
    tables = main_tables(text)
    assert [len(t) for t in tables] == [22] * 4
    assert len(set(re.findall(r"^## (embedded.*)$", text, flags=re.M))) == 4
    assert "### Machine box" in text and "### Machine other" in text


@pytest.mark.usefixtures("no_figures")
def test_two_conditions_in_one_cell_do_not_share_a_column(
    records: list[Record], tmp_path: Path
) -> None:
    cells = []
    for record in vit(records):
        slow = [replace(e, backend="eager", p50_ms=999.0) for e in record.cost.latency[:1]]
        latency = [*record.cost.latency, *slow]
        cells.append(replace(record, cost=replace(record.cost, latency=latency)))
    text = one(tmp_path / "r", tmp_path, cells)
    (main,) = main_tables(text)
    assert all("999" not in row["p50 ms, b1"] for row in main)
    assert "Batch 1 · cpu · float32 · eager · 2 threads" in text


@pytest.mark.usefixtures("no_figures")
def test_the_newest_result_of_a_cell_counts(records: list[Record], tmp_path: Path) -> None:
    old = vit(records)[:2]
    new = [
        replace(
            old[1],
            key=stable_key("new"),
            created="2026-02-01T00:00:00Z",
            cell=replace(old[1].cell, suite="standard"),
            cost=replace(old[1].cost, params=Params(42_000_000, 0)),
        )
    ]
    text = one(tmp_path / "r", tmp_path, [*old, *new])
    (table,) = main_tables(text)
    assert [row["Params M"] for row in table] == ["1.23", "42.00"]
    assert "older results of the same cells, set aside: 1" in text


@pytest.mark.usefixtures("no_figures")
def test_seeds_are_named_where_they_tell_cells_apart(records: list[Record], tmp_path: Path) -> None:
    first = vit(records)[1]
    second = replace(first, key=stable_key("seed"), cell=replace(first.cell, seed=1))
    text = one(tmp_path / "r", tmp_path, [vit(records)[0], first, second])
    assert "| r=8, seed 0 |" in text and "| r=8, seed 1 |" in text


@pytest.mark.usefixtures("no_figures")
def test_another_baseline(records: list[Record], tmp_path: Path) -> None:
    root = write(vit(records), tmp_path / "r")
    text = build([root], tmp_path / "out", baseline="tome r=13").read_text()
    (table,) = main_tables(text)
    base = next(r for r in records if r.cell.label == "tome r=13" and r in vit(records))
    assert (table[0]["Method"], table[0]["Setting"]) == ("tome", "r=13")
    for row in table[1:]:
        record = record_of(row, records, "fashion-mnist")
        same(row["Δ to tome r=13"], *delta(record, base, "top1"))
    with pytest.raises(BenchError, match="several settings; name one by its label: tome r=13"):
        build([root], tmp_path / "out", baseline="tome")
    with pytest.raises(BenchError, match="no record of the baseline 'tomme'.*tome"):
        build([root], tmp_path / "out", baseline="tomme")


def test_errors_are_one_line_and_name_the_fix(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "file").write_text("")
    good = write(records[:1], tmp_path / "r")
    for results, out, fix in (
        ([tmp_path / "empty"], "o", r"no records in .*run_bench\.py run"),
        ([], "o", r"no records in .*run_bench\.py run"),
        ([tmp_path / "absent"], "o", r"no results at .*run_bench\.py run"),
        ([tmp_path / "bad.json"], "o", r"bad.json:1: not valid JSON"),
        ([good], "file", "choose a writable --out"),
        ([good], "file/below", "choose a writable --out"),
    ):
        with pytest.raises(BenchError, match=fix) as caught:
            build(results, tmp_path / out)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("no_figures")
def test_truncated_files_are_named_and_left_out(records: list[Record], tmp_path: Path) -> None:
    root = write(vit(records)[:3], tmp_path / "r")
    victim = sorted(root.rglob("*.json"))[0]
    victim.write_text(victim.read_text()[:500])
    text = build([root], tmp_path / "out").read_text()
    assert "2 finished cells" in text
    assert victim.name in text.replace("\\", "") and str(tmp_path) not in text


def test_a_failed_build_leaves_the_old_report(
    results: Path, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    monkeypatch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)
    build([write(vit(records)[:2], tmp_path / "r")], out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}

    def fail(plot: Any, folder: Path) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("bench.report.figures.plots.save", fail)
    with pytest.raises(RuntimeError):
        build([results], out)
    assert before == {path: path.read_bytes() for path in out.rglob("*.*")}
    assert (out / "mine").is_dir() and not list(out.glob(".report-*"))


def test_a_folder_of_others_is_not_replaced(results: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    with pytest.raises(BenchError, match="not part of a report: choose another --out"):
        build([results], tmp_path)


def test_at_most_five_series_have_colours_and_no_two_look_alike() -> None:
    leaders = ["tome", "crossget", "crossget, unguided", "mine", "evit", "topk", "random"]
    series = [*leaders, "none", "pool", "downsample", "dart", "fastv", "other"]
    looks = style.looks(series, leaders)
    coloured = {name for name, look in looks.items() if look.color in style.COLORS}
    assert coloured == set(leaders[:5])
    assert len({looks[name].color for name in coloured}) == 5
    assert len({look.marker for look in looks.values()}) == len(series)
    assert looks["tome"] == style.KNOWN["tome"] and looks["crossget"] == style.KNOWN["crossget"]
    assert looks["evit"].marker == style.KNOWN["evit"].marker  # not the variant's of crossget
    assert looks["none"].color == style.BLACK and looks["pool"].color == style.GREY
    unscored = style.looks(["ats", "dart", "diffrate", "dpc-knn", "kmedoids", "tome", "topk"])
    assert unscored["tome"] == style.KNOWN["tome"] and unscored["kmedoids"].color == style.GREY
    assert style.looks(["b", "a"]) == style.looks(["a", "b"])
    many = style.looks([f"m{i}" for i in range(60)])  # letters, where shapes end
    outlines = {page_data._outline(look.marker) for look in many.values()}
    assert len(outlines) == 60 and many == style.looks(many)


def test_a_deuteranope_tells_the_colours_apart() -> None:
    """Machado, Oliveira and Fernandes (2009), severity 1; the distance is CIE 1976's."""
    seen = [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]

    def lab(color: str) -> Any:
        values = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        xyz = to_xyz @ np.clip(seen @ linear, 0, 1) / [0.95047, 1, 1.08883]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for one, other in itertools.combinations([*style.COLORS, style.GREY, style.BLACK], 2):
        assert np.linalg.norm(lab(one) - lab(other)) >= 15, (one, other)


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.02), (0.008, 0.008)])
def test_the_interval_covers(lost: float, won: float) -> None:
    rng = np.random.default_rng(0)
    trials, n, covered = 600, 300, 0
    truth = 0.2 * won - 0.8 * lost
    for _ in range(trials):
        base, flip = rng.random(n) < 0.8, rng.random(n)
        other = np.where(base, flip > lost, flip < won).astype(float)
        found = stats.paired_difference(other, base.astype(float))
        covered += found.low <= truth <= found.high
    # Conservative where few samples disagree; a plain bootstrap would collapse to a point there.
    assert 0.935 <= covered / trials <= (0.98 if lost > 0.01 else 1)


def test_the_interval_of_graded_scores_covers_and_is_scipys() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        gap = rng.integers(-3, 5, 200) / 3  # expected 1/6
        found = stats.paired_difference(gap, np.zeros(200))
        covered += found.low <= 1 / 6 <= found.high
    assert 0.92 <= covered / 300 <= 0.98
    theirs = bootstrap((gap,), np.mean, n_resamples=4999, method="percentile", rng=rng)
    ends = theirs.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.02)


@pytest.mark.parametrize("few", [True, False])
def test_graded_scores_are_judged_as_scipy_does(few: bool) -> None:
    """Whether how often each difference comes is drawn, or each sample's."""
    rng = np.random.default_rng(5)
    gap = rng.normal(0, 1, 500)
    gap += 0.08 - gap.mean()
    gap = np.clip(np.round(gap), -1, 1) if few else gap
    assert (stats.DEAR * len(np.unique(gap)) < len(gap)) == few
    found = stats.paired_difference(gap, np.zeros(500))
    options = {"vectorized": True, "batch": 200, "n_resamples": 1999, "rng": rng}
    ends = bootstrap((gap,), np.mean, method="percentile", **options).confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.02)
    test = permutation_test((gap,), np.mean, permutation_type="samples", **options)
    assert 0.001 < found.p < 0.5 and found.p == pytest.approx(test.pvalue, abs=0.02)


@pytest.mark.parametrize("n", [300, 400])
def test_the_interval_of_graded_scores_is_the_binomials(n: int) -> None:
    """Half of the samples gain 0.5, the others nothing: a resample counts heads of n coins."""
    gap = np.repeat([0.0, 0.5], n // 2)
    assert (n > stats.DEAR * 2) == (n == 400)  # whether how often each gain comes is drawn
    found = stats.paired_difference(gap, np.zeros(n))
    heads = binom.ppf([0.025, 0.975], n, 0.5)
    assert (2 * n * found.low, 2 * n * found.high) == pytest.approx(tuple(heads), abs=1.5)


def test_flags_say_better_in_few_tables_where_nothing_is() -> None:
    """The share of tables with any false claim stays below the level: that is what Holm is for."""
    rng = np.random.default_rng(1)
    tables, methods, n, wrong = 300, 8, 250, 0
    for _ in range(tables):
        hard = rng.random(n)  # the samples' difficulty, which all methods share
        base, *others = ((hard + rng.normal(0, 0.1, n) < 0.7).astype(float) for _ in range(methods))
        rows = [
            {"delta": (one - base).mean(), "delta_p": stats.paired_difference(one, base).p}
            for one in others
        ]
        differences.correct(rows, "delta")
        wrong += any(not differences.is_noise(row, "delta") for row in rows)
    assert wrong / tables <= 0.06


def test_p_values_of_graded_scores_keep_their_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 199)
    rng = np.random.default_rng(2)
    found = [stats.paired_difference(rng.random(40), rng.random(40)).p for _ in range(200)]
    assert np.mean(np.array(found) < 0.05) <= 0.09
    assert stats.paired_difference(rng.random(40) + 0.5, rng.random(40)).p < 0.02


def test_paired_difference_of_graded_scores_and_of_nothing() -> None:
    ours, base = np.array([0.5, 0.7, 0.9, 0.4]), np.array([0.4, 0.65, 0.8, 0.45])
    result = stats.paired_difference(ours, base)
    assert result.value == pytest.approx(0.05)
    means = np.array(list(itertools.product(ours - base, repeat=4))).mean(1)  # every resample
    ends = np.quantile(means, [0.025, 0.975])
    assert (result.low, result.high) == pytest.approx(tuple(ends), abs=1e-9)
    assert result.p == pytest.approx(6 / 16, abs=0.02)  # of 16 flips 6 reach a sum of 0.2
    equal = stats.paired_difference(np.ones(50), np.ones(50))
    assert equal.value == 0 and equal.low < 0 < equal.high and equal.p == 1
    assert stats.paired_difference(np.full(5, 0.5), np.full(5, 0.5)).p == 1
    assert stats.holm([]) == []
    with pytest.raises(ValueError, match="cannot be paired"):
        stats.paired_difference(np.ones(3), np.ones(4))


def test_a_metric_that_its_outcomes_contradict_gets_no_interval(records: list[Record]) -> None:
    base, other = vit(records)[0], vit(records)[4]
    metrics = other.accuracy.metrics | {"top1": Metric(99.0, "%", (98.0, 100.0), SAMPLES)}
    wrong = replace(other, accuracy=replace(other.accuracy, metrics=metrics))
    scores = frame.build([base, wrong]).scores[load.uid(wrong)]
    (row,) = [row for row in scores if row["metric"] == "top1"]
    assert row["delta_reason"] == "outcomes do not reproduce the metric"
    assert all(row[name] is None for name in ("delta_low", "delta_high", "delta_p"))


def test_settings_read_well() -> None:
    assert setting({"keep_rate": 0.7, "layers": (3, 6, 9)}) == "keep_rate=0.7, layers=3/6/9"
    assert setting({"r": [13] * 12}) == "r=12×13"
    assert setting({"r": {"vision": 16, "text": 6}}) == "r=vision:16+text:6"


def test_frames_round_trip_through_json(records: list[Record], results: Path) -> None:
    read, notes = load.read([results])
    assert not notes
    written = {record.key: json.loads(record.to_json()) for record in records}
    assert {record.key: json.loads(record.to_json()) for record in read} == written
    assert {record.key: record for record in read} == {record.key: record for record in records}
