"""Where a report's numbers come from: machines, versions, commands, dates, weights, conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench.records.published import UNITS, PublishedCost, costs
from bench.records.record import Record
from bench.report.data import disturbed, load, mixture
from bench.report.data.differences import EDGE_POINTS, LIKE_POINTS
from bench.report.data.frame import Frames
from bench.report.data.rows import Row
from bench.report.tables.comparison import task_name
from bench.report.tables.table import MISSING, Column, Table, escape, number, text_column

_HOST = {"fingerprint": "host", "memory_gib": "memory GiB", "caches": "caches"}
_VERSIONS = ("python", "torch", "transformers", "timm", "numpy", "git")
_FIELDS = ("cpu", "gpu", *_HOST, "threads", *_VERSIONS)

CONVENTIONS = (
    "**GMACs** are 10⁹ multiply-accumulates, counted by fvcore's rules with scaled-dot-product "
    "attention included; twice as many make GFLOPs. The scope stands above each table. "
    "A merge costs one a channel for each token that disappears into another, and a soft "
    "assignment its matrix product, however either is written. "
    '"% reducing" is what the method itself spends.',
    "**Intervals** are 95 %. Accuracies carry half their interval's width; the CSV files have both "
    "ends. **Δ** compares the same samples one by one, with a paired bootstrap interval.",
    "**≈** stands where a difference is within noise, **†** where a method is not better than "
    "random reduction at the same MACs but within noise of it, **‡** where it is worse: by "
    "McNemar's exact test for hit-or-miss metrics and a sign-flip permutation test for others, at "
    "5 %, corrected by Holm's method within a table and metric. Intervals are not corrected: for "
    "a speed-up, and in tables of fine-tuned models, ≈ says that one holds no difference.",
    "**Random reduction** is scored under five seeds, with new draws for each batch; its accuracy "
    "is the mean, its interval covers samples and seeds. At a method's own MACs its score is "
    "interpolated, sample by sample, between its settings with the next fewer and the next more "
    "(the unreduced model at 100 %), of those that reduce at the same place where there are any. "
    f"The nearest setting must be within {LIKE_POINTS:.0f} points of the MACs, and the cheapest at "
    f"most {EDGE_POINTS:.0f} points dearer than the method: nothing is extrapolated. The variance "
    "over seeds adds to that over samples, and the test is then Student's, with Satterthwaite's "
    "degrees of freedom. Records with one seed are judged as if another seed changed nothing, and "
    "their table says so.",
    "**Speed-up** is the unreduced model's time over the method's: the median of quadruples that "
    "alternate the two (A B B A), at least 16 pairs in four blocks over the cell's time. Its "
    "interval is Student's over the blocks' medians, in logarithms, so that it holds what a repeat "
    "would give. The **MAC bound** is the speed-up that the saved MACs "
    'allow; "of MAC bound" is the share of it that was measured.',
    "**A/A**: the unreduced model timed against its twin shows how far from 1 two equal things "
    "lie. A speed-up that lies no farther than they do in its suite, at its batch, is marked ≈, "
    "whatever its own interval says.",
    "**Bold** is the best of a column within ten points of MACs: only there do methods "
    "compete at a like budget. It does not say that the lead is beyond noise.",
    "**b8** is a batch of 8; milliseconds are those of one forward pass of the whole batch. One "
    "table holds one profile, attention backend, dtype and scope.",
)


EQUAL = (
    "The unreduced model against its twin (A/A): {n} undisturbed timings, median {median:.2f}×; "
    "{holding} of their 95 % intervals hold 1. The spread is how far from 1 the ratios lie: 95 % "
    "of them, all of them where there are fewer than 20, the interval of a single one."
)


def conventions(frames: Frames) -> tuple[str, ...]:
    """Return how to read the numbers of a report, with the marks that occur in it."""
    marked = f"**{disturbed.MARK}** stands behind a timing that was {disturbed.LOAD}, however "
    marked += "often it was taken again: no headline, figure or best of a column rests on it."
    return (*CONVENTIONS, *([marked] if disturbed.note(frames.records) else []))


def equal_things(frames: Frames) -> Table | None:
    """Return what each suite's measurement says of two equal things; None where none were timed."""
    spreads = frames.spreads.values()
    ratios = [ratio.median for spread in spreads for ratio in spread.ratios]
    if not ratios:
        return None
    rows: list[Row] = [
        {"machine": one.machine, "suite": one.suite, "timing": one.timing, "n": len(one.ratios)}
        | {"median_x": one.median, "half_pct": 100 * one.half, "holding": one.holding}
        | {"band": "", "is_baseline": False}
        for one in spreads
    ]
    columns = [text_column(name.capitalize(), name) for name in ("machine", "suite", "timing")]
    columns += [
        Column("A/A timings", "n", number("n", 0)),
        Column("median", "median_x", number("median_x", 3, "×")),
        Column("spread", "half_pct", lambda row: f"±{row['half_pct']:.1f} %"),
        Column("interval holds 1", "holding", lambda row: f"{row['holding']} of {row['n']}"),
    ]
    holding = sum(one.holding for one in spreads)
    caption = EQUAL.format(n=len(ratios), median=median(ratios), holding=holding)
    return Table("equal-things", escape(caption), columns, rows)


