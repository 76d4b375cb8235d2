"""Who is best: contests of settings on the same samples, and ranks of methods over contests.

An accuracy does not depend on whose machine it was taken on, nor on the engine of the timings. So
settings meet across machines wherever model, weights, task, data, samples, dtype and attention are
the same, within a band of MACs as in reports; what beats what, a paired test says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from scipy.stats import rankdata

from bench.records.record import EAGER, Record
from bench.report.data import frame, load
from bench.report.data.budgets import budgets
from bench.report.data.differences import correct, difference, is_noise
from bench.report.data.frame import Frames
from bench.report.data.rows import Row
from bench.report.data.scored import Scored
from bench.report.data.ties import LEAD

ANYWHERE = "any machine"


@dataclass(frozen=True)
class Standing:
    """A method at a budget.

    Attributes:
        rank: Borda rank among the methods of the budget, 1 the best; equals share the better one.
        score: mean over all contests of the share of rivals that it beats beyond noise, ties half;
            0 in those that it has not entered.
        entered: contests with a record of it.
    """

    method: str
    rank: int
    score: float
    entered: int


@dataclass(frozen=True)
class Ranking:
    """The methods at one budget, the best first, over so many contests."""

    budget: str
    contests: int
    standings: tuple[Standing, ...]


def competes(record: Record) -> bool:
    """Whether a record has what a contest needs: an accuracy and its MACs, of true weights.

    Models fine-tuned with a method at work are none: their seeds are no settings.
    """
    scored = record.status == "ok" and record.accuracy.primary is not None
    tuned = record.cell.random_weights or "training" in record.provenance
    return scored and record.cost.macs is not None and not tuned


def frames_of(records: Sequence[Record]) -> Frames:
    """Return a report's data in which a table is a contest; records from old to new.

    Of a setting's records the newest one counts.
    """
    return frame.build([_anywhere(record) for record in records])


def identity(record: Record) -> str:
    """Name the setting that a record is of, on whatever machine, under whatever engine."""
    return load.cell_identity(_anywhere(record))


def _anywhere(record: Record) -> Record:
    """Return a record without what its accuracy does not depend on.

    Weights and data take the place of the profile: what tells tables apart.
    """
    parts = {"weights": "weights_sha256", "data": "task_version"}
    ids = [f"{word} {str(record.provenance.get(key))[:8]}" for word, key in parts.items()]
    cell = replace(record.cell, profile=", ".join(ids), engine=EAGER, batch_sizes=None)
    return replace(record, cell=cell, env={**record.env, "machine": ANYWHERE})


def rankings(frames: Frames) -> list[Ranking]:
    """Return the Borda ranks at each budget where methods met, from many MACs to few.

    Of a method's settings in a band the one nearest to its middle competes, as in reports.
    """
    made = []
    for budget in budgets(frames):
        contests: dict[str, dict[str, Row]] = {}
        for method, rows in budget.cells.items():
            for group, row in rows.items():
                contests.setdefault(group, {})[method] = row
        shares = [_beaten(frames, rows) for rows in contests.values() if len(rows) > 1]
        if shares:
            made.append(Ranking(budget.name, len(shares), _standings(shares)))
    return made


def _standings(shares: Sequence[Mapping[str, float]]) -> tuple[Standing, ...]:
    methods = sorted({method for contest in shares for method in contest})
    scores = [fmean(contest.get(method, 0.0) for contest in shares) for method in methods]
    ranks = rankdata([-round(score, 9) for score in scores], method="min").tolist()
    entered = [sum(method in contest for contest in shares) for method in methods]
    rows = zip(methods, map(int, ranks), scores, entered, strict=True)
    return tuple(sorted((Standing(*row) for row in rows), key=lambda one: one.rank))


def _beaten(frames: Frames, rows: Mapping[str, Row]) -> dict[str, float]:
    """Return the share of its rivals in a contest that each method beats, ties half.

    P values are corrected by Holm's method for all pairs. Where nothing pairs two methods, they are
    equals if their values are.
    """
    cells = {method: Scored(frames.by_uid[row["key"]], row) for method, row in rows.items()}
    pairs = list(combinations(cells, 2))
    leads = [
        difference(cells[a], cells[b], cells[a].row["metric"], LEAD, "the other") for a, b in pairs
    ]
    correct(leads, LEAD)
    points = dict.fromkeys(cells, 0.0)
    for (a, b), lead in zip(pairs, leads, strict=True):
        if is_noise(lead, LEAD) or not lead[LEAD]:
            points[a] += 0.5
            points[b] += 0.5
        else:
            points[a if lead[LEAD] > 0 else b] += 1
    return {method: value / (len(cells) - 1) for method, value in points.items()}
