"""Draw methods as points with intervals in a plane: accuracy, MACs, speed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from bench.report.data.frame import Frames
from bench.report.data.names import metric_name
from bench.report.data.rows import Row, known
from bench.report.data.timings import batches, ends_of
from bench.report.figures import labels, style

if TYPE_CHECKING:
    from bench.report.figures.style import Look

# Methods of one budget stand at one place; their interval bars leave the marker side by side. The
# marker itself is exact, and wider than this.
MAX_SHIFT_PT = 2.2
BLACK = "#000000"
DASHED: dict[str, Any] = {"color": BLACK, "linewidth": 0.9, "linestyle": "--"}
DOTTED: dict[str, Any] = {"color": BLACK, "linewidth": 0.7, "linestyle": (0, (1, 2))}
FRONT: tuple[str, dict[str, Any]] = (
    "Pareto front",
    {"color": "#BBBBBB", "linewidth": 3.5, "solid_capstyle": "butt"},
)
_ENDS = {
    "accuracy_value": ("accuracy_low", "accuracy_high"),
    "speedup_x": ("speedup_low_x", "speedup_high_x"),
}


def joined(rows: Sequence[Row], timed: Sequence[Row]) -> list[Row]:
    """Join cells with their timings: one row a cell and batch size."""
    by_key = {row["key"]: row for row in rows}
    return [by_key[entry["key"]] | entry for entry in timed if entry["key"] in by_key]


def with_gmacs(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose MACs are known."""
    return [row for row in rows if known(row["gmacs"])]


def methods_of(rows: Iterable[Row]) -> list[str]:
    """Return the methods of some rows but for the baseline, in the order of every legend."""
    return sorted({row["method"] for row in rows if not row["is_baseline"]})


@dataclass(frozen=True)
class View:
    """What the figures of one group share."""

    baseline: str
    head: str
    looks: Mapping[str, Look]

    @classmethod
    def of(cls, frames: Frames, head: str = "") -> View:
        """Return the view of some data under a title."""
        return cls(frames.baseline, head, style.looks(frames.series, frames.leaders))

    def macs_panel(self, ax: Axes, rows: Sequence[Row], letters: int = 40) -> None:
        """Draw accuracy against GMACs into one panel, with so many letters in a line below it."""
        rows = with_gmacs(rows)
        self._accuracy_panel(ax, rows, "gmacs")
        ax.set_xlim(limits(row["gmacs"] for row in rows))
        scope = rows[0]["macs_scope"] or "scope not recorded"
        ax.set_xlabel(style.safe(f"GMACs ({scope})", letters))

    def speed_panel(self, ax: Axes, points: Sequence[Row]) -> None:
        """Draw accuracy against measured speed-up into one panel."""
        self._accuracy_panel(ax, points, "speedup_x")
        ax.axvline(1, **DOTTED)
        ax.set_xlim(speed_limits(points))
        few_ticks(ax.xaxis)
        ax.set_xlabel("measured speed-up (×)")
        _latency_axis(ax, points)

    def _accuracy_panel(self, ax: Axes, rows: Sequence[Row], x: str) -> None:
        _reference(ax, rows)
        best = front(rows, x, -1 if x == "gmacs" else 1)
        # Between two settings nothing was measured: the step is what the cheaper one reaches.
        places = [row[x] for row in best], [row["accuracy_value"] for row in best]
        ax.step(*places, where="post", zorder=1, **FRONT[1])
        self.points(ax, rows, x, "accuracy_value", apart=True)
        accuracy_limits(ax, rows)
        unit, metric = rows[0]["accuracy_unit"], metric_name(rows[0]["metric"])
        ax.set_ylabel(f"{metric} ({unit})" if unit else metric)

    def points(self, ax: Axes, rows: Sequence[Row], x: str, y: str, apart: bool = False) -> None:
        """Draw every cell at its fields `x` and `y` with its intervals, settings joined by a line.

        With `apart` the interval bars of several methods stand side by side.
        """
        methods = methods_of(rows)
        for method in methods:
            series = sorted((r for r in rows if r["method"] == method), key=lambda r: (r[x], r[y]))
            if len(series) > 1:
                places = [r[x] for r in series], [r[y] for r in series]
                ax.plot(*places, color=self.looks[method].color, alpha=0.75)
            self._marks(ax, series, x, y, shift_of(method, methods) if apart else 0.0)
        for row in rows:
            if row["is_baseline"]:
                self._marks(ax, [row], x, y, 0.0)

    def _marks(self, ax: Axes, rows: Sequence[Row], x: str, y: str, shift: float) -> None:
        look = self.looks[rows[0]["method"]]
        bars: dict[str, Any] = {"color": look.color, "linewidth": 0.8, "alpha": 0.7, "zorder": 2.5}
        across, up = _bars(rows, x, y), _bars(rows, y, x)
        ax.plot(*across, **bars)
        ax.plot(*up[::-1], transform=moved(ax, shift), **bars)
        places = [row[x] for row in rows], [row[y] for row in rows]
        ax.plot(*places, linestyle="", zorder=3, **style.filled(look))

    def finish(
        self,
        figure: Figure,
        rows: Sequence[Row],
        extra: Sequence[tuple[str, dict[str, Any]]] = (),
        ends: tuple[Axes, dict[str, float]] | None = None,
    ) -> Figure:
        """Add the title above, and the names of the methods: at their ends, or in a legend."""
        if self.head:
            figure.suptitle(style.safe(self.head, 110), x=0.01, ha="left")
        if ends and len(ends[1]) > labels.FEW and style.is_wide(figure):
            labels.beside(*ends, self.looks)
            return figure
        shapes: list[tuple[str, dict[str, Any]]] = []
        base = next((row["method"] for row in rows if row["is_baseline"]), None)
        if base:
            shape = {**DASHED, "marker": self.looks[base].marker}
            shapes.append((f"{self.baseline} (baseline)", shape))
        for method in methods_of(rows):
            look = self.looks[method]
            shapes.append((method, {"color": look.color, "marker": look.marker}))
        shapes += [(name, {"color": BLACK} | kind) for name, kind in extra]
        legend(figure, [Line2D([], [], label=style.short(n), **kind) for n, kind in shapes])
        return figure


