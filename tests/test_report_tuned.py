"""The report of fine-tuned models: means, intervals and verdicts come from the right records."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from bench.records.record import Accuracy, Cell, Cost, Latency, Macs, Metric, Record, Speedup
from bench.records.store import Store
from bench.report import build
from bench.report.data import grouping, makers
from bench.report.data.names import budget, series
from bench.report.figures import style
from recipes.ablation import chains, claims, estimates, figures, sections, studies, tables

BASE, TASK, SAMPLES = "embedded:clip-emoji", "emoji-retrieval", 300
BOTH = {"vision": 29, "text": 4}
NO_GUIDE = {"guided_matching": False, "guided_ensemble": False}
NO_ENSEMBLE = {"guided_ensemble": False}
# method, budget, params, weight, percent of the MACs, what is lost untrained and trained (in rank)
Spec = tuple[str, dict[str, Any], dict[str, Any], float, float, float, float]
SPECS: list[Spec] = [
    ("none", {}, {}, 0.5, 100.0, 0.0, -0.30),
    ("tome", {"r": 29}, {}, 0.5, 52.3, 0.30, -0.10),
    ("tome", {"r": 34}, {}, 0.5, 46.5, 0.50, 0.00),
    ("evit", {"keep_rate": 0.5}, {}, 0.5, 51.7, 1.60, 0.30),
    ("crossget", {"r": 34}, NO_GUIDE, 0.0, 52.5, 0.30, -0.10),
    ("crossget", {"r": 34}, NO_ENSEMBLE, 0.0, 52.7, 0.35, -0.20),
    ("crossget", {"r": 34}, {}, 0.0, 52.8, 0.40, -0.10),
    ("crossget", {"r": 34}, {}, 0.5, 52.8, 0.40, -0.25),
    ("tome", {"r": BOTH}, {}, 0.5, 48.8, 0.60, 0.10),
    ("crossget", {"r": {"vision": 34, "text": 4}}, {}, 0.5, 49.2, 0.55, 0.05),
    ("tome", {"r": 53}, {}, 0.5, 33.1, 1.20, 0.20),
    ("tome", {"r": 64}, {}, 0.5, 30.4, 1.50, 0.30),
    ("evit", {"keep_rate": 0.35, "layers": [1, 3, 5]}, {}, 0.5, 33.0, 2.40, 0.60),
    ("crossget", {"r": 64}, NO_GUIDE, 0.0, 33.2, 1.30, 0.25),
    ("crossget", {"r": 64}, NO_ENSEMBLE, 0.0, 33.3, 1.25, 0.20),
    ("crossget", {"r": 64}, {}, 0.0, 33.4, 1.40, 0.28),
    ("crossget", {"r": 64}, {}, 0.5, 33.4, 1.40, 0.22),
]
SEEDS = (0, 1, 2)
WHOLE = SPECS[7]  # crossget r=34 with its loss


def record(
    spec: Spec,
    seed: int | None = None,
    *,
    recipe: dict[str, Any] | None = None,
    created: str = "2026-01-01",
    speedup: float = 1.5,
) -> Record:
    """One cell: fine-tuned with `seed`, or as it is."""
    method, budget, params, weight, share, before, after = spec
    every = {**budget, **params}
    name = "-".join([method, *(f"{k}{v}" for k, v in every.items()), str(weight), str(seed)])
    model = BASE if seed is None else f"runs/{name}"
    provenance: dict[str, Any] = {"weights": "trained here", "how": "measured"}
    if seed is not None:
        about = {"model": BASE, "method": method, "budget": budget, "params": params}
        about |= {"weight": weight, "seed": seed, "epochs": 0.6, "steps": 133, "rank": 8}
        provenance |= {"weights": "fine-tuned", "training": about | (recipe or {})}
    label = f"{method} {every}"
    cell = Cell("tuned", model, TASK, method, every, label, "cpu", 0, None, method == "none")
    key = hashlib.sha256(f"{name}{recipe}{created}".encode()).hexdigest()
    total = int(1e6 * share)
    return Record(
        key=key,
        status="ok",
        reason=None,
        cell=cell,
        accuracy=accuracy(before if seed is None else after, name),
        cost=Cost(
            Macs(total, 1000, total, 100_000_000, "image encoder and text encoder"),
            tokens=tokens(budget),
            latency=[timed(batch, speedup + 0.01 * batch) for batch in (1, 16)],
        ),
        provenance=provenance,
        env={"machine": "box", "cpu": "Some CPU"},
        command="benchmarks/ablation.py",
        created=f"{created}T00:00:00Z",
        seconds=1.0,
    )


def timed(batch: int, speed: float) -> Latency:
    return Latency(
        batch, "float32", "sdpa", "cpu", 2, [1.0], [1.5], 1.0, 1.1, 1.2, 100.0,
        Speedup(speed, (speed - 0.1, speed + 0.1)),
    )  # fmt: skip


def tokens(budget: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    value = next(iter(budget.values()), 0)
    less = value if isinstance(value, dict) else {"vision": value, "text": 0}
    return {
        "vision": [(9, 9), (9, 5 if less["vision"] else 9)],
        "text": [(24, 24), (24, 20 if less["text"] else 24)],
    }


def accuracy(loss: float, name: str) -> Accuracy:
    rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    outcomes, metrics = {}, {}
    for way in ("i2t", "t2i"):
        hard = np.random.default_rng(len(way) + (way == "i2t")).exponential(4, SAMPLES)
        ranks = np.floor(hard + 2 * loss + rng.normal(0, 0.3, SAMPLES)).clip(0).astype(int)
        outcomes[f"rank_{way}"] = ranks.tolist()
        for k in (1, 5, 10):
            value = 100 * float(np.mean(ranks < k))
            metrics[f"{way}_r{k}"] = Metric(value, "%", (value - 2.5, value + 2.5), SAMPLES)
    return Accuracy("i2t_r1", metrics, outcomes)


def everything(specs: Iterable[Spec] = tuple(SPECS), seeds: Iterable[int] = SEEDS) -> list[Record]:
    specs, found = list(specs), {}
    for spec in specs:
        found[str(spec[:3])] = record(spec)
    trained = [record(spec, seed) for spec in specs for seed in seeds]
    return [*found.values(), *trained]


def write(records: Iterable[Record], root: Path) -> Path:
    store = Store(root)
    for one in records:
        store.write(one)
    return root


def study_of(records: list[Record]) -> studies.Study:
    (study,) = studies.studies(records)
    return study


def setting_of(study: studies.Study, method: str, weight: float, **params: Any) -> studies.Setting:
    (one,) = [
        s for s in study.settings if (s.method, s.params, s.weight) == (method, params, weight)
    ]
    return one


def recalls(one: Record) -> float:
    return float(np.mean([m.value for m in one.accuracy.metrics.values()]))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return everything()


@pytest.fixture(scope="module")
def study(records: list[Record]) -> studies.Study:
    return study_of(records)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)


@pytest.fixture(scope="module")
def report(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = write(records, tmp_path_factory.mktemp("results"))
    return build([results], tmp_path_factory.mktemp("report") / "out")


def rows_of(report: Path, name: str) -> list[dict[str, str]]:
    path = report.parent / "tables" / f"tuned--embedded-clip-emoji--emoji-retrieval--{name}.csv"
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str], name: str) -> tuple[float, ...]:
    return tuple(float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))


def by_hand(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and t interval, by scipy."""
    own = list(values)
    place = {"loc": np.mean(own), "scale": scipy_stats.sem(own)}
    low, high = scipy_stats.t.interval(0.95, len(own) - 1, **place)
    return float(np.mean(own)), float(low), float(high)


