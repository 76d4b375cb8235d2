"""Draw where a method's time goes: what its MACs need, its own decisions, attention, the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row, known, label_of
from bench.report.figures import style
from bench.report.figures.drawing import DASHED, View, by_batch, joined
from bench.report.figures.plots import Plot, Shown, shown

# Part, colour and hatch: hatch and lightness tell them apart in grey.
PARTS = (
    ("what its MACs need", "#4477AA", ""),
    ("deciding and moving", "#EE6677", "///"),
    ("attention backend lost", "#CCBB44", "xxx"),
    ("everything else", "#CCCCCC", ""),
)
PROMISE: dict[str, Any] = {"color": "#000000", "linewidth": 1.4}
HALF = 50.0
VISIBLE = 0.5  # percent; smaller parts are not in the legend


def parts_of(row: Row) -> tuple[float, ...] | None:
    """Return a cell's time by part, in percent of the unreduced model's with its fastest attention.

    The parts add up to the time that was measured. Where it is less than the saved MACs allow, the
    part of the MACs is the rest.
    """
    share, speed = row["gmacs_pct_of_unreduced"], row["speedup_x"]
    if not known(share) or not known(speed) or not known(row["reduction_share_pct"]):
        return None
    same = 100 / speed
    total = 100 / row["fastest_x"] if known(row["fastest_x"]) else same
    lost = max(0.0, total - same)
    deciding = (total - lost) * row["reduction_share_pct"] / 100
    macs = min(share, total - lost - deciding)
    return macs, deciding, lost, total - lost - deciding - macs


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Return of each method the setting that is nearest to half the MACs."""

    def off(row: Row) -> float:
        return float(abs(row["gmacs_pct_of_unreduced"] - HALF))

    best: dict[str, Row] = {}
    for row in rows:
        if not row["is_baseline"] and known(row["gmacs_pct_of_unreduced"]):
            best[row["method"]] = min(best.get(row["method"], row), row, key=off)
    return sorted(best.values(), key=lambda row: row["method"])


def splits(frames: Frames, group: str) -> tuple[Shown, list[Row]]:
    """Return what a group's figures show, and each method near half the MACs with its `parts`."""
    data = shown(frames, group)
    points = [row | {"parts": parts_of(row)} for row in joined(chosen(data.rows), data.timed)]
    return data, [row for row in points if row["parts"]]


def caption(data: Shown) -> str:
    """Say what the times are shares of."""
    text = f"Where the time goes, each method near half the MACs ({data.condition}): 100 % is the "
    return text + "unreduced model with its fastest attention."


@makes("figure", 42)
def time_plots(frames: Frames, group: str) -> Iterator[Plot]:
    """Yield the times of each method near half the MACs, where their parts are known."""
    data, points = splits(frames, group)
    if points:
        text = f"{caption(data)} A black line: the time that goes with the MACs that are left; in "
        text += "brackets: an attention path other than the plain one."
        draw = partial(breakdown, View.of(frames, data.title), points)
        yield Plot(f"{group}--time", text + data.left_out, draw)


def breakdown(view: View, points: Sequence[Row]) -> Figure:
    """Draw one panel a batch size, one bar a method."""
    settings = {row["method"]: row for row in points}
    methods, page = sorted(settings, reverse=True), style.active()
    figure, parts = by_batch(points, 1.1 + 0.2 * len(methods))
    for ax, rows in parts:
        by_method = {row["method"]: row for row in rows}
        places = [place for place, method in enumerate(methods) if method in by_method]
        starts = [0.0] * len(places)
        by_part = zip(*(by_method[methods[place]]["parts"] for place in places), strict=True)
        for (_, color, hatch), widths in zip(PARTS, by_part, strict=True):
            look: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white"}
            ax.barh(places, widths, left=starts, height=0.72, linewidth=0, **look)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        shares = [by_method[methods[place]]["gmacs_pct_of_unreduced"] for place in places]
        ax.vlines(shares, [p - 0.36 for p in places], [p + 0.36 for p in places], **PROMISE)
        ax.axvline(100, **DASHED)
        ax.set_xlabel("time (% of unreduced)")
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, None)
    parts[0][0].set_yticks(range(len(methods)), [_named(settings[method]) for method in methods])
    handles: list[Patch | Line2D] = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", label=name)
        for i, (name, color, hatch) in enumerate(PARTS)
        if max(row["parts"][i] for row in points) > VISIBLE
    ]
    handles.append(Line2D([], [], label="the saved MACs' promise", **PROMISE))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, int(page.text_in // 1.5))
    )
    figure.suptitle(style.safe(view.head, 110), x=0.01, ha="left")
    return figure


def _named(row: Row) -> str:
    """Name a bar by method and setting, with the attention's path where it is not the plain one."""
    path = row["attention_path"]
    return style.short(label_of(row), 34) + (f" ({path})" if path not in (None, "plain") else "")
