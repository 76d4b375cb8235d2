"""Random reduction as a judge in the report: at a method's own MACs, over its seeds, with marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from test_report import stable_key, tables_in, write

from bench.records.record import Accuracy, Cell, Cost, Macs, Metric, Record
from bench.report import build
from bench.report.data import frame, stats
from bench.report.data.differences import LEGEND
from bench.report.page import page_data
from bench.report.tables import latex
from bench.report.tables.comparison import main_table
from bench.report.tables.metrics import accuracy_table

N = 400
Tokens = dict[str, list[tuple[int, int]]]
INSIDE: Tokens = {"vision": [(100, 100), (100, 60)]}
FULL: Tokens = {"vision": [(100, 100), (100, 100)]}


def hits(share: float, seed: int, n: int = N) -> list[int]:
    """Outcomes of which about a share is right, on samples that are equally hard for everyone."""
    hard = np.random.default_rng(0).random(n)
    luck = np.random.default_rng(seed).normal(0, 0.1, n)
    right: list[int] = (hard + luck < share).astype(int).tolist()
    return right


def scored(each: Sequence[list[int]]) -> Accuracy:
    values = [100 * float(np.mean(one)) for one in each]
    metric = Metric(float(np.mean(values)), "%", (0.0, 100.0), len(each[0]))
    first, *more = ({"correct": one} for one in each)
    return Accuracy("top1", {"top1": metric}, first, None, more, values if more else [])


def cell(
    method: str,
    pct: float,
    *each: list[int],
    tokens: Tokens = INSIDE,
    setting: dict[str, Any] | None = None,
) -> Record:
    params = {"keep_rate": pct / 100} if setting is None else setting
    label = f"{method} {params}"
    own = Cell("t", "m", "t", method, {} if method == "none" else params, label, "cpu", 0, N)
    own = replace(own, baseline=method == "none")
    base = 10**9
    cost = Cost(Macs(round(base * pct / 100), 0, 1, base, "one image"), tokens=tokens)
    env = {"machine": "box"}
    key = stable_key(label)
    return Record(key, "ok", None, own, scored(each), cost, {}, env, "run", "2026-01-01", 1.0)


def unreduced() -> Record:
    return cell("none", 100, hits(0.9, 1), tokens=FULL)


def judged(*records: Record, method: str = "evit") -> dict[str, Any]:
    built = frame.build(records)
    (row,) = [r for own in built.by_group.values() for r in own if r["method"] == method]
    return row


def five(share: float, start: int) -> list[list[int]]:
    return [hits(share, start + seed) for seed in range(5)]


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("luck", [0.0, 0.03])
def test_methods_as_good_as_random_are_seldom_called_better_or_worse(luck: float) -> None:
    """The level is kept where a seed moves all samples; by one seed's samples alone it is not."""
    rng = np.random.default_rng(3)
    trials, wrong, missed, by_one = 1500, 0, 0, 0
    for _ in range(trials):
        chance = rng.uniform(0.3, 1.0, N)
        method = (rng.random(N) < chance).astype(float)
        moved = chance + rng.normal(0, luck, (5, 1))
        random = (rng.random((5, N)) < moved).astype(float)
        found = stats.paired_over_seeds(method[None], random)
        wrong += found.p < 0.05
        missed += not found.low <= 0 <= found.high
        by_one += stats.paired_difference(method, random[0]).p < 0.05
    assert 0.03 <= wrong / trials <= 0.065
    assert missed == wrong
    assert (by_one / trials > 0.12) == (luck > 0)


@pytest.mark.parametrize("step", [0.0, 0.05])
def test_the_difference_over_seeds_by_hand(step: float) -> None:
    ours = np.array([hits(0.8, 5)], float)
    theirs = np.array([hits(0.6 + step * seed, 20 + seed) for seed in range(5)], float)
    found = stats.paired_over_seeds(ours, theirs)
    gap = ours - theirs
    assert found.value == pytest.approx(gap.mean()) and found.n == N
    rest = gap - gap.mean(0) - gap.mean(1, keepdims=True) + gap.mean()
    of_seeds = max(gap.mean(1).var(ddof=1) - (rest**2).sum() / (4 * (N - 1)) / N, 0) / 5
    with_two = np.append(gap.mean(0), (1, -1))
    of_samples = with_two.var(ddof=1) / (N + 2)
    variance = of_samples + of_seeds
    freedom = variance**2 / (of_samples**2 / (N - 1) + of_seeds**2 / 4)
    assert (4 < freedom < 20) == (step > 0)  # from that of five seeds to that of many samples
    half = t.ppf(0.975, freedom) * variance**0.5
    assert (found.high - found.low) / 2 == pytest.approx(half)
    assert found.p == pytest.approx(2 * t.sf(with_two.mean() / variance**0.5, freedom))
    assert (found.low + found.high) / 2 == pytest.approx(with_two.mean())
    back = stats.paired_over_seeds(theirs, ours)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )


def test_seeds_that_agree_add_nothing_and_seeds_that_differ_do() -> None:
    ours = np.array([hits(0.8, 5)], float)
    same = np.repeat([hits(0.7, 9)], 5, axis=0).astype(float)
    apart = same.copy()
    for seed in range(5):  # the same mean, five seeds of unequal luck
        rows = np.flatnonzero(same[seed])[: 40 * seed]
        apart[seed, rows] = 0
    narrow, wide = (stats.paired_over_seeds(ours, base) for base in (same, apart))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_one_seed_is_the_test_of_before_and_odd_shapes_are_refused() -> None:
    ours, base = np.array(hits(0.8, 5), float), np.array(hits(0.75, 6), float)
    assert stats.paired_over_seeds(ours[None], base[None]) == stats.paired_difference(ours, base)
    flat = stats.paired_over_seeds(np.full((1, 9), 0.5), np.full((5, 9), 0.25))
    assert (flat.value, flat.low, flat.high, flat.p) == (0.25, 0.25, 0.25, 0.0)
    for shape in ((2, N), (5, N - 1), (N,)):
        with pytest.raises(ValueError, match="cannot be paired"):
            stats.paired_over_seeds(np.ones(shape), np.ones((5, N)))


# --- which random reduction a method is judged by -------------------------------------------------


def test_random_is_interpolated_to_the_own_macs_of_a_method() -> None:
    low, high = cell("random", 50, *five(0.5, 100)), cell("random", 70, *five(0.8, 200))
    ours = cell("evit", 65, hits(0.75, 3))
    row = judged(unreduced(), low, high, ours)
    means = [r.accuracy.metrics["top1"].value for r in (low, high)]
    rival = 0.25 * means[0] + 0.75 * means[1]
    assert row["over_random"] == pytest.approx(ours.accuracy.metrics["top1"].value - rival)
    assert row["random_setting"] == "keep_rate=0.5 to keep_rate=0.7" and row["random_seeds"] == 5
    seeds = [
        0.25 * np.array(a["correct"]) + 0.75 * np.array(b["correct"])
        for a, b in zip(outcomes(low), outcomes(high), strict=True)
    ]
    found = stats.paired_over_seeds(np.array([hits(0.75, 3)], float), np.stack(seeds))
    assert (row["over_random_low"], row["over_random_high"], row["over_random_p"]) == pytest.approx(
        (100 * found.low, 100 * found.high, found.p)
    )


def outcomes(record: Record) -> list[dict[str, list[Any]]]:
    return [record.accuracy.outcomes, *record.accuracy.repeats]


def test_the_unreduced_model_is_the_neighbour_at_all_macs() -> None:
    row = judged(unreduced(), cell("random", 80, *five(0.5, 100)), cell("evit", 85, hits(0.6, 3)))
    base, random = (100 * np.mean(x) for x in (hits(0.9, 1), five(0.5, 100)))
    rival = 0.75 * random + 0.25 * base
    assert row["over_random"] == pytest.approx(100 * np.mean(hits(0.6, 3)) - rival)
    assert row["random_setting"] == "keep_rate=0.8 to none"
    assert judged(unreduced(), method="none")["over_random"] is None
    # Another reference than the unreduced model changes nothing of this.
    other = frame.build(
        [unreduced(), cell("random", 80, *five(0.5, 100)), cell("evit", 85, hits(0.6, 3)),
         cell("tome", 60, hits(0.7, 4))], baseline="tome",
    )  # fmt: skip
    rows = {r["method"]: r for own in other.by_group.values() for r in own}
    assert rows["evit"]["over_random"] == pytest.approx(row["over_random"])
    assert rows["none"]["over_random"] is rows["tome"]["over_random"] is None


def test_nothing_is_extrapolated() -> None:
    random = [cell("random", pct, *five(0.6, 100 + pct)) for pct in (50, 60)]
    for pct, reason in ((48.5, None), (45, "fewer MACs than any random setting has"),
                        (39, "no random at a like budget"), (71, "no random at a like budget"),
                        (69, None)):  # fmt: skip
        row = judged(unreduced(), *random, cell("evit", pct, hits(0.7, 3)))
        assert row["over_random_reason"] == reason
        assert (row["over_random"] is None) == (reason is not None)
        if pct == 48.5:  # the cheapest itself
            mean = random[0].accuracy.metrics["top1"].value
            assert row["over_random"] == pytest.approx(100 * np.mean(hits(0.7, 3)) - mean)
            assert row["random_setting"] == "keep_rate=0.5"


