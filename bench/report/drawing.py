"""Draw the figures that set accuracy, MACs and speed against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report import style
from bench.report.comparison import metric_name
from bench.report.frame import Row
from bench.report.tables import known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Transform

    from bench.report.style import Look

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
        return self.finish(figure, rows, [FRONT])

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
        return self.finish(figure, points, [FRONT])

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
        ends = [row["mac_bound_x"] for row in points]
        names = ("speedup_x", "speedup_low_x", "speedup_high_x")
        ends += [row[name] for row in points if row["batch"] in sizes for name in names]
        low, high = min([0.95, *ends]), max([1.05, *ends])
        pad = 0.05 * (high - low)
        span = (low - pad, high + pad)
        for ax, size in zip(axes, sizes, strict=True):
            ax.plot(span, span, color=BLACK, linewidth=0.9, linestyle="--")
            ax.axhline(1, color=BLACK, linewidth=0.7, linestyle=(0, (1, 2)))
            own = [row for row in points if row["batch"] == size]
            for method in methods_of(own):
                series = [row for row in own if row["method"] == method]
                self._series(ax, series, "mac_bound_x", "speedup_x")
            self._base_points(ax, own, "mac_bound_x", "speedup_x")
            ax.set_xlim(span)
            ax.set_ylim(span)
            ax.set_aspect("equal")
            _few_ticks(ax.xaxis, ax.yaxis)
            ax.set_title(f"batch {size}")
            ax.set_xlabel("MAC bound (×)")
        axes[0].set_ylabel("measured speed-up (×)")
        extra = [("speed-up = MAC bound", {"linestyle": "--", "linewidth": 0.9})]
        return self.finish(figure, points, extra)

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
        bars: dict[str, Any] = {"fmt": "none", "ecolor": look.color, "elinewidth": 0.8}
        bars |= {"alpha": 0.7, "zorder": 2.5}
        ax.errorbar(*places, xerr=_bars(rows, x), **bars)
        ax.errorbar(*places, yerr=_bars(rows, y), transform=moved(ax, shift), **bars)
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
                    ax.axhspan(*ends, color=BLACK, alpha=0.06, linewidth=0)
                return

    def finish(
        self,
        figure: Figure,
        rows: Sequence[Row],
        extra: Sequence[tuple[str, dict[str, Any]]] = (),
        label: str = "",
    ) -> Figure:
        """Add the legend beside the axes and the title above."""
        from matplotlib.lines import Line2D

        if label or self.head:
            text = style.safe(label or self.head, 110)
            figure.suptitle(text, x=0.01, ha="left")
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
    if figure.get_figwidth() < 4.5 * page.scale:
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


def _bars(rows: Sequence[Row], name: str) -> list[list[float]] | None:
    """Return error bars, shape (2, n), or None where the axis has no intervals."""
    if name not in _INTERVALS:
        return None
    low, high = _INTERVALS[name]
    below = [row[name] - row[low] if known(row.get(low)) else 0.0 for row in rows]
    above = [row[high] - row[name] if known(row.get(high)) else 0.0 for row in rows]
    return [[max(0.0, value) for value in below], [max(0.0, value) for value in above]]