def ends(found: estimates.Estimate | None) -> tuple[Any, ...]:
    assert found is not None
    return found.value, found.low, found.high


def trained(records: list[Record], spec: Spec) -> dict[int, Record]:
    method, budget, params, weight, *_ = spec
    about = {"method": method, "budget": budget, "params": params, "weight": weight}
    found = [(one.provenance.get("training") or {}, one) for one in records]
    return {t["seed"]: one for t, one in found if about.items() <= t.items()}


def untrained(records: list[Record], spec: Spec) -> Record:
    wanted = (BASE, spec[0], {**spec[1], **spec[2]})
    (found,) = [r for r in records if (r.cell.model, r.cell.method, r.cell.params) == wanted]
    return found


def gaps(records: list[Record], ours: Spec, theirs: Spec) -> list[float]:
    """Differences in mean recall of two trained settings, by seed."""
    left, right = trained(records, ours), trained(records, theirs)
    return [recalls(left[seed]) - recalls(right[seed]) for seed in SEEDS]


def per_sample(one: Record) -> Any:
    ranks = [np.asarray(one.accuracy.outcomes[f"rank_{way}"]) for way in ("i2t", "t2i")]
    return 100 * np.mean([rank < k for rank in ranks for k in (1, 5, 10)], axis=0)


