"""A cell's scores sample by sample, random reduction's at its cost, and what two of them share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bench.records.outcomes import scores_by_seed
from bench.records.precision import scale_of
from bench.records.record import Metric, Record
from bench.report.data import stats
from bench.report.data.rows import Row

RANDOM = "random"


@dataclass(frozen=True)
class Scored:
    """A cell: its record and its row, and its samples' scores by metric, made once."""

    record: Record
    row: Row

    @cached_property
    def scores(self) -> dict[str, stats.Scores | None]:
        """Scores (seeds, samples), or None where the outcomes do not hold a metric."""
        known = self.record.accuracy
        return {name: scores_by_seed(name, known) for name in known.metrics}

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name."""
        return self.record.accuracy.metrics

    @property
    def cells(self) -> tuple[Scored, ...]:
        """What its scores are made of."""
        return (self,)

    @property
    def early(self) -> bool:
        """Whether it stopped early: its samples are the first of those of other cells."""
        stop = self.record.accuracy.stop
        return stop is not None and stop.early

    def reproduces(self, name: str) -> bool:
        """Whether the outcomes add up to a metric."""
        scores, metric = self.scores.get(name), self.metrics[name]
        scale = scale_of(metric)
        off = 0.0 if scores is None else abs(scale * float(scores.mean()) - metric.value)
        return off <= 0.01 * scale / 100 + 1e-6

    @property
    def method(self) -> str:
        """The method's name, whatever its parameters."""
        return self.record.cell.method

    @property
    def share(self) -> Any:
        """The percentage of the unreduced model's MACs, None where it is not known."""
        return 100.0 if self.record.cell.baseline else self.row["gmacs_pct_of_unreduced"]


@dataclass(frozen=True)
class Between:
    """Random reduction at a method's own MACs: a mean of two cells, by their distance in MACs.

    Attributes:
        fewer, more: the cells with the next fewer and the next more MACs; may be the same.
        weight: of `more`, from 0 to 1.
    """

    fewer: Scored
    more: Scored
    weight: float

    @property
    def cells(self) -> tuple[Scored, ...]:
        """What its scores are made of."""
        return self.fewer, self.more

    @property
    def setting(self) -> str:
        """The settings between which it lies, those of the unreduced model by its method."""
        names = [cell.row["setting"] or cell.row["method"] for cell in (self.fewer, self.more)]
        return " to ".join(dict.fromkeys(names))

    @property
    def seeds(self) -> int:
        """How many seeds each random cell was run under, the fewest of them."""
        cells = [one for one in (self.fewer, self.more) if one.method == RANDOM]
        return min((1 + len(one.record.accuracy.repeats) for one in cells), default=1)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The means of the metrics that both cells have."""
        return {
            name: replace(one, value=self._mean(one.value, other.value), ci95=None)
            for name, one in self.fewer.metrics.items()
            if (other := self.more.metrics.get(name)) and one.unit == other.unit
        }

    @cached_property
    def scores(self) -> dict[str, stats.Scores | None]:
        """The means of the samples' scores, seed by seed, of metrics that pair."""
        pairs = {name: common(self.fewer, self.more, name) for name in self.fewer.scores}
        return {name: self._mean(*pair) for name, pair in pairs.items() if pair is not None}

    def _mean(self, fewer: Any, more: Any) -> Any:
        return fewer if not self.weight else (1 - self.weight) * fewer + self.weight * more


def common(
    one: Scored, other: Scored | Between, name: str
) -> tuple[stats.Scores, stats.Scores] | None:
    """Return two cells' scores (seeds, n) on the samples that both have; None where none pair.

    Of cells that stopped early these are the first of the other's.
    """
    ours, theirs = one.scores.get(name), other.scores.get(name)
    if ours is None or theirs is None or not ours.ndim == theirs.ndim == 2:
        return None
    if any(cell.early for cell in (*one.cells, *other.cells)):
        n = min(ours.shape[1], theirs.shape[1])
        ours, theirs = ours[:, :n], theirs[:, :n]
    return (ours, theirs) if stats.pairable(ours, theirs) else None
