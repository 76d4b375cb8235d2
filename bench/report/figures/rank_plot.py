"""Draw the methods' mean ranks over tasks, with the difference that chance allows (Demšar 2006)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report.data.stats import LEVEL
from bench.report.figures import style
from bench.report.figures.across import Budget
from bench.report.figures.drawing import BLACK, panels

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


def ranking(budgets: list[Budget]) -> Ranking | None:
    """Rank at the budget where most methods meet on most tasks; None where too few do."""
    found = [(budget.name, budget.ranks()) for budget in budgets]
    found = [(name, ranks) for name, ranks in found if len(ranks) > 2]
    found = [(name, ranks) for name, ranks in found if len(next(iter(ranks.values()))) > 1]
    if not found:
        return None
    from scipy.stats import friedmanchisquare, studentized_range

    name, ranks = max(found, key=lambda item: len(item[1]) * len(next(iter(item[1].values()))))
    k, n = len(ranks), len(next(iter(ranks.values())))
    quantile = float(studentized_range.ppf(1 - LEVEL, k, float("inf"))) / 2**0.5
    means = {method: sum(own) / n for method, own in ranks.items()}
    p = float(friedmanchisquare(*ranks.values()).pvalue)
    return Ranking(name, n, means, quantile * (k * (k + 1) / (6 * n)) ** 0.5, p)


def caption(found: Ranking) -> str:
    """Say what the figure shows and what chance allows."""
    text = f"Mean rank over {found.tasks} models and tasks at {found.budget} of the MACs (1 is the "
    text += (
        "most accurate). Two methods differ where their bars do not overlap: Nemenyi's critical "
    )
    return text + f"difference is {found.critical:.1f} ranks; Friedman's test, p = {found.p:.2g}."


def draw(looks: Mapping[str, style.Look], found: Ranking) -> Figure:
    """Draw one line a method, the best one on top, its name at the left."""
    order = sorted(found.means, key=lambda name: (-found.means[name], name))
    page = style.active()
    figure, (ax,) = panels(1, page.column_in, 0.9 + 0.19 * len(order))
    for place, name in enumerate(order):
        look, mean = looks[name], found.means[name]
        ends = (mean - found.critical / 2, mean + found.critical / 2)
        ax.plot(ends, (place, place), color=look.color, linewidth=2.2, alpha=0.55)
        ax.plot(
            mean, place, color=look.color, marker=look.marker, markersize=style.marker_size(look)
        )
    best = min(found.means.values()) + found.critical / 2
    ax.axvline(best, color=BLACK, linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.set_xticks(range(1, len(order) + 1, max(1, len(order) // 6)))
    ax.set_yticks(range(len(order)), [style.short(name, 22) for name in order])
    ax.set_xlabel("mean rank (bars: ± half the critical difference)")
    ax.grid(axis="y", visible=False)
    return figure
