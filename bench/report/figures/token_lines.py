"""Draw how many tokens each method leaves after each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.records.store import slug
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row
from bench.report.figures import style
from bench.report.figures.drawing import DASHED, View, methods_of
from bench.report.figures.labels import spread
from bench.report.figures.plots import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_SIZE = 0.8125  # of the labels at the lines' ends, in font sizes
LONGEST = 16  # characters of a label
PANEL_IN, TITLE_IN = 1.05, 0.24  # heights of a panel's axes, and of what is above them
LEFT_IN, TOP_IN, BOTTOM_IN, BETWEEN_IN = 0.5, 0.2, 0.42, 0.1
LINES_APART = 0.13  # of a panel's height


@makes("figure", 44)
def token_plots(frames: Frames, group: str) -> Iterator[Plot]:
    """Yield a figure for each tower that loses tokens."""
    rows = frames.by_group[group]
    tokens = [entry for row in rows for entry in frames.counts[row["key"]]]
    for tower in dict.fromkeys(entry["tower"] for entry in tokens):
        counts = [entry for entry in tokens if entry["tower"] == tower]
        if len({entry["tokens"] for entry in counts}) > 1:
            caption = f"Tokens after each layer of the {tower} tower (layer 0: its input); "
            caption += "dashed: the baseline. Methods that leave this tower alone are left out."
            draw = partial(token_lines, View.of(frames, frames.title(group)), rows, counts, tower)
            yield Plot(f"{group}--tokens-{slug(tower)}", caption, draw)


def token_lines(view: View, rows: Sequence[Row], tokens: Sequence[Row], tower: str) -> Figure:
    """Draw tokens after each layer, one panel a method and one line a setting."""
    by_key: dict[str, list[Row]] = {}
    for entry in tokens:
        by_key.setdefault(entry["key"], []).append(entry)
    base = [row for row in rows if row["is_baseline"]][:1]
    full = [_steps(line) for row in base for _, line in _lines(base, by_key, row["method"])]
    methods = [
        name
        for name in methods_of(rows)
        if any(_steps(line) not in full for _, line in _lines(rows, by_key, name))
    ]
    methods = methods or [row["method"] for row in base] or [rows[0]["method"]]
    lines = {name: _lines(rows, by_key, name) for name in methods}
    knobs = {name: _knob([text for text, _ in lines[name]], tower) for name in methods}
    longest = max(len(text) for _, names in knobs.values() for text in names)
    columns = min(4 if longest <= 6 else 3, len(methods))
    page, deep = style.active(), max(int(entry["layer"]) for entry in tokens)
    figure, axes = _grid(len(methods), columns)
    width_pt = 72 * (page.text_in - LEFT_IN * page.scale) / columns - 8
    room = (0.6 * LABEL_SIZE * page.font_pt * longest + 7) / width_pt  # the labels' share of it
    axes[0].set_xlim(-0.04 * deep, deep / (1 - room))
    axes[0].set_ylim(0, 1.08 * max(entry["tokens"] for entry in tokens))
    axes[0].set_xticks(range(0, deep + 1, max(1, round(deep / 3))))
    axes[0].locator_params("y", nbins=3)
    for index, (ax, method) in enumerate(zip(axes, methods, strict=True)):
        for line in full:
            ax.plot(*line, **DASHED)
        knob, names = knobs[method]
        _panel(ax, view.looks[method], [line for _, line in lines[method]], names)
        title = f"{method} ({knob})" if knob else method
        ax.set_title(style.short(title, 30), color=view.looks[method].color, pad=3)
        ax.tick_params(labelbottom=index + columns >= len(methods))
    edge = 0.04 * page.scale / figure.get_figheight()
    figure.supxlabel("after layer", y=edge)
    figure.supylabel("tokens", x=0.04 * page.scale / page.text_in)
    head = style.short(f"{view.head} · {tower} tower", 110)
    figure.suptitle(head, x=0.01, y=1 - edge, ha="left")
    return figure


def _grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Return panels at fixed places: to find places for so many takes longer than to draw them."""
    from matplotlib.figure import Figure

    page, lines = style.active(), -(-count // columns)
    cell = PANEL_IN + TITLE_IN
    figure = Figure(figsize=(page.text_in, page.scale * (TOP_IN + lines * cell + BOTTOM_IN)))
    width, height = (size / page.scale for size in figure.get_size_inches())
    panel = (width - LEFT_IN - BETWEEN_IN) / columns - BETWEEN_IN
    places = {
        "left": LEFT_IN / width,
        "right": 1 - BETWEEN_IN / width,
        "top": 1 - (TOP_IN + TITLE_IN) / height,
        "bottom": BOTTOM_IN / height,
        "wspace": BETWEEN_IN / panel,
        "hspace": TITLE_IN / PANEL_IN,
    }
    grid = figure.subplots(
        lines, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=places
    )
    for ax in grid.flat[count:]:
        ax.remove()
    return figure, list(grid.flat[:count])


def _lines(
    rows: Sequence[Row], tokens: Mapping[str, Sequence[Row]], method: str
) -> list[tuple[str, list[Row]]]:
    """Return a method's settings, each with its token counts by layer, the most tokens first."""
    cells = [row for row in rows if row["method"] == method and row["key"] in tokens]
    result = [
        (row["setting"], sorted(tokens[row["key"]], key=lambda e: int(e["layer"]))) for row in cells
    ]
    return sorted(result, key=lambda item: (-item[1][-1]["tokens"], item[0]))


def _panel(ax: Axes, look: style.Look, lines: Sequence[Sequence[Row]], names: list[str]) -> None:
    apart = LINES_APART * ax.get_ylim()[1]
    ends = spread([line[-1]["tokens"] for line in lines], apart, apart / 2, math.inf)
    for name, line, place in zip(names, lines, ends, strict=True):
        size = 0.8 * style.marker_size(look)
        last: dict[str, Any] = {"marker": look.marker, "markersize": size}
        ax.plot(*_steps(line), color=look.color, markevery=[-1], **last)
        ax.annotate(
            name,
            (line[-1]["layer"], place),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=LABEL_SIZE * style.active().font_pt,
            va="center",
            annotation_clip=False,
        )


def _knob(settings: Sequence[str], tower: str) -> tuple[str, list[str]]:
    """Split off the parameters that settings differ in: ``r=8``, ``r=13`` are r: 8, 13."""
    parsed = [dict(p.partition("=")[::2] for p in text.split(", ") if p) for text in settings]
    names = list(dict.fromkeys(name for params in parsed for name in params))
    if len(settings) > 1:
        names = [name for name in names if len({params.get(name) for params in parsed}) > 1]
    values = [
        ", ".join(_of_tower(params[name], tower) for name in names if name in params)
        for params in parsed
    ]
    return ", ".join(names), [style.short(value, LONGEST) for value in values]


def _of_tower(value: str, tower: str) -> str:
    """Pick a tower's part out of a value by tower: of ``vision:16+text:6`` the 16."""
    parts = dict(part.partition(":")[::2] for part in value.split("+"))
    return parts.get(tower) or value


def _steps(line: Sequence[Row]) -> tuple[list[int], list[float]]:
    return [int(entry["layer"]) for entry in line], [float(entry["tokens"]) for entry in line]