def machines(frames: Frames) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each machine's name with its facts, as pairs of Markdown text."""
    names = sorted({load.machine(record) for record in frames.records})
    return [
        (escape(name), _facts([r for r in frames.records if load.machine(r) == name]))
        for name in names
    ]


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    facts = []
    extra = {name for record in records for name in record.env} - {*_FIELDS, "machine"}
    for name in (*_FIELDS, *sorted(extra)):
        values = _distinct(_written(record.env.get(name)) for record in records)
        if name == "fingerprint" and values:
            values = [mixture.counted(mixture.fingerprints(records))]
        if values:
            facts.append((escape(_HOST.get(name, name)), ", ".join(map(escape, values))))
    facts.append(("profiles", ", ".join(map(escape, _distinct(r.cell.profile for r in records)))))
    facts.append(("commands", "; ".join(_code(c) for c in _distinct(r.command for r in records))))
    dates = sorted(record.created for record in records)
    facts.append(("recorded", f"{escape(dates[0])} to {escape(dates[-1])}"))
    minutes = sum(record.seconds for record in records) / 60
    facts.append(("cells", f"{len(records)}, {minutes:.1f} minutes of measuring in all"))
    return facts


def host(env: Mapping[str, Any]) -> list[str]:
    """Return what tells a host from others of its name, as plain text."""
    return [f"{head} {_written(env[name])}" for name, head in _HOST.items() if env.get(name)]


def weights(frames: Frames) -> list[tuple[str, str, str]]:
    """Return the distinct (model, weights, start of their sha256), as Markdown text."""
    seen = {
        (
            escape(record.cell.model),
            escape(record.provenance.get("weights") or MISSING),
            str(record.provenance.get("weights_sha256") or MISSING)[:12],
        )
        for record in frames.records
    }
    return sorted(seen)


def origins(frames: Frames) -> Table:
    """Return where the numbers come from; what papers print of these models is set apart."""
    counts: dict[tuple[str, ...], list[Record]] = {}
    for record in frames.records:
        if record.status == "ok":
            how = str(record.provenance.get("how") or "measured")
            place = record.cell.model, task_name(record.cell.task), load.machine(record)
            counts.setdefault((how, *place), []).append(record)
    rows: list[Row] = []
    for (how, model, task, machine), own in sorted(counts.items()):
        methods = len({record.cell.method for record in own})
        what = f"{len(own)} cells of {methods} methods" if methods > 1 else f"{len(own)} cells"
        row: Row = {"from": f"{how} here", "model": f"{model} · {task}", "what": what, "value": ""}
        rows.append(row | {"source": machine, "band": how})
    sources: list[str] = []
    for cost in _published(frames):
        if cost.source not in sources:
            sources.append(cost.source)
        row = {"from": "as published", "model": cost.figure, "what": f"{cost.method} {cost.label}"}
        row |= {"value": f"{cost.published} {UNITS[cost.quantity]}", "band": "published"}
        rows.append(row | {"source": f"[{sources.index(cost.source) + 1}]"})
    rows = [row | {"is_baseline": False} for row in rows]
    heads = {"from": "From", "model": "Model", "what": "What", "value": "Value", "source": "Source"}
    columns = [text_column(head, key) for key, head in heads.items()]
    caption = "Numbers as published are for comparison only: they are in no row that was measured."
    if not sources:
        caption = "No published figure belongs to these models and methods."
    caption += "".join(f" [{i}] {source}." for i, source in enumerate(sources, 1))
    return Table("origins", escape(caption), columns, rows)


def _published(frames: Frames) -> list[PublishedCost]:
    """Return the costs that papers print of a model and method in this report."""
    shown = {(record.cell.model, record.cell.method) for record in frames.records}
    return [
        cost
        for cost in costs()
        if any(model.endswith(cost.model) and cost.method == m for model, m in shown if cost.model)
    ]


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _written(value: Any) -> Any:
    """Write a fact of several parts, such as caches, in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return " / ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _code(text: str) -> str:
    plain = " ".join(text.split())
    fence = "``" if "`" in plain else "`"
    pad = " " if "`" in plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}".replace("|", "\\|")
