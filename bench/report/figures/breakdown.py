"""Draw where a method's time goes: what its MACs need, its own decisions, attention, the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.report.data.rows import Row, known
from bench.report.figures import style
from bench.report.figures.drawing import BLACK, View, ends_of, joined, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Part, colour and hatch: hatch and lightness tell them apart in grey.
PARTS = (
    ("what its MACs need", "#4477AA", ""),
    ("deciding and moving", "#EE6677", "///"),
    ("attention backend lost", "#CCBB44", "xxx"),
    ("everything else", "#CCCCCC", ""),
)
HALF = 50.0
VISIBLE = 0.5  # percent; smaller parts are not in the legend


def parts_of(row: Row) -> tuple[float, ...] | None:
    """Return a cell's time by part, in percent of the unreduced model's with its fastest attention.

    The parts add up to the time that was measured. Where it is less than the saved MACs allow, the
    part of the MACs is what is left.
    """
    share, speed = row["gmacs_pct_of_unreduced"], row["speedup_x"]
    if not known(share) or not known(speed) or not known(row["reduction_share_pct"]):
        return None
    own = 100 / speed
    whole = 100 / row["fastest_x"] if known(row["fastest_x"]) else own
    lost = max(0.0, whole - own)
    deciding = (whole - lost) * row["reduction_share_pct"] / 100
    macs = min(share, whole - lost - deciding)
    return macs, deciding, lost, whole - lost - deciding - macs


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Return of each method the setting that is nearest to half the MACs."""
    best: dict[str, Row] = {}
    for row in rows:
        if row["is_baseline"] or not known(row["gmacs_pct_of_unreduced"]):
            continue
        old = best.get(row["method"])
        if old is None or _off(row) < _off(old):
            best[row["method"]] = row
    return sorted(best.values(), key=lambda row: row["method"])


def _off(row: Row) -> float:
    return float(abs(row["gmacs_pct_of_unreduced"] - HALF))


def timed_parts(rows: Sequence[Row], timed: Sequence[Row]) -> list[Row]:
    """Return the timings that the figure shows, with their parts; empty where none tells them."""
    found = [row | {"parts": parts_of(row)} for row in joined(chosen(rows), timed)]
    return [row for row in found if row["parts"]]


def breakdown(view: View, points: Sequence[Row]) -> Figure:
    """Draw one panel a batch size, one bar a method."""
    from matplotlib.patches import Patch

    methods = sorted({row["method"] for row in points}, reverse=True)
    sizes, page = ends_of(points), style.active()
    figure, axes = panels(len(sizes), page.text_in, 1.1 + 0.2 * len(methods))
    for ax, size in zip(axes, sizes, strict=True):
        own = {row["method"]: row for row in points if row["batch"] == size}
        places = [place for place, method in enumerate(methods) if method in own]
        starts = [0.0] * len(places)
        parts = zip(*(own[methods[place]]["parts"] for place in places), strict=True)
        for (_, color, hatch), widths in zip(PARTS, parts, strict=True):
            look: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white"}
            ax.barh(places, widths, left=starts, height=0.72, linewidth=0, **look)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        ax.axvline(100, color=BLACK, linewidth=0.9, linestyle="--")
        ax.set_title(f"batch {size}")
        ax.set_xlabel("time (% of unreduced)")
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, None)
    settings = {row["method"]: row for row in points}
    names = [_named(settings[method]) for method in methods]
    axes[0].set_yticks(range(len(methods)), names)
    seen = [max(row["parts"][i] for row in points) > VISIBLE for i in range(len(PARTS))]
    handles = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", label=name)
        for (name, color, hatch), visible in zip(PARTS, seen, strict=True)
        if visible
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, int(page.text_in // 1.5))
    )
    figure.suptitle(style.safe(view.head, 110), x=0.01, ha="left")
    return figure


def _named(row: Row) -> str:
    """Name a bar by method and setting, with the attention's path where it is not the plain one."""
    path = row["attention_path"]
    text = f"{row['method']} {row['setting']}".strip()
    return style.short(text, 34) + (f" ({path})" if path not in (None, "plain") else "")
