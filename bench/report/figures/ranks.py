"""Draw the methods' mean ranks over tasks, with the difference that chance allows (Demšar 2006)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from scipy.stats import friedmanchisquare, studentized_range

from bench.report.data.budgets import FEWEST, Budget, budgets
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.stats import LEVEL
from bench.report.figures import style
from bench.report.figures.drawing import DOTTED, panels
from bench.report.figures.plots import Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Ranking:
    """The mean ranks of one budget, how far apart two must be, and Friedman's p value."""

    budget: str
    tasks: int
    means: Mapping[str, float]
    critical: float
    p: float

    @property
    def caption(self) -> str:
        """What the ranks are of, and how far apart two must be."""
        return (
            f"Mean rank over {self.tasks} models and tasks at {self.budget} of the MACs (1 is the "
            f"most accurate). Nemenyi's critical difference is {self.critical:.1f} ranks; "
            f"Friedman's test, p = {self.p:.2g}."
        )


def ranking(budgets: Sequence[Budget]) -> Ranking | None:
    """Rank at the budget where most methods meet on most tasks; None where too few do."""
    every = [(budget.name, budget.ranks()) for budget in budgets]
    every = [(name, ranks) for name, ranks in every if len(ranks) > 2 and _tasks(ranks) >= FEWEST]
    if not every:
        return None

    name, ranks = max(every, key=lambda item: len(item[1]) * _tasks(item[1]))
    k, n = len(ranks), _tasks(ranks)
    quantile = float(studentized_range.ppf(1 - LEVEL, k, float("inf"))) / 2**0.5
    means = {method: sum(each) / n for method, each in ranks.items()}
    p = float(friedmanchisquare(*ranks.values()).pvalue)
    return Ranking(name, n, means, quantile * (k * (k + 1) / (6 * n)) ** 0.5, p)


def _tasks(ranks: Mapping[str, Sequence[float]]) -> int:
    return len(next(iter(ranks.values())))


@makes("figure", 45, overall=True)
def rank_plots(frames: Frames, groups: Sequence[str]) -> Iterator[Plot]:
    """Yield the mean ranks, where enough methods met on several tasks."""
    result = ranking(budgets(frames))
    if result:
        text = f"{result.caption} Two methods differ where their bars do not overlap."
        draws = partial(draw, style.looks(frames.series, frames.leaders), result)
        yield Plot("ranks", text, draws, narrow=True)


def draw(looks: Mapping[str, style.Look], ranking: Ranking) -> Figure:
    """Draw one line a method, the best one on top, its name at the left."""
    order = sorted(ranking.means, key=lambda name: (-ranking.means[name], name))
    page = style.active()
    figure, (ax,) = panels(1, page.column_in, 0.9 + 0.19 * len(order))
    for place, name in enumerate(order):
        look, mean = looks[name], ranking.means[name]
        ends = (mean - ranking.critical / 2, mean + ranking.critical / 2)
        ax.plot(ends, (place, place), color=look.color, linewidth=2.2, alpha=0.55)
        ax.plot(
            mean, place, color=look.color, marker=look.marker, markersize=style.marker_size(look)
        )
    best = min(ranking.means.values()) + ranking.critical / 2
    ax.axvline(best, **(DOTTED | {"linewidth": 0.8}))
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.set_xticks(range(1, len(order) + 1, max(1, len(order) // 6)))
    ax.set_yticks(range(len(order)), [style.short(name, 22) for name in order])
    ax.set_xlabel("mean rank (bars: ± half the critical difference)")
    ax.grid(axis="y", visible=False)
    return figure