@pytest.mark.parametrize("metric", ["mean_recall", "i2t_r1"])
def test_every_setting_has_its_means_and_intervals(
    report: Path, records: list[Record], metric: str
) -> None:
    def value(one: Record) -> float:
        return recalls(one) if metric == "mean_recall" else one.accuracy.metrics[metric].value

    rows = rows_of(report, metric)
    assert len(rows) == len(SPECS)
    reference = {seed: value(one) for seed, one in trained(records, SPECS[0]).items()}
    for spec in SPECS:
        loss = f"{spec[3]}".removesuffix(".0") if spec[0] == "crossget" else ""
        params = {**spec[1], **spec[2]}
        name = (series(spec[0], params), budget(params), loss)
        (row,) = [r for r in rows if (r["method"], r["setting"], r["own_loss"]) == name]
        own = {seed: value(one) for seed, one in trained(records, spec).items()}
        plain = value(untrained(records, spec))
        assert sorted(own) == [0, 1, 2] and float(row["seeds"]) == 3
        assert float(row["untrained"]) == pytest.approx(plain)
        assert numbers(row, "trained") == pytest.approx(by_hand(own.values()))
        assert numbers(row, "gain") == pytest.approx(by_hand(v - plain for v in own.values()))
        if spec[0] != "none":
            expected = by_hand(own[seed] - reference[seed] for seed in own)
            assert numbers(row, "delta") == pytest.approx(expected)
        assert float(row["gmacs"]) == pytest.approx(spec[4] / 1000)
        assert float(row["gmacs_pct_of_unreduced"]) == pytest.approx(spec[4])


def test_untrained_intervals_are_over_samples(report: Path, records: list[Record]) -> None:
    plain = untrained(records, SPECS[3])
    (row,) = [r for r in rows_of(report, "i2t_r1") if r["setting"] == "keep_rate=0.5"]
    metric = plain.accuracy.metrics["i2t_r1"]
    assert numbers(row, "untrained") == pytest.approx((metric.value, *(metric.ci95 or ())))
    (row,) = [r for r in rows_of(report, "mean_recall") if r["setting"] == "keep_rate=0.5"]
    assert numbers(row, "untrained") == pytest.approx(by_hand(per_sample(plain)))


def test_no_interval_leaves_the_axes() -> None:
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    found = [estimates.Estimate(50.0, 40.0, 60.0, 3), estimates.Estimate(52.0, None, None, 1)]
    figures._trained(ax, [1.0, 2.0], found, style.KNOWN["tome"], 2.0)
    low, high = ax.get_ylim()
    assert low < 40 and high > 60


def test_rows_go_by_band_then_accuracy_and_name_the_towers(report: Path) -> None:
    rows = rows_of(report, "mean_recall")
    assert rows[0]["method"] == "none" and rows[0]["towers"] == ""
    shares = [float(r["gmacs_pct_of_unreduced"]) for r in rows]
    places = [
        (-math.floor(share / 10 + 0.5), -float(r["trained"]))
        for share, r in zip(shares, rows, strict=True)
    ]
    assert places[1:] == sorted(places[1:])
    towers = {row["setting"]: row["towers"] for row in rows}
    assert towers["r=34"] == "vision" and towers["r=vision:29+text:4"] == "vision+text"


def test_printed_numbers_are_those_of_the_csv(report: Path) -> None:
    rows = rows_of(report, "mean_recall")
    text = report.read_text().partition("### Every setting: mean recall")[2].partition("[CSV]")[0]
    assert "MACs: image encoder and text encoder. Untrained: half" in text
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    heads = [head.strip() for head in lines[0]]
    for row, line in zip(rows, lines[2:], strict=True):
        cells = {head: cell.strip(" *") for head, cell in zip(heads, line, strict=True)}
        mean, low, high = numbers(row, "trained")
        assert cells["mean recall, trained"] == f"{mean:.1f} ±{(high - low) / 2:.1f}"
        shown = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*numbers(row, "gain"))
        noise = numbers(row, "gain")[1] <= 0 <= numbers(row, "gain")[2]
        assert cells["Gain"] == shown.replace("-", "−") + (" ≈" if noise else "")
        assert cells["Seeds"] == "3"


