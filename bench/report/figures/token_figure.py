"""The figure of what became of an image's tokens: a row a method, a column a depth."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image

from bench.records.fates import DROPPED, Fate, Fates, unpack
from bench.records.record import BASELINE, Record
from bench.records.store import slug
from bench.report.data.names import task_name
from bench.report.figures import style
from bench.report.figures.plots import Plot
from bench.report.figures.token_maps import outdated

SAMPLES = 2  # side by side
TILE_IN = 0.78  # side of an image
LABEL_IN, ANSWER_IN = 0.95, 0.13  # beside a row, below it
MAX_HEIGHT_IN = 9.0  # a page's text
GAP_IN = 0.01
SCALE = 8  # pixels of a patch's side
FADED = 0.8  # the grey of what was dropped: white would not be seen on a white image
GOLDEN_DEGREES = 137.508  # neighbouring groups get hues that lie far apart
FIRST_HUE = 210


def plots(shown: Sequence[Fates], records: Sequence[Record]) -> list[Plot]:
    """Return one figure for each model and task whose tokens were noted."""
    figures: list[Plot] = []
    for group in shown:
        cells = strongest(group)
        if cells:
            name = f"tokens_{slug(group.model)}--{slug(group.task)}"
            twins = sum(figure.name.startswith(name) for figure in figures)
            name += f"-{twins + 1}" if twins else ""
            caption = _caption(group, cells, records)
            figures.append(Plot(name, caption, partial(draw, group, cells)))
    return figures


def _caption(group: Fates, cells: Sequence[Fate], records: Sequence[Record]) -> str:
    text = f"Where the tokens go: {group.model} on {task_name(group.task)}. Merged patches share a "
    text += "colour, dropped ones fade to grey; above, the truth, and below, the answer; first "
    text += "the unreduced model, then of each method the setting that leaves the fewest tokens. "
    text += "Shown are the samples on which the methods disagree most."
    old = {cell.label for cell in cells} & outdated(group, records)
    if old:
        text += " Drawn with other code, weights or data than the numbers were measured with: "
        text += f"{', '.join(sorted(old))}."
    return text


def strongest(group: Fates) -> list[Fate]:
    """Return of each method the cell that leaves the fewest tokens, the unreduced one first."""
    best: dict[str, Fate] = {}
    for cell in group.cells:
        if cell.layers:
            rival = best.get(cell.method)
            if rival is None or _left(cell, group) < _left(rival, group):
                best[cell.method] = cell
    unreduced = [cell for cell in group.cells if cell.method == BASELINE and best]
    return [*unreduced, *(best[method] for method in sorted(best))]


def _left(cell: Fate, group: Fates) -> int:
    patches = group.grid[0] * group.grid[1]
    return sum(len(set(unpack(text, patches)[-1]) - {DROPPED}) for text in cell.maps)


def tokens_after(blocks: int, cell: Fate, sample: int, patches: int) -> NDArray[Any]:
    """(patches,) the token of each patch after so many blocks, -1 where it was dropped."""
    step = sum(layer < blocks for layer in cell.layers) - 1
    return np.arange(patches) if step < 0 else unpack(cell.maps[sample], patches)[step]


def draw(group: Fates, cells: Sequence[Fate]) -> Figure:
    """Draw two samples beside each other: the input, and its tokens at three depths."""
    samples = _telling(group, cells)
    depths = sorted({-(-group.depth * part // 3) for part in (1, 2, 3)})
    wide = len(samples) * (1 + len(depths))
    room = MAX_HEIGHT_IN / len(cells) - ANSWER_IN
    tile = min(TILE_IN, (style.active().text_in - LABEL_IN) / wide, room)
    size = (LABEL_IN + wide * tile, 0.35 + len(cells) * (tile + ANSWER_IN))
    gaps = ConstrainedLayoutEngine(w_pad=GAP_IN, h_pad=GAP_IN, wspace=0, hspace=0)
    figure = Figure(figsize=size, layout=gaps)
    grid = figure.subplots(len(cells), wide, squeeze=False)
    for line, cell in zip(grid, cells, strict=True):
        for place, sample in enumerate(samples):
            image = _picture(group.samples[sample].png, group.grid)
            row = line[place * (1 + len(depths)) :]
            row[0].imshow(image, interpolation="none")
            for ax, blocks in zip(row[1:], depths, strict=False):
                tokens = tokens_after(blocks, cell, sample, group.grid[0] * group.grid[1])
                ax.imshow(painted(image, tokens.reshape(group.grid)), interpolation="none")
            ax.set_xlabel(_answer(group, cell, sample), fontsize=6, labelpad=1, loc="right")
        words = cell.label.replace(" ", "\n") + ("\n(mixes softly)" if cell.soft else "")
        line[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize=7)
    heads = []
    for sample in samples:
        truth = style.short(group.samples[sample].truth.partition(":")[0], 16)
        heads += [truth, *(f"block {n}" for n in depths)]
    for ax, text in zip(grid[0], heads, strict=True):
        ax.set_title(text, fontsize=7)
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.grid(False)
    return figure


def _telling(group: Fates, cells: Sequence[Fate]) -> list[int]:
    """Return the samples on which methods disagree most: half of them are right, half wrong."""

    def agreement(sample: int) -> float:
        truth = group.samples[sample].truth
        right = [cell.answers[sample][0][0] == truth for cell in cells if cell.layers]
        return abs(sum(right) - len(right) / 2)

    return sorted(range(len(group.samples)), key=agreement)[:SAMPLES]


def _answer(group: Fates, cell: Fate, sample: int) -> str:
    """Return the cell's best answer in a few letters, and whether it is right."""
    best = cell.answers[sample][0][0]
    right = best == group.samples[sample].truth
    return f"{'✓' if right else '✗'} {style.short(best.partition(':')[0], 16)}"


