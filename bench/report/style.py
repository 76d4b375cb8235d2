"""How figures look: one colour and marker a method, in every figure and every report."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DPI = 200
TEXT_WIDTH_IN = 6.75  # a two-column page's text width
SINGLE_WIDTH_IN = 5.5


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
    return {"*": 8.0, "P": 6.0, "X": 6.0, "D": 4.2}.get(look.marker, 5.0)


def safe(text: str, width: int = 24) -> str:
    """Make a name safe to draw: not hidden by a leading underscore, wrapped."""
    text = " ".join(text.split())
    wrapped = "\n".join(textwrap.wrap(textwrap.shorten(text, 3 * width), width)) or text[:width]
    return f" {wrapped}" if wrapped.startswith("_") else wrapped


def rc() -> dict[str, Any]:
    """Return the matplotlib settings of every figure, on top of matplotlib's own defaults."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.1,
        "lines.markersize": 5,
        "figure.dpi": DPI,
        "svg.hashsalt": "crossget-bench",  # element ids that do not change from build to build
        "svg.fonttype": "path",
        "text.usetex": False,
        "text.parse_math": False,
    }


def short(text: str, length: int = 18) -> str:
    """Cut a direct label to what fits beside its line."""
    return safe(text if len(text) <= length else text[: length - 1] + "…", length)


def file_word(text: str) -> str:
    """Make a name usable inside a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
