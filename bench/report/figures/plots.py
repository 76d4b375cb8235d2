"""The report's figures: PNG for the page, SVG for the paper, one pair a figure.

Figures are drawn without pyplot, so that drawing changes no global state, needs no display and no
writable configuration folder.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.report.data import disturbed
from bench.report.data.frame import Frames
from bench.report.data.rows import Row, known
from bench.report.figures import across, breakdown, breakeven, rank_plot, style
from bench.report.figures.drawing import View, joined, overview
from bench.report.figures.token_lines import token_lines
from bench.report.tables.comparison import title
from bench.report.tables.table import group_rows
from bench.report.tables.timings import conditions, latency_of, under

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MACS_CAPTION = (
    "Accuracy against MACs, with 95 % intervals; dashed: the baseline; grey: the front of settings "
    "that none beats in both."
)
MAX_PANELS = 8  # of an overview; more would not be read


@dataclass(frozen=True)
class Plot:
    """A figure's file name without suffix, its caption, and how it is drawn.

    A narrow one fits into a column of a page that has two; images are no vectors.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    narrow: bool = False
    vector: bool = True


def save(plot: Plot, folder: Path) -> None:
    """Draw a figure and write it as ``NAME.png`` and ``NAME.svg``, the same bytes every time.

    What is made of images is a PNG only. The PNG has the colours of a palette.
    """
    with _drawn(plot) as figure:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from PIL import Image

        # Not savefig, which draws everything twice. Drawing lays the figure out, once is enough.
        agg: Any = FigureCanvasAgg(figure)
        agg.draw()
        image = Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB")
        few = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(folder / f"{plot.name}.png", optimize=True)
        if not plot.vector:
            return
        figure.set_layout_engine("none")
        vector: Any = FigureCanvasSVG(figure)
        text = StringIO()
        vector.print_svg(text, metadata={"Date": None, "Creator": None})
        (folder / f"{plot.name}.svg").write_bytes(_slim(text.getvalue()).encode())


def save_pdf(plot: Plot, folder: Path) -> None:
    """Draw a figure and write it as ``NAME.pdf``, which LaTeX can show."""
    with _drawn(plot) as figure:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_pdf import FigureCanvasPdf

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
    styles = Counter(re.findall(r' style="([^"]*)"', svg))
    names = {text: f"s{i}" for i, (text, count) in enumerate(sorted(styles.items())) if count > 1}

    def named(found: re.Match[str]) -> str:
        return f' class="{names[found[1]]}"' if found[1] in names else found[0]

    svg = re.sub(r' style="([^"]*)"', named, svg)
    rules = "".join(f".{name}{{{text}}}\n" for text, name in names.items())
    svg = svg.replace("</style>", f"{rules}</style>", 1)
    return re.sub(r"\s*\n\s*", "\n", svg)