def test_the_ablation_pairs_each_step_with_the_one_before(
    report: Path, records: list[Record]
) -> None:
    steps = [SPECS[2], *SPECS[4:8]]
    rows = rows_of(report, "ablation-1")
    # a spreadsheet would read a plus as the beginning of a formula
    assert [row["step"].removeprefix("'") for row in rows] == [
        "bipartite matching",
        "complete graph",
        "+ cross-guided matching",
        "+ cross-guided ensemble",
        "+ alignment loss",
        "at the same MACs: tome r=29",
        "unreduced: none",
    ]
    assert rows[0]["mean_recall_trained_step"] == ""
    for row, spec, last in zip(rows[1:], steps[1:], steps, strict=False):
        expected = by_hand(gaps(records, spec, last))
        assert numbers(row, "mean_recall_trained_step") == pytest.approx(expected)
        assert float(row["gmacs"]) == pytest.approx(spec[4] / 1000)
    pair = per_sample(untrained(records, steps[2])), per_sample(untrained(records, steps[1]))
    found = scipy_stats.ttest_rel(*pair).confidence_interval(0.95)
    step = numbers(rows[2], "mean_recall_untrained_step")
    width = found.high - found.low
    assert step[0] == pytest.approx(np.mean(pair[0] - pair[1]))
    assert step[1:] == pytest.approx((found.low, found.high), abs=0.05 * width)
    assert rows[4]["mean_recall_untrained"] == rows[4]["mean_recall_untrained_step"] == ""


def test_differences_pair_the_seeds_that_both_have() -> None:
    ours, theirs = {0: 11.0, 1: 31.0, 2: 52.0, 3: 99.0}, {2: 50.0, 0: 10.0, 1: 30.0, 7: 0.0}
    found = estimates.difference_over_seeds(ours, theirs)
    assert found is not None and found.n == 3
    assert ends(found) == pytest.approx(by_hand([1.0, 1.0, 2.0]))
    assert estimates.difference_over_seeds(ours, {9: 1.0}) is None
    alone = estimates.difference_over_seeds(ours, {3: 90.0})
    assert alone == estimates.Estimate(9.0, None, None, 1)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.1, 0.9, "holds"), (-0.9, -0.1, "does not hold"), (-0.1, 0.9, "cannot be told apart")],
)
def test_verdicts(low: float, high: float, said: str) -> None:
    assert claims.verdict(estimates.Estimate((low + high) / 2, low, high, 3)) == said
    assert claims.verdict(estimates.Estimate(1.0, None, None, 1)) == "one seed, no verdict"
    assert claims.verdict(None) == "not measured"


def test_claims_compare_the_right_settings(records: list[Record], study: studies.Study) -> None:
    graph, matching, ensemble = SPECS[4:7]
    expected = [
        ("The complete graph beats bipartite matching at the same r", graph, SPECS[2]),
        ("The complete graph beats bipartite matching at the same MACs", graph, SPECS[1]),
        ("Cross-guided matching helps", matching, graph),
        ("Cross-guided ensemble helps", ensemble, matching),
        ("The alignment loss helps", WHOLE, ensemble),
        ("Guidance and its loss beat the matching without them", WHOLE, graph),
        ("Trained crossget beats trained tome at equal MACs", WHOLE, SPECS[1]),
    ]
    said = claims.sentences(study)
    for (claim, ours, theirs), sentence in zip(expected, said, strict=False):
        value, low, high = by_hand(gaps(records, ours, theirs))
        verdict = "holds" if low > 0 else "does not hold" if high < 0 else "cannot be told apart"
        text = f"**{claim}**: *{verdict}* at r=34 (53 % of the MACs, vision): "
        text += f"{value:+.2f} [{low:+.2f}, {high:+.2f}] over 3 seeds"
        assert sentence.replace("−", "-").startswith(text)
    assert len(said) == 8 and {"holds", "does not hold", "cannot be told apart"} <= {
        word for text in said for word in re.findall(r"\*([a-z ]+)\*", text)
    }


