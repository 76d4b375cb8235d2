"""Draw how many tokens each method leaves after each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.report import style
from bench.report.drawing import BLACK, View, methods_of, panels
from bench.report.frame import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_SIZE = 0.8125  # of the labels at the lines' ends, in font sizes


def token_lines(view: View, rows: Sequence[Row], tokens: Sequence[Row], tower: str) -> Figure:
    """Draw tokens after each layer, one panel a method and one line a setting."""
    methods = [name for name in methods_of(rows) if _lines(rows, tokens, name)]
    base = [row for row in rows if row["is_baseline"]][:1]
    methods = methods or [row["method"] for row in base] or [rows[0]["method"]]
    longest = max(len(name) for m in methods for name in _labels(rows, tokens, m, tower)[1])
    page = style.active()
    columns = min(4 if longest <= 6 else 3, len(methods))
    height = 0.5 + 1.55 * -(-len(methods) // columns)
    figure, axes = panels(len(methods), page.text_in, height, columns)
    depth = max(int(entry["layer"]) for entry in tokens)
    width_pt = (72 * page.text_in - 30) / columns - 8
    room = (0.6 * LABEL_SIZE * page.font_pt * longest + 7) / width_pt  # the labels' share of it
    axes[0].set_xlim(-0.04 * depth, depth / (1 - room))
    axes[0].set_ylim(0, 1.08 * _top(tokens))
    step = max(1, round(depth / 4))
    axes[0].set_xticks(range(0, depth + 1, step))
    for index, (ax, method) in enumerate(zip(axes, methods, strict=True)):
        _panel(ax, view, rows, tokens, method, tower)
        if index + columns >= len(methods):
            ax.tick_params(labelbottom=True)
    figure.supxlabel("after layer")
    figure.supylabel("tokens")
    return view.finish(figure, [], label=f"{view.head} · {tower} tower")


def _lines(rows: Sequence[Row], tokens: Sequence[Row], method: str) -> list[tuple[str, list[Row]]]:
    """Return a method's settings, each with its token counts by layer."""
    result = []
    for row in rows:
        if row["method"] == method:
            line = [entry for entry in tokens if entry["key"] == row["key"]]
            if line:
                result.append((row["setting"], sorted(line, key=lambda e: int(e["layer"]))))
    return sorted(result, key=lambda item: (-item[1][-1]["tokens"], item[0]))


def _labels(
    rows: Sequence[Row], tokens: Sequence[Row], method: str, tower: str
) -> tuple[str, list[str]]:
    knob, names = _knob([name for name, _ in _lines(rows, tokens, method)])
    return knob, [style.short(_of_tower(name, tower), 13) for name in names]


def _of_tower(value: str, tower: str) -> str:
    """Pick a tower's part out of a value by tower: of ``vision:16+text:6`` the 16."""
    parts = dict(part.partition(":")[::2] for part in value.split("+"))
    return parts.get(tower) or value


def _panel(
    ax: Axes,
    view: View,
    rows: Sequence[Row],
    tokens: Sequence[Row],
    method: str,
    tower: str,
) -> None:
    base = [row for row in rows if row["is_baseline"] and row["method"] != method][:1]
    for row in base:
        for _, line in _lines([row], tokens, row["method"]):
            ax.plot(*_steps(line), color=BLACK, linewidth=0.9, linestyle="--")
    look, lines = view.looks[method], _lines(rows, tokens, method)
    knob, names = _labels(rows, tokens, method, tower)
    ends = _spread([line[-1]["tokens"] for _, line in lines], 0.11 * _top(tokens))
    for name, (_, line), place in zip(names, lines, ends, strict=True):
        ax.plot(*_steps(line), color=look.color, marker=look.marker, markersize=2.4)
        label = ax.annotate(
            name,
            (line[-1]["layer"], place),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=LABEL_SIZE * style.active().font_pt,
            va="center",
            annotation_clip=False,
        )
        label.set_in_layout(False)  # room for it is inside the axes
    title = f"{method} ({knob})" if knob else method
    ax.set_title(style.safe(title, 30), color=look.color)


def _knob(settings: Sequence[str]) -> tuple[str, list[str]]:
    """Split off the parameters that settings differ in: ``r=8``, ``r=13`` are r: 8, 13."""
    parsed = [dict(p.partition("=")[::2] for p in text.split(", ") if p) for text in settings]
    names = list(dict.fromkeys(name for params in parsed for name in params))
    if len(settings) > 1:
        names = [name for name in names if len({params.get(name) for params in parsed}) > 1]
    values = [", ".join(params[name] for name in names if name in params) for params in parsed]
    return ", ".join(names), values


def _top(tokens: Sequence[Row]) -> float:
    """Return the largest token count, the panels' common height."""
    return float(max(entry["tokens"] for entry in tokens))


def _steps(line: Sequence[Row]) -> tuple[list[int], list[float]]:
    return [int(entry["layer"]) for entry in line], [float(entry["tokens"]) for entry in line]


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Move labels apart: descending values come back ``gap`` apart, none on the axis."""
    places = list(values)
    for index in range(1, len(places)):
        places[index] = min(places[index], places[index - 1] - gap)
    floor = gap / 2
    for index in reversed(range(len(places))):
        places[index] = max(places[index], floor)
        floor = places[index] + gap
    return places