def by_batch(
    points: Sequence[Row], height: float = 2.9
) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """Return a figure with a panel for the smallest and one for the largest batch."""
    sizes = ends_of(batches(points))
    figure, axes = panels(len(sizes), style.active().text_in, height)
    for ax, size in zip(axes, sizes, strict=True):
        ax.set_title(f"batch {size}")
    by_size = [[row for row in points if row["batch"] == size] for size in sizes]
    return figure, list(zip(axes, by_size, strict=True))


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


def panels(
    count: int, width: float, height: float, columns: int | None = None, *, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure (inches) and its first ``count`` panels, with the same axes or their own."""
    columns = columns or count
    lines = -(-count // columns)
    size = (width, height * style.active().scale)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=share, sharey=share, squeeze=False)
    for ax in grid.flat[count:]:
        ax.remove()
    return figure, list(grid.flat[:count])


def front(rows: Sequence[Row], x: str, better: int) -> list[Row]:
    """Return the settings that none beats in both accuracy and `x`, the best in `x` first.

    Args:
        rows: Cells.
        x: Their other quantity.
        better: 1 where more of it is better, -1 where less is.
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (-better * row[x], -row["accuracy_value"])):
        if not best or row["accuracy_value"] > best[-1]["accuracy_value"]:
            best.append(row)
    return best


def shift_of(method: str, methods: Sequence[str]) -> float:
    """Return how far in points a method's interval bars stand beside their marker's middle."""
    step = min(0.9, 2 * MAX_SHIFT_PT / max(1, len(methods) - 1))
    return step * (methods.index(method) - (len(methods) - 1) / 2)


def moved(ax: Axes, shift: float) -> Transform:
    """Return the data's coordinates, some points to the right."""
    figure = ax.get_figure()
    if not shift or figure is None:
        return ax.transData
    return ax.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)


def line_ends(rows: Sequence[Row], x: str, y: str) -> dict[str, float]:
    """Return where each method's line ends at the right."""
    return {row["method"]: row[y] for row in sorted(rows, key=lambda row: float(row[x]))}


def limits(values: Iterable[Any]) -> tuple[float, float]:
    """Return an axis that holds some values with a margin for markers."""
    ends = [float(value) for value in values if known(value)]
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def accuracy_limits(ax: Axes, rows: Sequence[Row]) -> None:
    """Let the y axis hold all accuracies with their intervals."""
    names = ("accuracy_value", "accuracy_low", "accuracy_high")
    ax.set_ylim(limits(row[name] for row in rows for name in names))


def speed_limits(points: Sequence[Row]) -> tuple[float, float]:
    """Return an axis that holds all speed-ups with their intervals, and 1."""
    names = ("speedup_x", "speedup_low_x", "speedup_high_x")
    return limits([1.0, *(row[name] for row in points for name in names)])


def few_ticks(*axes: Axis) -> None:
    """Leave out ticks: panels stand side by side, and many would touch."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _reference(ax: Axes, rows: Sequence[Row]) -> None:
    row = next((row for row in rows if row["is_baseline"]), None)
    if row:
        ax.axhline(row["accuracy_value"], **DASHED)
        ends = row["accuracy_low"], row["accuracy_high"]
        if all(map(known, ends)):
            ax.axhspan(*ends, color=BLACK, alpha=0.08, linewidth=0)


def _latency_axis(ax: Axes, points: Sequence[Row]) -> None:
    """Add milliseconds above: the unreduced model's median over the paired speed-up."""
    unreduced = [row["p50_ms"] * row["speedup_x"] for row in points if row["method"] == "none"]
    if not unreduced:
        return
    above = ax.secondary_xaxis("top")
    few_ticks(above.xaxis)
    above.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{unreduced[0] / x:.3g}" if x > 0 else "")
    )
    above.set_xlabel("latency (ms)")


def _bars(rows: Sequence[Row], name: str, other: str) -> tuple[list[float], list[float]]:
    """Return the intervals along one axis and their places on the other, as one broken line."""
    low, high = _ENDS.get(name, (name, name))
    along, places = [], []
    for row in rows:
        if known(row.get(low)) and known(row.get(high)):
            along += [row[low], row[high], math.nan]
            places += [row[other], row[other], math.nan]
    return along, places
