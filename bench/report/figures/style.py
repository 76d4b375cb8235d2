"""How figures look: a marker a method, colours for the series that a report is about."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import chain, count, product
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

from bench.core.errors import BenchError, near_miss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
PRINTED_PT = 9.0  # of a paper's figures, whose smallest text is 11/12 of it
FONT_PT = 8.0  # of the figures' text, on which their heights are based


@dataclass(frozen=True)
class Style:
    """A journal's page: widths of its text and of a column in inches, size of figures' text."""

    text_in: float
    column_in: float
    font_pt: float = FONT_PT
    columns: int = 1

    @property
    def scale(self) -> float:
        """How much larger text is than in the figures that heights were chosen for."""
        return self.font_pt / FONT_PT

    @property
    def legend_line_in(self) -> float:
        """Height of a legend's line."""
        return 0.165 * self.scale


STYLES = {
    "page": Style(6.75, 5.5),
    "neurips": Style(5.5, 5.5, 7.5),
    "cvpr": Style(6.875, 3.25, 7.5, 2),
    "icml": Style(6.75, 3.25, 7.5, 2),
    "slides": Style(10.0, 8.0, 13.0),
}
_ACTIVE: ContextVar[Style] = ContextVar("style", default=STYLES["page"])


def active() -> Style:
    """Return the style that figures are drawn in."""
    return _ACTIVE.get()


@contextmanager
def use(name: str) -> Iterator[None]:
    """Draw in a journal's style while the context lasts.

    Raises:
        BenchError: If there is no such style; the message names the near miss.
    """
    if name not in STYLES:
        raise BenchError(f"unknown style '{name}'{near_miss(name, STYLES)}")
    token = _ACTIVE.set(STYLES[name])
    try:
        yield
    finally:
        _ACTIVE.reset(token)


@contextmanager
def printed() -> Iterator[None]:
    """Draw as for print while the context lasts: in the active style, with no text below 8 pt."""
    page = active()
    token = _ACTIVE.set(replace(page, font_pt=max(page.font_pt, PRINTED_PT)))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


@dataclass(frozen=True)
class Look:
    """A method's colour (hex) and what matplotlib takes for a marker: its name or its outline."""

    color: str
    marker: Any


# Of Okabe and Ito's palette five colours that a deuteranope tells apart, from each other and from
# the grey of all further series. Each method has a marker of its own, and where it can the colour
# that it has elsewhere.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")
GREY, BLACK = "#BDBDBD", "#000000"
KNOWN: dict[str, Look] = {
    name: Look(*look)
    for name, look in json.loads(
        files("bench.assets.data").joinpath("looks.json").read_text(encoding="utf-8")
    ).items()
}
# Not "8" and "H", which at this size are "o" and "h".
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d", "*")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PLAIN = ("none",)  # the unreduced model, black everywhere


def looks(series: Iterable[str], leaders: Sequence[str] | None = None) -> dict[str, Look]:
    """Return a look for each series: colours for the first five leaders, grey for the others.

    Without leaders those with a colour of their own have it first.

    A leader keeps its method's own colour where that is of the palette and free. Markers are the
    methods' own where they are free; no two series share one. Where shapes end, letters follow.
    """
    series = sorted(set(series))
    leaders = sorted(series, key=_familiarity) if leaders is None else leaders
    coloured = [name for name in leaders if name not in _PLAIN][: len(COLORS)]
    own = {name: KNOWN.get(_method(name)) for name in {*series, *coloured}}
    colors = dict.fromkeys(own, GREY) | dict.fromkeys(_PLAIN, BLACK)
    free = list(COLORS)
    for name in sorted(coloured, key=lambda name: (own[name] is None, coloured.index(name))):
        known = own[name]
        colors[name] = known.color if known and known.color in free else ""
        free = [color for color in free if color != colors[name]]
    for name in coloured:
        colors[name] = colors[name] or free.pop(0)
    chosen: dict[str, Look] = {}
    taken: set[Any] = set()
    order = [*coloured, *sorted({*series} - {*coloured})]
    order.sort(key=lambda name: (name not in KNOWN, name.count(",")))  # variants take what is left
    for name in order:
        known = own[name]
        markers = chain([known.marker] if known else [], _MARKERS, _letters())
        marker = next(one for one in markers if one not in taken)
        taken.add(marker)
        chosen[name] = Look(colors[name], marker)
    return chosen


