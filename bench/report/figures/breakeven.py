"""Draw from which batch size and resolution on a method is faster than the unreduced model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import seaborn
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.report.data import disturbed
from bench.report.data.bands import off_middle
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import known
from bench.report.figures import style
from bench.report.figures.drawing import panels
from bench.report.figures.plots import Plot

Map = Mapping[tuple[int, int], float]  # speed-up by (batch, resolution)
MAX_MAPS = 6
SIZE = re.compile(r"(?<!\d)([1-9]\d\d|1\d\d\d)(?!\d)(?!.*\d{3})")  # the last one in a model's name
ABSENT = (
    "No break-even map: no model here was timed at two resolutions and two batch sizes with a "
    "method at like MACs (`run_bench.py run --suite breakeven`)."
)


@dataclass(frozen=True, order=True)
class Sweep:
    """One method in one model whose batch and resolution were swept, at a share of the MACs."""

    model: str
    method: str
    share: str
    machine: str
    condition: str

    def __str__(self) -> str:
        """As a map's title: without machine and condition, which a report mostly shares."""
        return f"{self.model} · {self.method}, {self.share} of MACs"


@makes("figure", 50, overall=True, absent=ABSENT)
def map_plots(frames: Frames, groups: Sequence[str]) -> Iterator[Plot]:
    """Yield the maps, where there are any."""
    drawn = maps(frames)[:MAX_MAPS]
    if drawn:
        caption = "Measured speed-up by batch size and resolution; hatched: slower than unreduced."
        caption += disturbed.left_out(frames.timed(frames.cells))
        yield Plot("break-even", caption, partial(draw, drawn))


def maps(frames: Frames) -> Sequence[tuple[Sweep, Map]]:
    """Return each method's speed-ups in a band of MACs, where several sizes were timed alike.

    Of several settings in a band the one nearest to its middle counts. Timings that other load
    disturbed do not.
    """
    cells = {row["key"]: row for row in frames.cells if not row["is_baseline"]}
    cells = {key: row for key, row in cells.items() if known(row["gmacs"])}
    places: dict[Sweep, dict[tuple[int, int], tuple[float, float]]] = {}
    for entry in disturbed.quiet(frames.timed(cells.values())):
        cell = cells[entry["key"]]
        size = SIZE.search(cell["model"])
        if size is None or not known(entry["speedup_x"]):
            continue
        model = SIZE.sub("*", cell["model"])
        sweep = Sweep(model, cell["method"], cell["band"], cell["machine"], entry["condition"])
        sizes, place = places.setdefault(sweep, {}), (entry["batch"], int(size[1]))
        here = off_middle(cell), float(entry["speedup_x"])
        sizes[place] = min(sizes.get(place, here), here)
    return [
        (sweep, {place: speed for place, (_, speed) in sizes.items()})
        for sweep, sizes in sorted(places.items())
        if all(len({place[axis] for place in sizes}) > 1 for axis in (0, 1))
    ]


def by_model(frames: Frames) -> dict[Sweep, dict[str, Map]]:
    """Return the maps by method, of each model at a share of the MACs: a `Sweep` of no method."""
    sweeps: dict[Sweep, dict[str, Map]] = {}
    for sweep, places in maps(frames):
        sweeps.setdefault(replace(sweep, method=""), {})[sweep.method] = places
    return sweeps


def draw(drawn: Sequence[tuple[Sweep, Map]]) -> Figure:
    """Draw one map a method; what is slower than the unreduced model is hatched too."""
    page, columns = style.active(), min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure, axes = panels(len(drawn), page.text_in, 0.3 + 2.1 * lines, columns, share=False)
    speeds = [value for _, places in drawn for value in places.values()]
    norm = TwoSlopeNorm(1, min(0.5, *speeds), max(1.01, *speeds))
    looks: dict[str, Any] = {"cmap": "PuOr", "cbar": False, "linewidths": 1, "linecolor": "#E4E4E4"}
    hatched: dict[str, Any] = {"hatch": "///", "edgecolor": "k", "alpha": 0.35, "linewidth": 0}
    for ax, (sweep, places) in zip(axes, drawn, strict=True):
        grid = pd.Series(places).unstack(0).sort_index(ascending=False)  # (resolutions, batches)
        seaborn.heatmap(grid, ax=ax, annot=True, fmt=".2f", norm=norm, **looks)
        for y, x in zip(*(grid.to_numpy() < 1).nonzero(), strict=True):
            ax.add_patch(Rectangle((x, y), 1, 1, fill=False, **hatched))
        ax.set_title(style.safe(str(sweep), 30))
        ax.set(xlabel="batch", ylabel="")
        ax.tick_params("y", labelrotation=0)
    for ax in axes[::columns]:
        ax.set_ylabel("resolution (px)")
    return figure