def test_random_reduces_where_the_method_does() -> None:
    """Of two curves, ahead of and inside a language model, a point between them is on neither."""
    full: Tokens = {"projector": [(36, 36)], "language": [(50, 50), (50, 50)]}
    inside = full | {"language": [(50, 50), (50, 30)]}
    ahead: Tokens = {"projector": [(36, 18)], "language": [(32, 32), (32, 32)]}
    base = cell("none", 100, hits(0.9, 1), tokens=full)
    randoms = [
        cell("random", 58, *five(0.4, 1), tokens=ahead, setting={"at": "ahead"}),
        cell("random", 70, *five(0.5, 2), tokens=ahead, setting={"at": "ahead, more"}),
        cell("random", 64, *five(0.8, 3), tokens=inside, setting={"at": "inside"}),
        cell("random", 72, *five(0.85, 4), tokens=inside, setting={"at": "inside, more"}),
    ]
    cut: Tokens = {"projector": [(36, 36)], "language": [(32, 32), (32, 32)]}  # ahead of block 0
    for tokens, setting in (
        (inside, "random, at inside to random, at inside, more"),
        (ahead, "random, at ahead to random, at ahead, more"),
        (cut, "random, at ahead to random, at ahead, more"),
        ({"vision": [(9, 5)], **ahead}, "random, at ahead to random, at ahead, more"),
    ):
        row = judged(base, *randoms, cell("evit", 66, hits(0.7, 3), tokens=tokens))
        assert row["random_setting"] == setting


def test_metrics_that_samples_do_not_add_up_to_keep_their_reason() -> None:
    random = cell("random", 60, *five(0.6, 9))
    ours = cell("evit", 60, hits(0.7, 3))
    bare = replace(random, accuracy=replace(random.accuracy, outcomes={}, repeats=[]))
    assert judged(unreduced(), bare, ours)["over_random_reason"] == "no paired outcomes"
    metric = replace(random.accuracy.metrics["top1"], value=3.0)
    wrong = replace(random, accuracy=replace(random.accuracy, metrics={"top1": metric}))
    row = judged(unreduced(), wrong, ours)
    assert row["over_random_reason"] == "outcomes do not reproduce the metric"
    assert row["over_random_p"] is None and row["below_random"] is None


# --- marks ----------------------------------------------------------------------------------------


def table_of(share: float, *seeds: list[int]) -> tuple[frame.Frames, str]:
    built = frame.build([unreduced(), cell("random", 60, *seeds), cell("evit", 60, hits(share, 3))])
    (group,) = built.groups()
    return built, group


@pytest.mark.parametrize(
    ("share", "mark", "fields"),
    [(0.3, "‡", (False, True)), (0.61, "†", (True, False)), (0.9, None, (False, False))],
)
def test_worse_than_random_has_its_own_mark(
    share: float, mark: str | None, fields: tuple[bool, bool]
) -> None:
    built, group = table_of(share, *five(0.6, 9))
    (row,) = [r for r in built.by_group[group] if r["method"] == "evit"]
    assert (row["over_random_is_noise"], row["below_random"]) == fields
    assert all(
        {"over_random_is_noise", "random_seeds"} <= s.keys() for s in built.scores[row["key"]]
    )
    shown = main_table(built, group)
    every = accuracy_table(built, group)
    assert every is not None
    tex = {"†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$"}
    for table in (shown, every):
        (line,) = [text for text in table.texts if "evit" in text]
        assert {one for one in "†‡" if one in "".join(line)} == ({mark} if mark else set())
        (printed,) = [text for text in latex.latex(table).splitlines() if "evit" in text]
        assert [one for one in tex if tex[one] in printed] == ([mark] if mark else [])
    assert LEGEND.count("‡") == 1
    _, cells, _ = page_data.cells(built)
    (of_page,) = [one for one in cells if one["method"] == "evit"]
    assert set(of_page["marks"]) & {"†", "‡"} == ({mark} if mark else set())


def test_the_report_explains_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)
    bad, good = (cell(name, 60, hits(x, 3)) for name, x in (("evit", 0.3), ("tome", 0.9)))
    records = [unreduced(), cell("random", 60, *five(0.6, 9)), bad, good]
    out = build([write(records, tmp_path / "in")], tmp_path / "out")
    text = out.read_text()
    assert "**‡** where it is worse" in text and "five seeds" in text
    assert any("‡" in "".join(row.values()) for table in tables_in(text) for row in table)
    assert "‡: worse than it" in (out.parent / "index.html").read_text()
    tex = [file.read_text() for file in out.parent.rglob("*.tex")]
    assert tex and not any("‡" in one for one in tex)
    assert any(r"$^{\ddagger}$" in one for one in tex)


def test_a_table_says_where_random_has_one_seed() -> None:
    note = "random ran under one seed"
    assert note in main_table(*table_of(0.7, hits(0.6, 9))).caption
    assert note not in main_table(*table_of(0.7, *five(0.6, 9))).caption


def test_the_page_names_the_outcomes_of_further_seeds_and_does_not_hold_them() -> None:
    record = cell("random", 60, *five(0.6, 9))
    leaves = page_data.text(page_data.shortened(record))
    assert leaves.count(f"… {N} values") == 5 and len(leaves) < 2000


def test_random_itself_is_compared_with_the_baseline_over_all_seeds() -> None:
    random = cell("random", 60, *five(0.6, 9))
    row = judged(unreduced(), random, method="random")
    found = stats.paired_over_seeds(np.array(five(0.6, 9), float), np.array([hits(0.9, 1)], float))
    assert row["delta"] == pytest.approx(100 * found.value)
    assert row["delta_low"] == pytest.approx(100 * found.low)
