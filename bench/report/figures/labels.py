"""Name the methods of a figure beside their last points, in the points' order.

A legend of many methods sends the eye to and fro; a label is joined to what it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from bench.report.figures import style

if TYPE_CHECKING:
    from bench.report.figures.style import Look

FEW = 6  # methods, which a legend names well enough
AROUND_IN = 1.0  # height of what is above and below the axes
JOIN_PT, MARK_PT, TEXT_PT = 9.0, 15.0, 21.0  # right of the axes: end of the joint, marker, text


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move descending values apart: they come back ``gap`` apart, from ``high`` down to ``low``."""
    places = list(values)
    for index, value in enumerate(places):
        places[index] = min(value, high if not index else places[index - 1] - gap)
    for index in reversed(range(len(places))):
        places[index] = max(places[index], low)
        low = places[index] + gap
    return places


def beside(ax: Axes, ends: Mapping[str, float], looks: Mapping[str, Look]) -> None:
    """Write names right of the axes, each joined to the height of its last point.

    Args:
        ax: Axes whose limits are set.
        ends: Each name's last value on the y axis.
        looks: The names' colours and markers.
    """
    figure, page = ax.figure.get_figure(root=True), style.active()
    line, around = page.legend_line_in, AROUND_IN * page.scale
    height = max(figure.get_figheight(), line * len(ends) + around)
    figure.set_figheight(height)
    low, high = ax.get_ylim()
    order = sorted(ends, key=lambda name: (-ends[name], name))
    heights = [(ends[name] - low) / (high - low) for name in order]
    places = spread(heights, line / (height - around), 0, 1)

    def right(points: float) -> ScaledTranslation:
        return ScaledTranslation(points * page.scale / 72, 0, figure.dpi_scale_trans)

    for name, start, place in zip(order, heights, places, strict=True):
        look = looks[name]
        joint = {"color": look.color, "linewidth": 0.6, "alpha": 0.6, "clip_on": False}
        # Two points at the axes' edge; what is beside it is moved by points, not by a share.
        ax.annotate(
            "",
            (1, start),
            (JOIN_PT * page.scale, place),
            xycoords="axes fraction",
            textcoords=("offset points", "axes fraction"),
            arrowprops={"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, **joint},
        )
        ax.plot(
            1,
            place,
            transform=ax.transAxes + right(MARK_PT),
            marker=look.marker,
            linestyle="",
            color=look.color,
            markersize=style.marker_size(look),
            clip_on=False,
        )
        ax.text(
            1,
            place,
            style.short(name, 22),
            transform=ax.transAxes + right(TEXT_PT),
            fontsize=0.9375 * page.font_pt,
            va="center_baseline",
        )