def test_training_narrows_the_gap_by_what_is_left_of_it(
    records: list[Record], study: studies.Study
) -> None:
    found = [f for f in claims.findings(study) if "narrows" in f.claim]
    (own,) = [f for f in found if f.where.startswith("r=34 (")]
    before = recalls(untrained(records, WHOLE)) - recalls(untrained(records, SPECS[0]))
    after = gaps(records, WHOLE, SPECS[0])
    assert ends(own.by_metric("mean_recall")) == pytest.approx(by_hand(g - before for g in after))
    assert own.left and ends(own.left("mean_recall")) == pytest.approx(by_hand(after))


def test_both_towers_are_compared_with_both_towers(study: studies.Study) -> None:
    (chain,) = [c for c in chains.chains(study) if c.towers == "vision+text"]
    assert chain.matched and chain.matched.params == {"r": BOTH}
    assert not chain.is_ablation  # only the whole method was trained there


def test_nothing_matches_where_no_macs_are_alike(records: list[Record]) -> None:
    study = study_of([r for r in records if r.cell.params != {"r": 29}])
    (chain,) = [c for c in chains.chains(study) if c.budget == {"r": 34}]
    assert chain.matched is None  # tome r=34 is 6 points cheaper
    found = [f for f in claims.findings(study) if f.where == chain.where]
    said = {f.claim: claims.verdict(f.by_metric("mean_recall")) for f in found}
    assert said["Trained crossget beats trained tome at equal MACs"] == "not measured"
    assert said["The complete graph beats bipartite matching at the same MACs"] == "not measured"
    assert said["The complete graph beats bipartite matching at the same r"] == "holds"


def test_a_missing_step_is_said_and_not_jumped(records: list[Record]) -> None:
    study = study_of([r for r in records if r.cell.params != {"r": 34, **NO_ENSEMBLE}])
    (table,) = [t for where, t in tables.chain_tables(study) if where.startswith("r=34")]
    assert "Not measured: cross-guided matching (untrained and trained)." in table.caption
    rows = pd.DataFrame(list(table.rows)).set_index("step")
    assert np.isnan(rows.loc["+ cross-guided matching", "mean_recall_trained"])
    for kind in ("trained", "untrained"):
        assert np.isnan(rows.loc["+ cross-guided ensemble", f"mean_recall_{kind}_step"])
    assert rows.loc["+ alignment loss", "mean_recall_trained_step"] > 0
    text = "\n".join(claims.sentences(study))
    assert "**Cross-guided matching helps**: *not measured* at r=34" in text


def test_only_the_whole_method_trained_lends_the_ensemble_its_untrained_side(
    records: list[Record],
) -> None:
    gone = {one.key for one in trained(records, SPECS[6]).values()}
    study = study_of([r for r in records if r.key not in gone])
    (chain,) = [c for c in chains.chains(study) if c.budget == {"r": 34}]
    assert chain.missing == ["cross-guided ensemble (trained)"]
    step = chain.step(chains.ENSEMBLE)
    assert step and step.untrained == untrained(records, WHOLE) and not step.trained


def test_missing_seeds_leave_the_pairs_that_are_there(records: list[Record]) -> None:
    own, foil = trained(records, WHOLE), trained(records, SPECS[6])

    def without(*seeds: int) -> studies.Study:
        return study_of([r for r in records if r.key not in {own[s].key for s in seeds}])

    text = "\n".join(claims.sentences(without(1, 2)))
    assert "**The alignment loss helps**: *one seed, no verdict* at r=34" in text
    study = without(1)
    pair = [setting_of(study, "crossget", weight, r=34) for weight in (0.5, 0.0)]
    found = claims.between(pair[0], pair[1], "i2t_r1")
    values = [
        {s: one.accuracy.metrics["i2t_r1"].value for s, one in x.items()} for x in (own, foil)
    ]
    assert ends(found) == pytest.approx(by_hand(values[0][s] - values[1][s] for s in (0, 2)))


def test_speedups_are_medians_over_seeds_with_their_range() -> None:
    fast = [record(WHOLE, seed, speedup=x) for seed, x in zip(SEEDS, (1.2, 1.6, 1.3), strict=True)]
    study = study_of([record(WHOLE, speedup=9.0), *fast])
    (row,) = tables.settings_table(study, "i2t_r1").rows
    found = [row[name] for name in ("speedup_x", "speedup_x_low", "speedup_x_high")]
    assert found == pytest.approx([1.46, 1.36, 1.76])  # at batch 16


