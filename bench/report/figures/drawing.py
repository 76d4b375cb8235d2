"""Draw the figures that set accuracy, MACs and speed against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report.data.rows import Row, known
from bench.report.figures import labels, style
from bench.report.tables.comparison import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Transform

    from bench.report.figures.style import Look

# Methods of one budget stand at one place; their interval bars leave the marker side by side. The
# marker itself is exact, and wider than this.
MAX_SHIFT_PT = 2.2
BLACK = "#000000"
FRONT: tuple[str, dict[str, Any]] = (
    "Pareto front",
    {"color": "#BBBBBB", "linewidth": 3.5, "solid_capstyle": "butt"},
)


def joined(rows: Sequence[Row], timed: Sequence[Row]) -> list[Row]:
    """Join cells with their timings: one row a cell and batch size."""
    by_key = {row["key"]: row for row in rows}
    return [by_key[entry["key"]] | entry for entry in timed if entry["key"] in by_key]


def methods_of(rows: Sequence[Row]) -> list[str]:
    """Return the methods of some rows but for the baseline, in the order of every legend."""
    return sorted({row["method"] for row in rows if not row["is_baseline"]})


@dataclass(frozen=True)
class View:
    """What the figures of one group share."""

    baseline: str
    head: str
    looks: dict[str, Look]

    def macs(self, rows: Sequence[Row]) -> Figure:
        """Draw accuracy against GMACs."""
        figure, (ax,) = panels(1, style.active().column_in, 3.0)
        self.macs_panel(ax, rows)
        own = [row for row in rows if known(row["gmacs"])]
        return self.finish(figure, rows, [FRONT], ends=(ax, _ends(own, "gmacs", "accuracy_value")))

    def macs_panel(self, ax: Axes, rows: Sequence[Row]) -> None:
        """Draw accuracy against GMACs into one panel."""
        rows = [row for row in rows if known(row["gmacs"])]
        self._accuracy_panel(ax, rows, "gmacs")
        ax.set_xlim(_limits(row["gmacs"] for row in rows))
        _accuracy_limits(ax, rows)
        scope = rows[0]["macs_scope"] or "scope not recorded"
        ax.set_xlabel(style.safe(f"GMACs ({scope})", 40))
        ax.set_ylabel(_metric_label(rows[0]))

    def speed(self, rows: Sequence[Row], timed: Sequence[Row]) -> Figure:
        """Draw accuracy against measured speed-up, one panel a batch size."""
        points = joined(rows, timed)
        sizes = ends_of(points)
        figure, axes = panels(len(sizes), style.active().text_in, 2.9)
        for ax, size in zip(axes, sizes, strict=True):
            self.speed_panel(ax, [row for row in points if row["batch"] == size])
            ax.set_title(f"batch {size}")
            ax.label_outer()
        _accuracy_limits(axes[0], points)
        axes[0].set_xlim(_speed_limits(points))
        own = [row for row in points if row["batch"] == sizes[-1]]
        ends = axes[-1], _ends(own, "speedup_x", "accuracy_value")
        return self.finish(figure, points, [FRONT], ends=ends)

    def speed_panel(self, ax: Axes, points: Sequence[Row]) -> None:
        """Draw accuracy against measured speed-up into one panel."""
        self._accuracy_panel(ax, points, "speedup_x")
        ax.axvline(1, color=BLACK, linewidth=0.7, linestyle=(0, (1, 2)))
        ax.set_xlim(_speed_limits(points))
        _accuracy_limits(ax, points)
        _few_ticks(ax.xaxis)
        ax.set_xlabel("measured speed-up (×)")
        ax.set_ylabel(_metric_label(points[0]))
        _latency_axis(ax, points)

    def _accuracy_panel(self, ax: Axes, rows: Sequence[Row], x: str) -> None:
        self._reference(ax, rows)
        _front(ax, rows, x, -1 if x == "gmacs" else 1)
        methods = methods_of(rows)
        for method in methods:
            own = [row for row in rows if row["method"] == method]
            self._series(ax, own, x, "accuracy_value", shift_of(method, methods))
        self._base_points(ax, rows, x, "accuracy_value")

    def bound(self, rows: Sequence[Row], timed: Sequence[Row]) -> Figure:
        """Draw measured speed-up against the bound that the MACs set, one panel a batch size."""
        points = [row for row in joined(rows, timed) if known(row["mac_bound_x"])]
        sizes = ends_of(points)
        figure, axes = panels(len(sizes), style.active().text_in, 2.9)
        wide = _limits([0.95, 1.05, *(row["mac_bound_x"] for row in points)])
        tall = _speed_limits([row for row in points if row["batch"] in sizes])
        both = max(wide[0], tall[0]), min(wide[1], tall[1])
        for ax, size in zip(axes, sizes, strict=True):
            ax.plot(both, both, color=BLACK, linewidth=0.9, linestyle="--")
            ax.axhline(1, color=BLACK, linewidth=0.7, linestyle=(0, (1, 2)))
            own = [row for row in points if row["batch"] == size]
            for method in methods_of(own):
                series = [row for row in own if row["method"] == method]
                self._series(ax, series, "mac_bound_x", "speedup_x")
            self._base_points(ax, own, "mac_bound_x", "speedup_x")
            ax.set_xlim(wide)
            ax.set_ylim(tall)
            _few_ticks(ax.xaxis, ax.yaxis)
            ax.set_title(f"batch {size}")
            ax.set_xlabel("MAC bound (×)")
        axes[0].set_ylabel("measured speed-up (×)")
        extra = [("speed-up = MAC bound", {"linestyle": "--", "linewidth": 0.9})]
        own = [row for row in points if row["batch"] == sizes[-1]]
        ends = axes[-1], _ends(own, "mac_bound_x", "speedup_x")
        return self.finish(figure, points, extra, ends=ends)

    def _series(self, ax: Axes, rows: Sequence[Row], x: str, y: str, shift: float = 0.0) -> None:
        """Join a method's settings by a line and draw its points with their intervals."""
        method = rows[0]["method"]
        ordered = sorted(rows, key=lambda row: (row[x], row[y]))
        if len(ordered) > 1:
            color = self.looks[method].color
            places = [r[x] for r in ordered], [r[y] for r in ordered]
            ax.plot(*places, color=color, alpha=0.75)
        self._points(ax, ordered, method, x, y, shift)

    def _points(
        self, ax: Axes, rows: Sequence[Row], method: str, x: str, y: str, shift: float = 0.0
    ) -> None:
        look, places = self.looks[method], ([row[x] for row in rows], [row[y] for row in rows])
        bars: dict[str, Any] = {"color": look.color, "linewidth": 0.8, "alpha": 0.7, "zorder": 2.5}
        across, up = _bars(rows, x, y), _bars(rows, y, x)
        ax.plot(*across, **bars)
        ax.plot(*up[::-1], transform=moved(ax, shift), **bars)
        ax.plot(
            *places,
            color=look.color,
            marker=look.marker,
            linestyle="",
            markersize=style.marker_size(look),
            markeredgecolor="white",
            markeredgewidth=0.4,
            zorder=3,
        )

    def _base_points(self, ax: Axes, rows: Sequence[Row], x: str, y: str) -> None:
        for row in rows:
            if row["is_baseline"]:
                self._points(ax, [row], row["method"], x, y)

    def _reference(self, ax: Axes, rows: Sequence[Row]) -> None:
        for row in rows:
            if row["is_baseline"]:
                ax.axhline(row["accuracy_value"], color=BLACK, linewidth=0.9, linestyle="--")
                if known(row["accuracy_low"]) and known(row["accuracy_high"]):
                    ends = (row["accuracy_low"], row["accuracy_high"])
                    ax.axhspan(*ends, color=BLACK, alpha=0.08, linewidth=0)
                return

    def finish(
        self,
        figure: Figure,
        rows: Sequence[Row],
        extra: Sequence[tuple[str, dict[str, Any]]] = (),
        label: str = "",
        ends: tuple[Axes, dict[str, float]] | None = None,
    ) -> Figure:
        """Add the title above, and the names of the methods: at their ends, or in a legend."""
        from matplotlib.lines import Line2D

        if label or self.head:
            text = style.safe(label or self.head, 110)
            figure.suptitle(text, x=0.01, ha="left")
        if ends and len(ends[1]) > labels.FEW and style.is_wide(figure):
            labels.beside(*ends, self.looks)
            return figure
        handles = []
        if any(row["is_baseline"] for row in rows):
            marker = self.looks[next(r["method"] for r in rows if r["is_baseline"])].marker
            name = f"{self.baseline} (baseline)"
            shape = Line2D([], [], color=BLACK, marker=marker, linestyle="--", linewidth=0.9)
            handles.append((name, shape))
        for method in methods_of(rows):
            look = self.looks[method]
            handles.append((method, Line2D([], [], color=look.color, marker=look.marker)))
        handles += [(name, Line2D([], [], **({"color": BLACK} | kind))) for name, kind in extra]
        for name, shape in handles:
            shape.set_label(style.short(name, 22))
        legend(figure, [shape for _, shape in handles])
        return figure


def legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put a legend beside the axes, or below them in a figure that is one column wide."""
    page = style.active()
    if not handles:
        return
    if not style.is_wide(figure):
        lines = -(-len(handles) // 2)
        figure.set_figheight(figure.get_figheight() + page.legend_line_in * lines)
        figure.legend(handles=list(handles), loc="outside lower center", ncols=2)
        return
    needed = page.legend_line_in * len(handles) + 0.9 * page.scale
    figure.set_figheight(max(figure.get_figheight(), needed))  # a long legend makes it taller
    figure.legend(handles=list(handles), loc="outside right center")


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


def panels(
    count: int, width: float, height: float, columns: int | None = None, *, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure (inches) and its first ``count`` panels, with the same axes or their own."""
    from matplotlib.figure import Figure

    columns = columns or count
    lines = -(-count // columns)
    size = (width, height * style.active().scale)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=share, sharey=share, squeeze=False)
    axes = list(grid.flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def front(rows: Sequence[Row], x: str, better: int) -> list[Row]:
    """Return the settings that none beats in both accuracy and `x`, the best in `x` first.

    Args:
        rows: Cells.
        x: Their other quantity.
        better: 1 where more of it is better, -1 where less is.
    """
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (-better * row[x], -row["accuracy_value"])):
        if not found or row["accuracy_value"] > found[-1]["accuracy_value"]:
            found.append(row)
    return found