def _picture(png: str, grid: tuple[int, int]) -> NDArray[Any]:
    """(rows*SCALE, columns*SCALE, 3) the input in 0..1."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    size = (grid[1] * SCALE, grid[0] * SCALE)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST)) / 255


def painted(image: NDArray[Any], tokens: NDArray[Any]) -> NDArray[Any]:
    """Return an image with its merged patches in colours, its dropped ones faded.

    Args:
        image: (rows*SCALE, columns*SCALE, 3) in 0..1.
        tokens: (rows, columns) the token of each patch.
    """
    numbers, first, back, count = np.unique(
        tokens, return_index=True, return_inverse=True, return_counts=True
    )
    merged = ((count > 1) & (numbers != DROPPED))[back].reshape(tokens.shape)
    hues = (first * GOLDEN_DEGREES + FIRST_HUE) % 360 / 360
    colors = np.array([colorsys.hls_to_rgb(hue, 0.52, 0.75) for hue in hues])[back]
    share = np.where(merged, 0.5, np.where(tokens == DROPPED, 0.9, 0.0))
    colors = np.where((tokens == DROPPED)[..., None], FADED, colors.reshape(*tokens.shape, 3))

    def large(values: NDArray[Any]) -> NDArray[Any]:
        return values.repeat(SCALE, 0).repeat(SCALE, 1)

    alpha = large(share)[..., None]
    result: NDArray[Any] = image * (1 - alpha) + large(colors) * alpha
    for axis in (0, 1):  # white lines between a group and what is beside it
        here, there = np.delete(tokens, -1, axis), np.delete(tokens, 0, axis)
        touched = np.delete(merged, -1, axis) | np.delete(merged, 0, axis)
        edge = large((here != there) & touched)
        last = np.arange(edge.shape[axis]) % SCALE == SCALE - 1
        edge &= last[:, None] if axis == 0 else last[None]
        rows, columns = edge.shape
        result[:rows, :columns][edge] = 1.0
    return result
