"""Methods at matched budgets, across models and tasks: one setting each, and their ranks."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import rankdata

from bench.report.data.bands import off_middle
from bench.report.data.frame import Frames
from bench.report.data.rows import Row

FEWEST = 6  # tasks to rank on: with fewer the critical difference is as large as ranks can be


@dataclass(frozen=True)
class Budget:
    """A band of MACs: of each method one setting a model and task, nearest to the band's middle."""

    name: str
    cells: dict[str, dict[str, Row]]  # by method, then by group

    def ranks(self) -> dict[str, list[float]]:
        """Return each method's ranks, 1 the most accurate, where it was measured on every task."""
        groups = list(dict.fromkeys(group for row in self.cells.values() for group in row))
        complete = {name: row for name, row in self.cells.items() if row.keys() == set(groups)}
        if len(complete) < 2:
            return {}
        scores = [[-row[group]["accuracy_value"] for row in complete.values()] for group in groups]
        ranks = rankdata(scores, axis=1).T.tolist()  # (methods, groups)
        return dict(zip(complete, ranks, strict=True))


def budgets(frames: Frames) -> list[Budget]:
    """Return the bands from many MACs to few, methods by name."""
    bands: dict[str, dict[str, dict[str, Row]]] = {}
    for group in frames.accuracies():
        for row in frames.by_group[group]:
            if row["is_baseline"] or row["accuracy_value"] is None or row["gmacs"] is None:
                continue
            by_group = bands.setdefault(row["band"], {}).setdefault(row["method"], {})
            by_group[group] = min(by_group.get(group, row), row, key=off_middle)
    levels = {row["band"]: row["level"] for row in frames.cells if row["level"] is not None}
    order = sorted(bands, key=lambda name: (levels[name], name), reverse=True)
    return [Budget(name, dict(sorted(bands[name].items()))) for name in order]
