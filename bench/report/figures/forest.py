"""Draw paired differences to the baseline, where each method has one setting at a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from bench.report.data.differences import detectable
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row, known
from bench.report.figures import style
from bench.report.figures.drawing import DASHED, View, panels
from bench.report.figures.plots import Plot, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST, MOST_PANELS = 3, 3  # methods in a panel, panels


@makes("figure", 39)
def forest_plots(frames: Frames, group: str) -> Iterator[Plot]:
    """Yield the differences, where at a budget each of several methods has one setting."""
    data = shown(frames, group)
    bands = _bands(data.scored)
    if bands:
        text = f"Paired differences to {frames.baseline} with their 95 % intervals, the most "
        text += "accurate method on top. Grey: differences that these samples could not have shown "
        text += "(power 0.8). Intervals are not corrected for their number; the table's marks are."
        draws = partial(draw, View.of(frames, data.title), bands)
        yield Plot(f"{group}--differences", text, draws)


def _bands(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each budget, most MACs first, the least accurate row first."""
    bands: dict[str, list[Row]] = {}
    for row in rows:
        if not row["is_baseline"] and known(row["delta_low"]):
            bands.setdefault(row["band"], []).append(row)
    single = {
        name: sorted(cells, key=lambda row: (row["delta"], row["method"]))
        for name, cells in bands.items()
        if len(cells) >= FEWEST and len({row["method"] for row in cells}) == len(cells)
    }
    order = sorted(single, key=lambda name: -single[name][0]["level"])
    return {name: single[name] for name in order[:MOST_PANELS]}


def draw(view: View, bands: Mapping[str, Sequence[Row]]) -> Figure:
    """Draw one panel a budget, one line a method."""
    page, tallest = style.active(), max(map(len, bands.values()))
    figure, axes = panels(len(bands), page.text_in, 0.9 + 0.2 * tallest, share=False)
    for ax, (name, rows) in zip(axes, bands.items(), strict=True):
        least = median(detectable(row) for row in rows)
        ax.axvspan(-least, least, color=style.BLACK, alpha=0.08, linewidth=0)
        ax.axvline(0, **DASHED)
        for place, row in enumerate(rows):
            look = view.looks[row["method"]]
            ends = row["delta_low"], row["delta_high"]
            ax.plot(ends, (place, place), color=look.color, linewidth=1.4)
            ax.plot(row["delta"], place, linestyle="", zorder=3, **style.filled(look))
        ax.set_yticks(range(len(rows)), [style.short(row["method"]) for row in rows])
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_title(f"{name} of the MACs")
        unit = "points" if rows[0]["accuracy_unit"] == "%" else rows[0]["accuracy_unit"]
        ax.set_xlabel(style.safe(f"Δ to {view.baseline} ({unit or 'units'})", 30))
    figure.suptitle(style.safe(view.head, 110), x=0.01, ha="left")
    return figure
