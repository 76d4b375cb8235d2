"""What a comparison of two sets of records comes to, as Markdown: verdicts, medians, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from statistics import median

from bench.records.record import Record
from bench.report.data import stats
from bench.report.data.names import setting, task_name
from bench.report.data.rows import Row
from bench.report.tables.table import MISSING, Column, Table, escape, probability, signed, words

KIND = "change"
VERDICTS = ("Better", "Worse", "Within noise", "Not judged")


def named(record: Record) -> str:
    """Name a cell: model, task, method with all its parameters."""
    cell = record.cell
    params = setting(cell.params)
    return f"{cell.model} · {task_name(cell.task)} · {cell.method} {params}".strip()


def verdict(row: Row) -> str:
    """Return which of `VERDICTS` a change gets."""
    if row["kind"] == "status":
        return "Better" if row["sign"] > 0 else "Worse"
    if row["reason"] or row[f"{KIND}_p_holm"] is None:
        return "Not judged"
    if row[f"{KIND}_p_holm"] >= stats.LEVEL:
        return "Within noise"
    return "Better" if row["sign"] * row[KIND] > 0 else "Worse"


def is_same(row: Row) -> bool:
    """Whether a number is exactly as before."""
    return bool(row[KIND] == 0 and row["old"] == row["new"])


def verdict_line(rows: Sequence[Row]) -> str:
    """Say in one line what the comparison comes to."""
    counts = {one: sum(verdict(row) == one for row in rows) for one in VERDICTS}
    better, worse = counts[VERDICTS[0]], counts[VERDICTS[1]]
    word = "nothing changed beyond noise"
    if better or worse:
        word = "worse" if not better else "better" if not worse else "better and worse"
    told = ", ".join(f"{n} {one.lower()}" for one, n in counts.items() if n)
    return f"**Verdict: {word}**" + (f" ({told})." if told else ".")


def by_method(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table of the median change of each quantity by method, over all that was compared."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row[KIND] is not None and row["kind"] in ("accuracy", "speed-up"):
            values.setdefault((row["method"], row["kind"]), []).append(row[KIND])
    if not values:
        return
    columns = [
        words("Method", "method"),
        Column("accuracy, points", "accuracy", digits=1, sign=True),
        Column("speed-up, %", "speed-up", digits=1, sign=True),
    ]
    methods: dict[str, Row] = {}
    for (method, kind), changes in sorted(values.items()):
        row = methods.setdefault(method, {"method": method, "is_baseline": True, "band": ""})
        row[kind] = median(changes)
    yield "## By method: median change"
    yield Table("by-method", "", columns, list(methods.values())).shown


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table of the changes of each verdict, the largest first."""
    for one in VERDICTS:
        judged = [row for row in rows if verdict(row) == one]
        if not judged:
            if one in VERDICTS[:2]:
                yield f"## {one}: nothing"
            continue
        judged.sort(key=lambda row: (row["kind"], -abs(row[KIND] or 0.0), row["cell"]))
        columns = [
            *(words(head, head.lower()) for head in ("Cell", "Quantity")),
            Column("A", "old", itemgetter("old")),
            Column("B", "new", itemgetter("new")),
            Column("Change", KIND, _change),
            words("Why", "reason")
            if one == "Not judged"
            else Column("p by Holm", f"{KIND}_p_holm", _p),
        ]
        yield f"## {one}: {len(judged)}"
        yield Table(one, "", columns, judged).shown


def _change(row: Row) -> str:
    if row[KIND] is None:
        return MISSING
    return f"{signed(row[KIND], 1)} {row['unit']}".strip()


def _p(row: Row) -> str:
    return MISSING if row[f"{KIND}_p"] is None else probability(row[f"{KIND}_p_holm"])


def missing(head: str, records: Sequence[Record]) -> Iterator[str]:
    """Yield a list of the cells of one side alone."""
    if records:
        yield f"## {head}: {len(records)}"
        yield "\n".join(f"- {escape(named(record))}" for record in records)