@contextmanager
def _drawn(plot: Plot) -> Iterator[Figure]:
    """Draw a figure under our settings, whatever the user's are."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # "created a temporary config folder"
    import matplotlib as mpl

    settings: Any = style.rc()
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield plot.draw()


@dataclass(frozen=True)
class Data:
    """What a group's figures are made from: its cells, those with accuracy, and timings.

    Timings that other load disturbed are left out, which `left_out` tells the captions.
    """

    title: str
    condition: str | None
    rows: list[Row]
    scored: list[Row]
    timed: list[Row]
    left_out: str


def _data(frames: Frames, group: str) -> Data:
    rows = group_rows(frames, group)
    latency = latency_of(frames, rows)
    condition = next(iter(conditions(latency)), None)
    timed = under(condition, latency)
    scored = [row for row in rows if known(row["accuracy_value"])]
    metric = next((row["metric"] for row in scored), None)
    scored = [row for row in scored if row["metric"] == metric]
    quiet, left_out = disturbed.quiet(timed), disturbed.left_out(timed)
    return Data(title(rows, frames), condition, rows, scored, quiet, left_out)


def _view(frames: Frames, head: str) -> View:
    return View(frames.baseline, head, frames.looks)


def shown(frames: Frames, most: int | None) -> list[str]:
    """Return the tables that figures are drawn for, the most complete ones, in reading order."""
    groups = frames.groups()
    cells = frames.by_group

    def complete(group: str) -> int:
        scored = sum(known(row["accuracy_value"]) for row in cells[group])
        return scored + sum(row["key"] in frames.timings for row in cells[group])

    best = sorted(groups, key=complete, reverse=True)[:most]
    return [group for group in groups if group in best]


def overviews(frames: Frames, groups: Sequence[str]) -> list[Plot]:
    """Return the figures that set models and tasks side by side, where there are several."""
    data = [_data(frames, group) for group in groups]
    view, result = _view(frames, ""), []
    counted = [(d.title, [row for row in d.scored if known(row["gmacs"])]) for d in data]
    counted = [(name, rows) for name, rows in counted if len(rows) > 1]
    if 1 < len(counted) <= MAX_PANELS:
        draw = partial(overview, view, counted, view.macs_panel)
        result.append(Plot("accuracy_vs_gmacs", MACS_CAPTION, draw))
    fast = [(d.title, _largest_batch(joined(d.scored, d.timed))) for d in data]
    fast = [(name, rows) for name, rows in fast if len(rows) > 1]
    if 1 < len(fast) <= MAX_PANELS:
        sizes = sorted({int(row["batch"]) for _, rows in fast for row in rows})
        caption = "Accuracy against measured paired speed-up at batch "
        caption += f"{' or '.join(map(str, sizes))}, with 95 % intervals; dashed: the baseline."
        caption += next((d.left_out for d in data if d.left_out), "")
        draw = partial(overview, view, fast, view.speed_panel)
        result.append(Plot("accuracy_vs_speedup", caption, draw))
    found = rank_plot.ranking(across.budgets(frames))
    if found:
        draw = partial(rank_plot.draw, view.looks, found)
        result.append(Plot("ranks", rank_plot.caption(found), draw, narrow=True))
    maps = breakeven.maps(frames)
    if maps:
        caption = "Measured speed-up by batch size and resolution; hatched: slower than unreduced."
        caption += disturbed.left_out([row for own in frames.timings.values() for row in own])
        result.append(Plot("break-even", caption, partial(breakeven.draw, maps)))
    return result


def _largest_batch(points: list[Row]) -> list[Row]:
    largest = max((row["batch"] for row in points), default=0)
    return [row for row in points if row["batch"] == largest]


def plots(frames: Frames, group: str) -> list[Plot]:
    """Return the figures that a group's data allow."""
    data = _data(frames, group)
    rows, scored, timed, condition = data.rows, data.scored, data.timed, data.condition
    view = _view(frames, data.title)
    result = []

    def add(name: str, caption: str, draw: Callable[[], Figure], narrow: bool = False) -> None:
        result.append(Plot(f"{group}--{name}", caption, draw, narrow))

    if len([row for row in scored if known(row["gmacs"])]) > 1:
        add("accuracy-gmacs", MACS_CAPTION, partial(view.macs, scored), narrow=True)
    if len(joined(scored, timed)) > 1:
        caption = f"Accuracy against measured paired speed-up ({condition}), with 95 % intervals; "
        caption += "dashed: the baseline."
        caption += data.left_out
        add("accuracy-speedup", caption, partial(view.speed, scored, timed))
    if any(known(row["mac_bound_x"]) for row in joined(rows, timed)):
        caption = f"Measured speed-up against what the saved MACs allow ({condition}); "
        caption += "on the diagonal a method keeps its whole promise."
        caption += data.left_out
        add("speedup-bound", caption, partial(view.bound, rows, timed))
    points = breakdown.timed_parts(rows, timed)
    if points:
        caption = (
            f"Where the time goes, each method near half the MACs ({condition}): 100 % is the "
        )
        caption += "unreduced model with its fastest attention; without hatching, the saved MACs' "
        caption += "promise; in brackets, an attention path other than the plain one."
        caption += data.left_out
        add("time", caption, partial(breakdown.breakdown, view, points))
    tokens = [entry for row in rows for entry in frames.counts.get(row["key"], ())]
    for tower in dict.fromkeys(entry["tower"] for entry in tokens):
        own = [entry for entry in tokens if entry["tower"] == tower]
        if len({entry["tokens"] for entry in own}) > 1:  # else a tower that nobody reduced
            caption = f"Tokens after each layer of the {tower} tower (layer 0: its input); "
            caption += "dashed: the baseline. Methods that leave this tower alone are left out."
            draw = partial(token_lines, view, rows, own, tower)
            add(f"tokens-{style.file_word(tower)}", caption, draw)
    return result
