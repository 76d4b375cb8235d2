"""Draw how many tokens each method leaves after each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.records.store import slug
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row
from bench.report.figures import style
from bench.report.figures.drawing import DASHED, View, methods_of
from bench.report.figures.labels import spread
from bench.report.figures.plots import Plot

Steps = tuple[list[int], list[float]]  # layers, and the tokens after them
NARROW = 24  # letters of a title, of which four stand beside each other
LABEL_SIZE = 0.8125  # of the labels at the lines' ends, in font sizes
LONGEST = 16  # characters of a label
PANEL_IN, TITLE_IN = 1.05, 0.24  # heights of a panel's axes, and of what is above them
LEFT_IN, TOP_IN, BOTTOM_IN, BETWEEN_IN = 0.5, 0.2, 0.42, 0.1
LINES_APART = 0.13  # of a panel's height


@makes("figure", 44)
def token_plots(frames: Frames, group: str) -> Iterator[Plot]:
    """Yield a figure for each tower that loses tokens."""
    rows = frames.by_group[group]
    bases = [row["key"] for row in rows if row["is_baseline"]]
    tokens = [entry for row in rows for entry in frames.counts[row["key"]]]
    for tower in dict.fromkeys(entry["tower"] for entry in tokens):
        counts = [entry for entry in tokens if entry["tower"] == tower]
        full = [entry for entry in counts if entry["key"] in bases] or counts
        if min(entry["tokens"] for entry in counts) < max(entry["tokens"] for entry in full):
            caption = f"Tokens after each layer of the {tower} tower (layer 0: its input); "
            caption += "dashed: the baseline. Methods that leave this tower alone are left out."
            draw = partial(token_lines, View.of(frames, frames.title(group)), rows, counts, tower)
            yield Plot(f"{group}--tokens-{slug(tower)}", caption, draw)


def token_lines(view: View, rows: Sequence[Row], tokens: Sequence[Row], tower: str) -> Figure:
    """Draw tokens after each layer, one panel a method and one line a setting."""
    lines = _lines(rows, tokens)
    base = [row for row in rows if row["is_baseline"]][:1]
    full = [
        steps
        for row in base
        for setting, steps in lines.get(row["method"], [])
        if setting == row["setting"]
    ]
    methods = [m for m in methods_of(rows) if any(s not in full for _, s in lines.get(m, []))]
    methods = methods or [row["method"] for row in base] or [rows[0]["method"]]
    knobs = {name: _knob([text for text, _ in lines[name]], tower) for name in methods}
    titles = {m: style.short(f"{m} ({knob})" if knob else m, 30) for m, (knob, _) in knobs.items()}
    longest = max(len(text) for _, names in knobs.values() for text in names)
    narrow = longest <= 6 and max(map(len, titles.values())) <= NARROW
    columns = min(4 if narrow else 3, len(methods))
    figure, axes = _grid(len(methods), columns)
    _limit(axes[0], tokens, longest, columns)
    for index, (ax, method) in enumerate(zip(axes, methods, strict=True)):
        for steps in full:
            ax.plot(*steps, **DASHED)
        _panel(ax, view.looks[method], [steps for _, steps in lines[method]], knobs[method][1])
        ax.set_title(titles[method], color=view.looks[method].color, pad=3)
        ax.tick_params(labelbottom=index + columns >= len(methods))
    page = style.active()
    edge = 0.04 * page.scale / figure.get_figheight()
    figure.supxlabel("after layer", y=edge)
    figure.supylabel("tokens", x=0.04 * page.scale / page.text_in)
    head = style.short(f"{view.head} · {tower} tower", 110)
    figure.suptitle(head, x=0.01, y=1 - edge, ha="left")
    return figure


def _limit(ax: Axes, tokens: Sequence[Row], longest: int, columns: int) -> None:
    """Let the axes, which all panels share, hold all lines and room for their longest label."""
    page, deep = style.active(), max(entry["layer"] for entry in tokens)
    width_pt = 72 * (page.text_in - LEFT_IN * page.scale) / columns - 8
    room = (0.6 * LABEL_SIZE * page.font_pt * longest + 7) / width_pt  # the labels' share of it
    ax.set_xlim(-0.04 * deep, deep / (1 - room))
    ax.set_ylim(0, 1.08 * max(entry["tokens"] for entry in tokens))
    ax.set_xticks(range(0, deep + 1, max(1, round(deep / 3))))
    ax.locator_params("y", nbins=3)


def _grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Return panels at fixed places: to find places for so many takes longer than to draw them."""
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


def _lines(rows: Sequence[Row], tokens: Sequence[Row]) -> dict[str, list[tuple[str, Steps]]]:
    """Return each method's settings with their layers and token counts, the most tokens first."""
    by_key: dict[str, Steps] = {}
    for entry in sorted(tokens, key=lambda entry: int(entry["layer"])):
        layers, counts = by_key.setdefault(entry["key"], ([], []))
        layers.append(entry["layer"])
        counts.append(float(entry["tokens"]))
    lines: dict[str, list[tuple[str, Steps]]] = {}
    for row in rows:
        if row["key"] in by_key:
            lines.setdefault(row["method"], []).append((row["setting"], by_key[row["key"]]))
    for settings in lines.values():
        settings.sort(key=lambda item: (-item[1][1][-1], item[0]))
    return lines


def _panel(ax: Axes, look: style.Look, lines: Sequence[Steps], names: Sequence[str]) -> None:
    apart = LINES_APART * ax.get_ylim()[1]
    ends = spread([counts[-1] for _, counts in lines], apart, apart / 2, math.inf)
    for name, (layers, counts), place in zip(names, lines, ends, strict=True):
        size = 0.8 * style.marker_size(look)
        ax.plot(
            layers, counts, color=look.color, markevery=[-1], marker=look.marker, markersize=size
        )
        ax.annotate(
            name,
            (layers[-1], place),
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
