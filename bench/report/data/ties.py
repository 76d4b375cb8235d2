"""Who is the most accurate of a band of MACs: all that a paired test cannot tell from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.report.data import differences
from bench.report.data.rows import Row, known
from bench.report.data.scored import Scored

LEAD = "lead"  # the most accurate setting's difference to another one
BEST = "among_best"


def judge(cells: Sequence[Scored], scores: Mapping[str, Sequence[Row]]) -> None:
    """Add the field `among_best` to cells' rows and to those of their metrics.

    None where a row does not compete. P values are corrected by Holm's method within a band. Where
    nothing pairs two cells, they are equals if their values are.
    """
    contests: dict[tuple[str, ...], list[tuple[Scored, Row]]] = {}
    for cell in cells:
        cell.row[BEST] = None
        for entry in scores[cell.row["key"]]:
            entry[BEST] = None
            if not cell.row["is_baseline"] and known(entry["value"]):
                contest = cell.row["group"], cell.row["band"], entry["metric"]
                contests.setdefault(contest, []).append((cell, entry))
    for (*_, metric), members in contests.items():
        level = _level([entry for _, entry in members])
        best, first = max(members, key=lambda member: float(member[1][level]))
        others = [member for member in members if member[1] is not first]
        leads = [differences.difference(best, cell, metric, LEAD, "the best") for cell, _ in others]
        differences.correct(leads, LEAD)
        first[BEST] = True
        for (_, entry), lead in zip(others, leads, strict=True):
            noise = differences.is_noise(lead, LEAD)
            entry[BEST] = entry["value"] == first["value"] if noise is None else noise
        for cell, entry in members:
            if entry["primary"]:
                cell.row[BEST] = entry[BEST]


def _level(entries: Sequence[Row]) -> str:
    """Return the field that says who is most accurate.

    That is the difference to the baseline where cells have unequally many samples: it is of the
    samples that both have, and no cell gains by easy ones.
    """
    unequal = len({entry["n"] for entry in entries}) > 1
    delta = differences.DELTA
    return delta if unequal and all(known(entry[delta]) for entry in entries) else "value"
