"""Figures as files: PNG for reading, SVG for the screen, PDF for a paper, the same bytes each time.

Figures are drawn without pyplot, so that drawing changes no global state, needs no display and no
writable configuration folder.
"""

from __future__ import annotations

import base64
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from bench.report.data import disturbed
from bench.report.data.frame import Frames
from bench.report.data.rows import Row, known
from bench.report.data.timings import under_main
from bench.report.figures import style

_EMBEDDED = "data:image/png;base64,"


@dataclass(frozen=True)
class Plot:
    """A figure's file name without suffix, its caption, and how it is drawn.

    A narrow one fits into a column of a page that has two.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    narrow: bool = False


def save(plot: Plot, folder: Path) -> None:
    """Draw a figure and write it as ``NAME.png`` and ``NAME.svg``, the same bytes every time.

    The PNG, and images within the SVG, have the colours of a palette.
    """
    with _drawn(plot) as figure:
        # Not savefig, which draws everything twice. Drawing lays the figure out, once is enough.
        agg: Any = FigureCanvasAgg(figure)
        agg.draw()
        image = Image.fromarray(np.asarray(agg.buffer_rgba()))
        (folder / f"{plot.name}.png").write_bytes(_few_colors(image))
        figure.set_layout_engine("none")
        vector: Any = FigureCanvasSVG(figure)
        text = StringIO()
        vector.print_svg(text, metadata={"Date": None, "Creator": None})
        (folder / f"{plot.name}.svg").write_bytes(_slim(text.getvalue()).encode())


def _few_colors(image: Image.Image) -> bytes:
    """Return an image as PNG in the colours of a palette: a third of the size."""
    file = BytesIO()
    few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()


def save_pdf(plot: Plot, folder: Path) -> None:
    """Draw a figure and write it as ``NAME.pdf``, which LaTeX can show."""
    with _drawn(plot) as figure:
        agg: Any = FigureCanvasAgg(figure)
        agg.draw()  # which lays the figure out
        figure.set_layout_engine("none")
        vector: Any = FigureCanvasPdf(figure)
        about = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        vector.print_pdf(folder / f"{plot.name}.pdf", metadata=about)


def _slim(svg: str) -> str:
    """Leave out what a reader of an SVG cannot see, and say what repeats once.

    Not seen are thousandths of points and the names of groups; looks that repeat become classes.
    """
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    svg = re.sub(r' id="[A-Za-z.]+(2d)?_\d+"| transform="rotate\(-0 [^"]*"', "", svg)
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    svg = re.sub(f'(?<={_EMBEDDED})[^"]*', _smaller, svg)
    styles = Counter(re.findall(r' style="([^"]*)"', svg))
    names = {text: f"s{i}" for i, (text, count) in enumerate(sorted(styles.items())) if count > 1}

    def named(match: re.Match[str]) -> str:
        return f' class="{names[match[1]]}"' if match[1] in names else match[0]

    svg = re.sub(r' style="([^"]*)"', named, svg)
    rules = "".join(f".{name}{{{text}}}\n" for text, name in names.items())
    svg = svg.replace("</style>", f"{rules}</style>", 1)
    return re.sub(r"\s*\n\s*", "\n", svg)


def _smaller(data: re.Match[str]) -> str:
    """Return an image in base64 in the colours of a palette."""
    image = Image.open(BytesIO(base64.b64decode(data[0])))
    return base64.b64encode(_few_colors(image)).decode()


@contextmanager
def _drawn(plot: Plot) -> Iterator[Figure]:
    """Draw a figure under our settings, whatever the user's are."""
    settings: Any = style.rc()
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield plot.draw()


@dataclass(frozen=True)
class Shown:
    """What the figures of a model and task show: its cells, those with accuracy, and timings.

    Timings that other load disturbed are left out, which `left_out` tells the captions.
    """

    title: str
    condition: str | None
    rows: list[Row]
    scored: list[Row]
    timed: list[Row]
    left_out: str


def shown(frames: Frames, group: str) -> Shown:
    """Return what the figures of a group show: one metric, and timings under one condition."""
    rows = frames.by_group[group]
    condition, timed = under_main(frames.timed(rows))
    scored = [row for row in rows if known(row["accuracy_value"])]
    scored = [row for row in scored if row["metric"] == scored[0]["metric"]]
    quiet, left_out = disturbed.quiet(timed), disturbed.left_out(timed)
    return Shown(frames.title(group), condition, rows, scored, quiet, left_out)


def most_complete(frames: Frames, most: int | None) -> list[str]:
    """Return so many groups, the most complete ones, in reading order; None: all."""

    def complete(group: str) -> int:
        rows = frames.by_group[group]
        scored = sum(known(row["accuracy_value"]) for row in rows)
        return scored + sum(bool(frames.timings[row["key"]]) for row in rows)

    groups = frames.groups()
    best = sorted(groups, key=complete, reverse=True)[:most]
    return [group for group in groups if group in best]