def test_recipes_machines_and_limits_are_not_mixed() -> None:
    few = [SPECS[0], WHOLE]
    longer = [record(spec, seed, recipe={"steps": 999}) for spec in few for seed in SEEDS]
    merged = studies.studies([*everything(few), *longer])
    assert [len(one.settings) for one in merged] == [2, 2]
    assert len({one.name for one in merged}) == 2
    own = [one for one in everything(few) if one.cell.model != BASE]
    elsewhere = [replace(record(spec), env={"machine": "other"}) for spec in few]
    limited = [replace(one, cell=replace(one.cell, limit=10)) for one in map(record, few)]
    (alone,) = studies.studies([*own, *elsewhere, *limited])
    assert all(one.untrained is None for one in alone.settings)


def test_a_seed_that_was_trained_twice_counts_once() -> None:
    old, new = record(WHOLE, 0), record(WHOLE, 0, created="2026-02-01")
    cell = replace(new.cell, model="runs/again")
    new = replace(new, cell=cell, accuracy=record(SPECS[3]).accuracy)
    (one,) = study_of([old, new]).settings
    assert one.scores("mean_recall") == {0: pytest.approx(recalls(new))}


def test_without_accuracy_or_cost_the_rest_is_there(records: list[Record], tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"accuracy": Accuracy(None, reason="no data"), "cost": Cost()}
    bare = [replace(r, **nothing) if i % 3 == 0 else r for i, r in enumerate(records)]
    text = build([write(bare, tmp_path / "r")], tmp_path / "out").read_text()
    assert "## Fine-tuned: embedded:clip-emoji" in text and "nan" not in text
    empty = [replace(r, **nothing) for r in records]
    text = build([write(empty, tmp_path / "e")], tmp_path / "out").read_text()
    assert "## Fine-tuned: embedded:clip-emoji" in text and "nan" not in text


@pytest.mark.usefixtures("no_figures")
def test_the_general_comparison_is_as_without_fine_tuned_records(
    records: list[Record], tmp_path: Path
) -> None:
    plain = [one for one in records if one.cell.model == BASE]
    old = build([write(plain, tmp_path / "a")], tmp_path / "old").parent
    new = build([write(records, tmp_path / "b")], tmp_path / "new").parent
    texts = [(path / "report.md").read_text() for path in (old, new)]
    start, end = f"\n## {BASE} ·", "\n## "
    parts = [text[text.index(start) + len(end) :].partition(end)[0] for text in texts]
    assert parts[0] == parts[1]
    assert "Fine-tuned" not in texts[0] and ", fine-tuned" not in texts[0]
    names = [{path.name for path in folder.rglob("*.*")} for folder in (old, new)]
    added = names[1] - names[0]
    assert added and all("tuned--" in name for name in added)
    for path in old.rglob("*--*.csv"):  # not the table of origins, which counts all records
        pair = [pd.read_csv(one) for one in (path, new / path.relative_to(old))]
        # Fine-tuned models tell more of what the suite's measurement says of two equal things.
        pair = [table.filter(regex="^(?!.*aa_half_x)") for table in pair]
        pd.testing.assert_frame_equal(*pair, check_exact=True)


