"""Figures of accuracy against MACs and against speed, and of speed against the saved MACs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row, known
from bench.report.data.timings import batches
from bench.report.figures import style
from bench.report.figures.drawing import (
    DASHED,
    DOTTED,
    FRONT,
    View,
    accuracy_limits,
    by_batch,
    few_ticks,
    joined,
    limits,
    line_ends,
    panels,
    speed_limits,
    with_gmacs,
)
from bench.report.figures.plots import Plot, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Accuracy against MACs, with 95 % intervals; dashed: the baseline; grey: the front of settings "
    "that none beats in both."
)
MAX_PANELS = 8  # of an overview; more would not be read


@makes("figure", 40)
def group_plots(frames: Frames, group: str) -> Iterator[Plot]:
    """Yield the trade-offs of a group, as far as its data allow."""
    data = shown(frames, group)
    view, points = View.of(frames, data.title), joined(data.scored, data.timed)
    if len(with_gmacs(data.scored)) > 1:
        draw = partial(macs_figure, view, data.scored)
        yield Plot(f"{group}--accuracy-gmacs", CAPTION, draw, narrow=True)
    if len(points) > 1:
        caption = f"Accuracy against measured paired speed-up ({data.condition}), with 95 % "
        caption += f"intervals; dashed: the baseline.{data.left_out}"
        yield Plot(f"{group}--accuracy-speedup", caption, partial(speed_figure, view, points))
    bounded = [row for row in joined(data.rows, data.timed) if known(row["mac_bound_x"])]
    if bounded:
        caption = f"Measured speed-up against what the saved MACs allow ({data.condition}); "
        caption += f"on the diagonal a method keeps its whole promise.{data.left_out}"
        yield Plot(f"{group}--speedup-bound", caption, partial(bound_figure, view, bounded))


@makes("figure", 40, overall=True)
def overviews(frames: Frames, groups: Sequence[str]) -> Iterator[Plot]:
    """Yield the trade-offs of several models and tasks side by side, where there are several."""
    data, view = {group: shown(frames, group) for group in groups}, View.of(frames)
    once = [data[group] for group in frames.accuracies() if group in data]
    counted = [(d.title, rows) for d in once if len(rows := with_gmacs(d.scored)) > 1]
    if 1 < len(counted) <= MAX_PANELS:
        draw = partial(overview, view, counted, view.macs_panel)
        yield Plot("accuracy_vs_gmacs", CAPTION, draw)
    fast = [(d.title, _largest_batch(joined(d.scored, d.timed))) for d in data.values()]
    fast = [(name, rows) for name, rows in fast if len(rows) > 1]
    if 1 < len(fast) <= MAX_PANELS:
        sizes = batches(row for _, rows in fast for row in rows)
        caption = "Accuracy against measured paired speed-up at batch "
        caption += f"{' or '.join(map(str, sizes))}, with 95 % intervals; dashed: the baseline."
        caption += next((d.left_out for d in data.values() if d.left_out), "")
        draw = partial(overview, view, fast, view.speed_panel)
        yield Plot("accuracy_vs_speedup", caption, draw)


def _largest_batch(points: list[Row]) -> list[Row]:
    largest = max((row["batch"] for row in points), default=0)
    return [row for row in points if row["batch"] == largest]


def overview(
    view: View,
    sets: Sequence[tuple[str, Sequence[Row]]],
    draw: Callable[[Axes, Sequence[Row]], None],
) -> Figure:
    """Draw one panel a model and task, each with axes of its own, under one legend."""
    lines = -(-len(sets) // 2)
    figure, axes = panels(len(sets), style.active().text_in, 0.2 + 2.5 * lines, 2, share=False)
    for ax, (name, rows) in zip(axes, sets, strict=True):
        draw(ax, rows)
        ax.set_title(style.safe(name, 40))
    return view.finish(figure, [row for _, rows in sets for row in rows], [FRONT])


def macs_figure(view: View, rows: Sequence[Row]) -> Figure:
    """Draw accuracy against GMACs."""
    figure, (ax,) = panels(1, style.active().column_in, 3.0)
    view.macs_panel(ax, rows, letters=44)
    ends = ax, line_ends(with_gmacs(rows), "gmacs", "accuracy_value")
    return view.finish(figure, rows, [FRONT], ends)


def speed_figure(view: View, points: Sequence[Row]) -> Figure:
    """Draw accuracy against measured speed-up, one panel a batch size."""
    figure, parts = by_batch(points)
    for ax, rows in parts:
        view.speed_panel(ax, rows)
        ax.label_outer()
    accuracy_limits(parts[0][0], points)
    parts[0][0].set_xlim(speed_limits(points))
    ax, rows = parts[-1]
    return view.finish(
        figure, points, [FRONT], (ax, line_ends(rows, "speedup_x", "accuracy_value"))
    )


def bound_figure(view: View, points: Sequence[Row]) -> Figure:
    """Draw measured speed-up against the bound that the MACs set, one panel a batch size."""
    figure, parts = by_batch(points)
    wide = limits([0.95, 1.05, *(row["mac_bound_x"] for row in points)])
    tall = speed_limits([row for _, rows in parts for row in rows])
    both = max(wide[0], tall[0]), min(wide[1], tall[1])
    for ax, rows in parts:
        ax.plot(both, both, **DASHED)
        ax.axhline(1, **DOTTED)
        view.points(ax, rows, "mac_bound_x", "speedup_x")
        ax.set_xlim(wide)
        ax.set_ylim(tall)
        few_ticks(ax.xaxis, ax.yaxis)
        ax.set_xlabel("MAC bound (×)")
    parts[0][0].set_ylabel("measured speed-up (×)")
    diagonal: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9}
    ax, rows = parts[-1]
    ends = ax, line_ends(rows, "mac_bound_x", "speedup_x")
    return view.finish(figure, points, [("speed-up = MAC bound", diagonal)], ends)
