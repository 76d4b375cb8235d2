"""The figures: what they show is what was measured, and all of them can be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, rankdata
from test_report import METHODS, make, middle, share_of, synthetic, vit, write

from bench.records.record import Record
from bench.report import build
from bench.report.content import content
from bench.report.data import frame
from bench.report.data.budgets import budgets
from bench.report.figures import breakdown, breakeven, drawing, plots, ranks, style, token_lines


def timed(speed: float, fastest: float | None, share: float, deciding: float) -> dict[str, Any]:
    row = {"gmacs_pct_of_unreduced": share, "speedup_x": speed, "fastest_x": fastest}
    return row | {"reduction_share_pct": deciding}


def test_parts_of_the_time_add_up_to_what_was_measured() -> None:
    # 80 % of the time in the same backend; the fastest backend makes that 100 %.
    found = breakdown.parts_of(timed(1.25, 1.0, 50.0, 10.0))
    assert found == pytest.approx((50.0, 8.0, 20.0, 22.0)) and sum(found) == pytest.approx(100)
    # Faster than the MACs allow: their part is what is left.
    found = breakdown.parts_of(timed(4.0, None, 50.0, 20.0))
    assert found == pytest.approx((20.0, 5.0, 0.0, 0.0))
    assert breakdown.parts_of(timed(4.0, None, 50.0, float("nan"))) is None


def test_the_front_holds_what_none_beats() -> None:
    rng = np.random.default_rng(0)
    rows = [{"x": x, "accuracy_value": y} for x, y in rng.random((40, 2))]
    for better in (1, -1):
        expected = [
            row
            for row in rows
            if not any(
                better * other["x"] > better * row["x"]
                and other["accuracy_value"] > row["accuracy_value"]
                for other in rows
            )
        ]
        found = drawing.front(rows, "x", better)
        assert sorted(r["x"] for r in found) == sorted(r["x"] for r in expected)


def tasks(count: int) -> list[Record]:
    """The same methods on several tasks."""
    rng, records = np.random.default_rng(3), []
    for index in range(count):
        for method, settings in METHODS.items():
            for params in settings:
                one = make("embedded:vit-fashion", "fashion-mnist", method, params, rng)
                cell = replace(one.cell, task=f"task-{index}")
                records.append(replace(one, key=f"{index}{one.key}", cell=cell))
    return records


def test_ranks_are_those_of_the_accuracies() -> None:
    records = tasks(6)
    ranking = ranks.ranking(budgets(frame.build(records)))
    assert ranking is not None and ranking.tasks == 6 and len(ranking.means) > 3
    scores = []
    for index in range(6):
        near: dict[str, tuple[float, float]] = {}
        for one in records:
            share = 100 * share_of(one)
            near_ten = ranking.budget.startswith(f"{middle(one) - 5}–")
            if one.cell.task == f"task-{index}" and near_ten:
                value = one.accuracy.metrics["top1"].value
                place = (abs(share - middle(one)), value)
                near[one.cell.method] = min(near.get(one.cell.method, place), place)
        scores.append([near[name][1] for name in ranking.means])
    by_task = np.array([rankdata([-value for value in own]) for own in scores])
    assert list(ranking.means.values()) == pytest.approx(by_task.mean(0))
    assert ranking.p == pytest.approx(friedmanchisquare(*by_task.T).pvalue)
    k = len(ranking.means)
    nemenyi = {3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949}[k]  # Demšar 2006, Table 5
    assert ranking.critical == pytest.approx(nemenyi * (k * (k + 1) / 36) ** 0.5, rel=1e-3)
    assert ranks.ranking(budgets(frame.build(tasks(5)))) is None  # too few to tell ranks apart


def resolutions() -> list[Record]:
    records = []
    for one in vit(synthetic()):
        for size in (224, 384):
            cell = replace(one.cell, model=f"timm:vit_base_patch16_{size}")
            latency = [
                replace(e, speedup=replace(e.speedup, median=e.speedup.median * size / 300))
                for e in one.cost.latency
            ]
            cost = replace(one.cost, latency=latency)
            records.append(replace(one, key=f"{size}{one.key}", cell=cell, cost=cost))
    return records


def test_maps_need_two_sizes_and_two_batches() -> None:
    records = resolutions()
    found = breakeven.maps(frame.build(records))
    assert len(found) > breakeven.MAX_MAPS  # of which that many are drawn
    name, own = found[0]
    assert own.keys() == {(batch, size) for batch in (1, 8, 32) for size in (224, 384)}
    crossget = [one for one in records if one.cell.method == "crossget"]
    ten = middle(next(one for one in crossget if one.cell.label == "crossget r=16"))
    shares = {one.cell.label: 100 * share_of(one) for one in crossget}
    near = min(shares, key=lambda label: abs(shares[label] - ten))
    assert str(name) == f"timm:vit_base_patch16_* · crossget, {ten - 5}–{ten + 5} % of MACs"
    for one in crossget:
        if one.cell.label == near:
            size = int(one.cell.model[-3:])
            assert {e.batch: own[e.batch, size] for e in one.cost.latency} == {
                e.batch: e.speedup.median for e in one.cost.latency
            }
    assert breakeven.maps(frame.build(synthetic())) == []


@pytest.mark.usefixtures("no_figures")
def test_a_map_that_lacks_its_data_is_one_line(tmp_path: Path) -> None:
    root = write(vit(synthetic()), tmp_path / "r")
    assert build([root], tmp_path / "out").read_text().count(breakeven.ABSENT) == 1
    root = write(resolutions(), tmp_path / "s")
    text = build([root], tmp_path / "out").read_text()
    assert breakeven.ABSENT not in text and "figures/break-even.png" in text


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.report.figures.plots.save", lambda plot, folder: None)


def texts(figure: Any) -> Iterator[Any]:
    renderer = figure.canvas.get_renderer()
    for ax in figure.axes:
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts):
            if text.get_text().strip() and text.get_visible():
                yield text.get_window_extent(renderer)


@pytest.mark.parametrize("name", ["page", "cvpr", "slides"])
def test_no_text_is_cut_off(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    records = [*vit(synthetic()), *tasks(2), *resolutions()[:8]]
    frames = frame.build(records)
    with style.use(name):
        made = content(frames)
        (section,) = [
            one for one in made.groups if one.title.endswith("vit-fashion · fashion-mnist")
        ]
        for plot in [*made.overview.plots, *section.plots]:
            with plots._drawn(plot) as figure:
                FigureCanvasAgg(figure).draw()
                width, height = figure.bbox.width, figure.bbox.height
                for box in texts(figure):
                    assert box.x0 > -2 and box.x1 < width + 2, (plot.name, box)
                    assert box.y0 > -2 and box.y1 < height + 2, (plot.name, box)


def test_every_setting_is_drawn_near_half_the_macs() -> None:
    frames = frame.build(vit(synthetic()))
    chosen = breakdown.chosen(frames.cells)
    assert [row["method"] for row in chosen] == sorted(METHODS.keys() - {"none"})


def test_only_towers_that_lose_tokens_have_a_figure_of_tokens() -> None:
    rng = np.random.default_rng(0)
    settings = [("none", {}), ("crossget", {"r": 8})]
    records = [make("model", "task", method, params, rng) for method, params in settings]
    for record, text in zip(records, (12, 13), strict=True):  # CrossGET appends a cross token
        record.cost.tokens["text"] = [(text, text)] * 2
    frames = frame.build(records)
    names = [plot.name for plot in token_lines.token_plots(frames, frames.groups()[0])]
    assert [name.rpartition("--")[2] for name in names] == ["tokens-vision"]