@pytest.mark.usefixtures("no_figures")
def test_the_package_alone_tables_fine_tuned_models(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One table for all models of one fine-tuning, each compared with its seed's unreduced one."""
    monkeypatch.delitem(makers._MAKERS, (sections.__name__, "sections"))
    longer = [record(spec, 0, recipe={"steps": 999}) for spec in (SPECS[0], WHOLE)]
    few = [replace(one, cell=replace(one.cell, model=f"{one.cell.model}-l")) for one in longer]
    out = build([write([*records, *few], tmp_path / "r")], tmp_path / "out").parent
    text = (out / "report.md").read_text()
    heads = re.findall(rf"^## ({BASE}, fine-tuned.*)$", text, re.M)
    assert len(heads) == 2 and "steps 999" in heads[1] and "## Fine-tuned" not in text
    (path,) = out.glob("tables/*fine-tuned*steps-133*--main.csv")
    rows = pd.read_csv(path).set_index("setting")
    assert len(rows) == len(SPECS) * len(SEEDS)
    both = [f"r=34, loss {weight}, seed 2" for weight in (0.0, 0.5)]
    assert set(both) < set(rows.index)
    whole, base = trained(records, WHOLE)[2], trained(records, SPECS[0])[2]
    values = [one.accuracy.metrics["i2t_r1"].value for one in (whole, base)]
    assert rows.loc[both[1], "accuracy_value"] == pytest.approx(values[0])
    assert rows.loc[both[1], "delta"] == pytest.approx(values[0] - values[1])
    assert "each row is one training (epochs 0.6, steps 133, rank 8): no interval" in text


@pytest.mark.usefixtures("no_figures")
def test_a_fine_tuned_model_that_was_measured_otherwise_too_is_compared(tmp_path: Path) -> None:
    own, plain = record(WHOLE, 0), record(SPECS[0])
    cell = replace(plain.cell, model=own.cell.model)
    other = replace(plain, key="0" * 64, cell=cell, provenance=own.provenance)
    assert grouping.training(own) and not grouping.training(other)
    results = write([*everything([SPECS[0]], []), own, other], tmp_path / "r")
    text = build([results], tmp_path / "out").read_text()
    assert re.search(r"^## runs/crossget-r34.*emoji-retrieval$", text, re.M)
    assert "## Fine-tuned: embedded:clip-emoji" in text


def test_all_files_are_linked_and_the_same_in_any_order(
    report: Path, records: list[Record], tmp_path: Path
) -> None:
    again = build([write(records[::-1], tmp_path / "r")], tmp_path / "out").parent
    files = {path.relative_to(again).as_posix() for path in again.rglob("*.*")}
    links = re.findall(r"\]\(((?:figures|tables)/[^)]+)\)", (again / "report.md").read_text())
    assert {*links, "report.md", "index.html"} == files
    assert len([name for name in files if "/tuned--" in name and name.endswith(".png")]) == 2
    for name in files:
        assert (again / name).read_bytes() == (report.parent / name).read_bytes(), name


def test_other_towers_and_other_parameters_do_not_count() -> None:
    both = ("tome", {"r": BOTH}, {}, 0.5, WHOLE[4], 0.0, 0.0)
    (chain,) = chains.chains(study_of(everything([SPECS[0], WHOLE, both])))
    assert chain.matched is None  # the same MACs, but of both towers
    own = record(SPECS[1], 0)
    assert grouping.training(own)
    assert not grouping.training(replace(own, cell=replace(own.cell, params={"r": 30})))
    same = replace(own, cell=replace(own.cell, params={"r": 29.0}))
    assert grouping.training(same)


def test_losses_are_drawn_a_line_a_setting_and_a_band_of_seeds() -> None:
    specs = [SPECS[1], SPECS[4], SPECS[7]]
    lines = {seed: [(10, 3.0 + seed), (20, 1.0 + seed), (30, 1.0)][: 3 - seed] for seed in (0, 1)}
    found = [record(spec, s, recipe={"losses": lines[s]}) for spec in specs for s in lines]
    assert "losses" not in study_of(found).about
    (plot,) = [p for p in figures.plots(study_of(found)) if p.name.endswith("--loss")]
    (ax,) = plot.draw().axes
    for line in ax.lines:  # of two seeds, as far as both go
        assert line.get_xydata().tolist() == [[10, 3.5], [20, 1.5]]
    assert len(ax.lines) == len(ax.collections) == 3
    assert sum(line.get_linestyle() == "-" for line in ax.lines) == 2  # the other without a part
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(p) for p in band} >= {(10, 3), (10, 4), (20, 1), (20, 2)}
    assert not any(p.name.endswith("--loss") for p in figures.plots(study_of(everything())))


def test_what_could_have_been_seen_is_seen_four_times_in_five() -> None:
    found = estimates.over_seeds([1.0, 2.0, 4.0])
    shift = estimates.detectable(found)
    spread = float(np.std([1, 2, 4], ddof=1))
    drawn = np.random.default_rng(0).normal(shift, spread, (3, 40_000))
    assert np.mean(scipy_stats.ttest_1samp(drawn, 0).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert estimates.detectable(estimates.over_seeds([1.0])) is None
    assert estimates.detectable(None) is None


def test_claims_say_what_could_have_been_seen(study: studies.Study) -> None:
    table = claims.claims_table(study)
    assert table is not None
    for row, finding in zip(table.rows, claims.findings(study), strict=True):
        own = estimates.detectable(finding.by_metric(study.verdict))
        assert row[f"{study.verdict}_detectable"] == own
    assert all(
        "which could have seen" in text for text in claims.sentences(study) if "over 3" in text
    )
