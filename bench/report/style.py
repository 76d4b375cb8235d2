"""How figures look: one colour and marker a method, in every figure and every report."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError

DPI = 200
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
        from bench.registry import near_miss

        raise BenchError(f"unknown style '{name}'{near_miss(name, STYLES)}")
    token = _ACTIVE.set(STYLES[name])
    try:
        yield
    finally:
        _ACTIVE.reset(token)


@dataclass(frozen=True)
class Look:
    """A method's colour (hex) and matplotlib marker."""

    color: str
    marker: str


# Okabe and Ito's palette, which the common colour-vision deficiencies leave apart; the trivial
# baselines get the light colours, so that a figure's eye-catchers are the methods.
KNOWN: dict[str, Look] = {
    "none": Look("#000000", "*"),
    "crossget": Look("#D55E00", "o"),
    "tome": Look("#0072B2", "s"),
    "evit": Look("#009E73", "^"),
    "topk": Look("#CC79A7", "D"),
    "pool": Look("#E69F00", "v"),
    "downsample": Look("#56B4E9", "P"),
    "random": Look("#7F7F7F", "X"),
}
# Paul Tol's muted colours with markers that no known method has: a combination stays unique.
_COLORS = ("#332288", "#882255", "#117733", "#999933", "#AA4499", "#661100", "#4477AA", "#44AA99")
_MARKERS = ("<", ">", "p", "h", "d", "8", "H", "s")


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Assign every method its look.

    A method that is not in `KNOWN` gets its look from a hash of its name, so it depends neither on
    the other methods nor on their order; only two unknown names that collide (1 in 64) step aside.

    Args:
        methods: Method names, in any order.

    Returns:
        A look for each name.
    """
    chosen: dict[str, Look] = {}
    taken: set[int] = set()
    for name in sorted(set(methods)):
        if name in KNOWN:
            chosen[name] = KNOWN[name]
            continue
        slot = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        space = len(_COLORS) * len(_MARKERS)
        steps = ((slot + step) % space for step in range(space))
        slot = next((place for place in steps if place not in taken), slot % space)
        taken.add(slot)
        chosen[name] = Look(_COLORS[slot % len(_COLORS)], _MARKERS[slot // len(_COLORS)])
    return chosen


def marker_size(look: Look) -> float:
    """Return a marker's size in points, such that all look equally heavy."""
    return {"*": 8.0, "P": 6.0, "X": 6.0, "D": 4.2}.get(look.marker, 5.0) * active().scale


def safe(text: str, width: int = 24) -> str:
    """Make a name safe to draw: not hidden by a leading underscore, wrapped."""
    text = " ".join(text.split())
    wrapped = "\n".join(textwrap.wrap(textwrap.shorten(text, 3 * width), width)) or text[:width]
    return f" {wrapped}" if wrapped.startswith("_") else wrapped


def rc() -> dict[str, Any]:
    """Return the matplotlib settings of every figure, on top of matplotlib's own defaults."""
    size = active().font_pt
    return {
        "font.family": "DejaVu Sans",
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": 0.875 * size,
        "ytick.labelsize": 0.875 * size,
        "legend.fontsize": 0.9375 * size,
        "figure.titlesize": size,
        "figure.labelsize": size,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.1 * active().scale,
        "lines.markersize": 5 * active().scale,
        "figure.dpi": DPI,
        "svg.hashsalt": "crossget-bench",  # element ids that do not change from build to build
        "svg.fonttype": "path",
        "pdf.fonttype": 42,  # submission systems refuse the default
        "text.usetex": False,
        "text.parse_math": False,
    }


def short(text: str, length: int = 18) -> str:
    """Cut a direct label to what fits beside its line."""
    return safe(text if len(text) <= length else text[: length - 1] + "…", length)


def file_word(text: str) -> str:
    """Make a name usable inside a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