def _front(ax: Axes, rows: Sequence[Row], x: str, better: int) -> None:
    best = front(rows, x, better)
    places = [row[x] for row in best], [row["accuracy_value"] for row in best]
    # Between two settings nothing was measured: the step is what the cheaper one reaches.
    ax.step(*places, where="post", zorder=1, **FRONT[1])


def shift_of(method: str, methods: Sequence[str]) -> float:
    """Return how far in points a method's interval bars stand beside their marker's middle."""
    step = min(0.9, 2 * MAX_SHIFT_PT / max(1, len(methods) - 1))
    return step * (methods.index(method) - (len(methods) - 1) / 2)


def moved(ax: Axes, shift: float) -> Transform:
    """Return the data's coordinates, some points to the right."""
    from matplotlib.transforms import ScaledTranslation

    figure = ax.get_figure()
    if not shift or figure is None:
        return ax.transData
    return ax.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)


def ends_of(rows: Sequence[Row]) -> list[int]:
    """Return the smallest and the largest batch size."""
    sizes = sorted({int(row["batch"]) for row in rows})
    return list(dict.fromkeys([sizes[0], sizes[-1]]))


def _ends(rows: Sequence[Row], x: str, y: str) -> dict[str, float]:
    """Return where each method's line ends at the right."""
    return {row["method"]: row[y] for row in sorted(rows, key=lambda row: float(row[x]))}


def _limits(values: Iterable[Any]) -> tuple[float, float]:
    """Return an axis that holds some values with a margin for markers."""
    ends = [float(value) for value in values if known(value)]
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _accuracy_limits(ax: Axes, rows: Sequence[Row]) -> None:
    names = ("accuracy_value", "accuracy_low", "accuracy_high")
    ax.set_ylim(_limits(row[name] for row in rows for name in names))


def _speed_limits(points: Sequence[Row]) -> tuple[float, float]:
    names = ("speedup_x", "speedup_low_x", "speedup_high_x")
    return _limits([1.0, *(row[name] for row in points for name in names)])


def _latency_axis(ax: Axes, points: Sequence[Row]) -> None:
    """Add milliseconds above: the unreduced model's median over the paired speed-up."""
    from matplotlib.ticker import FuncFormatter

    unreduced = [row["p50_ms"] * row["speedup_x"] for row in points if row["method"] == "none"]
    if not unreduced:
        return
    above = ax.secondary_xaxis("top")
    _few_ticks(above.xaxis)
    above.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{unreduced[0] / x:.3g}" if x > 0 else "")
    )
    above.set_xlabel("latency (ms)")


def _few_ticks(*axes: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in axes:  # panels stand side by side: many ticks would touch
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _metric_label(row: Row) -> str:
    unit = row["accuracy_unit"]
    return f"{metric_name(row['metric'])} ({unit})" if unit else metric_name(row["metric"])


_INTERVALS = {
    "accuracy_value": ("accuracy_low", "accuracy_high"),
    "speedup_x": ("speedup_low_x", "speedup_high_x"),
}


def _bars(rows: Sequence[Row], name: str, other: str) -> tuple[list[float], list[float]]:
    """Return the intervals along one axis and their places on the other, as one broken line."""
    low, high = _INTERVALS.get(name, (name, name))
    along, places = [], []
    for row in rows:
        if known(row.get(low)) and known(row.get(high)):
            along += [row[low], row[high], math.nan]
            places += [row[other], row[other], math.nan]
    return along, places