def _letters() -> Iterator[Outline]:
    """Yield markers without end: the letters, then pairs of them, and so on."""
    for length in count(1):
        for letters in product(_LETTERS, repeat=length):
            yield _lettered("".join(letters))


@cache
def _lettered(text: str) -> Outline:
    """Return text as a marker: its outline around the origin."""
    font = FontProperties(family="DejaVu Sans", weight="bold")
    written = TextPath((0, 0), text, size=1, prop=font)
    box = written.get_extents()
    centre = (box.p0 + box.p1) / 2
    points = np.array(written.vertices)
    points[np.equal(written.codes, Outline.CLOSEPOLY)] = centre  # which matplotlib takes for extent
    return Outline(points - centre, written.codes)


def is_wide(figure: Figure) -> bool:
    """Whether a figure has room beside its axes: one column of a page that has two has not."""
    return figure.get_figwidth() >= 4.5 * active().scale


def marker_size(look: Look) -> float:
    """Return a marker's size in points, such that all look equally heavy."""
    sizes: dict[Any, float] = {"*": 8.0, "P": 6.0, "X": 6.0, "D": 4.2}
    shape = 5.0 if isinstance(look.marker, str) else 6.5  # letters are thinner
    return sizes.get(look.marker, shape) * active().scale


def _familiarity(name: str) -> int:
    known = [*KNOWN]
    return known.index(_method(name)) if _method(name) in known else len(known)


def _method(series: str) -> str:
    """Return the method of a series, which a variant follows: `crossget, unguided`."""
    return series.partition(",")[0]


def filled(look: Look) -> dict[str, Any]:
    """Return how a method's marker is drawn: in its colour, with a thin white edge."""
    shape: dict[str, Any] = {"color": look.color, "marker": look.marker}
    shape |= {"markersize": marker_size(look), "markeredgecolor": "white"}
    return shape | {"markeredgewidth": 0.4}


def safe(text: str, width: int = 24) -> str:
    """Make a name safe to draw: not hidden by a leading underscore, wrapped."""
    text = " ".join(text.split())
    wrapped = "\n".join(textwrap.wrap(textwrap.shorten(text, 3 * width), width)) or text[:width]
    return f" {wrapped}" if wrapped.startswith("_") else wrapped


def rc() -> dict[str, Any]:
    """Return the matplotlib settings of every figure, on top of matplotlib's own defaults."""
    size = active().font_pt
    context = seaborn.plotting_context("paper")
    return {
        **seaborn.axes_style("ticks"),
        **seaborn.plotting_context("paper", font_scale=size / context["font.size"]),
        "font.family": "DejaVu Sans",
        "figure.titlesize": size,
        "figure.labelsize": size,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.7),
        **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 3.0),
        "axes.grid": True,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.1 * active().scale,
        "hatch.linewidth": 0.8,
        "lines.markersize": 5 * active().scale,
        "figure.dpi": DPI,
        "svg.hashsalt": "crossget-bench",  # element ids that do not change from build to build
        "svg.fonttype": "none",  # text, which is small, can be searched and read aloud
        "pdf.fonttype": 42,  # submission systems refuse the default
        "text.usetex": False,
        "text.parse_math": False,
    }


def short(text: str, length: int = 26) -> str:
    """Cut a label to what fits beside its line; the usual length is that of a method's name."""
    return safe(text if len(text) <= length else text[: length - 1] + "…", length)
