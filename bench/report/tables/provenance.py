"""Where a report's numbers come from: machines, versions, commands, dates, weights, conventions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from bench.records.published import UNITS, PublishedCost, costs
from bench.records.record import Record
from bench.report.data import disturbed, load, mixture
from bench.report.data.differences import EDGE_POINTS, LIKE_POINTS
from bench.report.data.frame import Frames
from bench.report.data.names import task_name
from bench.report.data.rows import Row
from bench.report.data.templates import environment
from bench.report.tables.table import MISSING, Column, Table, escape, words

_HOST = {"fingerprint": "host", "memory_gib": "memory GiB", "caches": "caches"}
_VERSIONS = ("python", "torch", "transformers", "timm", "numpy", "git")
_FIELDS = ("cpu", "gpu", *_HOST, "threads", *_VERSIONS)

CONVENTIONS = "conventions.md.j2"
EQUAL = (
    "The unreduced model against its twin (A/A): {n} undisturbed timings, median {median:.2f}×; "
    "{holding} of their 95 % intervals hold 1. The spread is how far from 1 the ratios lie: 95 % "
    "of them, all of them where there are fewer than 20, the interval of a single one."
)


def conventions(frames: Frames) -> list[str]:
    """Return how to read the numbers of a report, with the marks that occur in it."""
    about: dict[str, Any] = {
        "like": f"{LIKE_POINTS:.0f}",
        "edge": f"{EDGE_POINTS:.0f}",
        "mark": disturbed.MARK,
    }
    about |= {"disturbed": disturbed.note(frames.records), "load": disturbed.LOAD}
    lines: list[str] = environment().get_template(CONVENTIONS).render(about).splitlines()
    return lines


def equal_things(frames: Frames) -> Table | None:
    """Return what each suite's measurement says of two equal things; None where none were timed."""
    spreads = frames.spreads.values()
    ratios = [ratio.median for spread in spreads for ratio in spread.ratios]
    if not ratios:
        return None
    rows: list[Row] = [
        {"machine": one.machine, "suite": one.suite, "timing": one.timing, "n": len(one.ratios)}
        | {"median_x": one.median, "half_pct": 100 * one.half, "holding": one.holding}
        for one in spreads
    ]
    columns = [words(name.capitalize(), name) for name in ("machine", "suite", "timing")]
    columns += [
        Column("A/A timings", "n", digits=0),
        Column("median", "median_x", digits=3, suffix="×"),
        Column("spread", "half_pct", lambda row: f"±{row['half_pct']:.1f} %"),
        Column("interval holds 1", "holding", lambda row: f"{row['holding']} of {row['n']}"),
    ]
    holding = sum(one.holding for one in spreads)
    caption = EQUAL.format(n=len(ratios), median=median(ratios), holding=holding)
    return Table("equal-things", escape(caption), columns, rows)


def failed(frames: Frames) -> Table | None:
    """Return the cells that did not finish; None where all did."""
    if not frames.failed:
        return None
    return Table("failed", "", [words(name, name) for name in frames.failed[0]], frames.failed)


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


def weights(records: Iterable[Record]) -> list[tuple[str, str, str]]:
    """Return the distinct (model, weights, start of their sha256), as Markdown text."""
    seen = {
        (
            escape(record.cell.model),
            escape(record.provenance.get("weights") or MISSING),
            escape(str(record.provenance.get("weights_sha256") or MISSING)[:12]),
        )
        for record in records
    }
    return sorted(seen)


def origins(frames: Frames) -> Table:
    """Return where the numbers come from; what papers print of these models is set apart."""
    counts: dict[tuple[str, ...], list[Record]] = {}
    for record in frames.records:
        if record.status == "ok":
            how = str(record.provenance.get("how") or "measured")
            model = f"{record.cell.model} · {task_name(record.cell.task)}"
            counts.setdefault((how, model, load.machine(record)), []).append(record)
    rows = []
    for (how, model, machine), records in sorted(counts.items()):
        methods = len({record.cell.method for record in records})
        what = f"{len(records)} cells" + (f" of {methods} methods" if methods > 1 else "")
        rows.append((f"{how} here", model, what, "", machine, how))
    sources: list[str] = []
    for cost in _published(frames):
        if cost.source not in sources:
            sources.append(cost.source)
        what, value = f"{cost.method} {cost.label}", f"{cost.published} {UNITS[cost.quantity]}"
        source = f"[{sources.index(cost.source) + 1}]"
        rows.append(("as published", cost.figure, what, value, source, "published"))
    names = ("from", "model", "what", "value", "source", "band")
    caption = "Numbers as published are for comparison only: they are in no row that was measured."
    if not sources:
        caption = "No published figure belongs to these models and methods."
    caption += "".join(f" [{i}] {source}." for i, source in enumerate(sources, 1))
    columns = [words(name.capitalize(), name) for name in names[:-1]]
    values = [dict(zip(names, row, strict=True)) for row in rows]
    return Table("origins", escape(caption), columns, values)


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
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))  # longer than any inside
    pad = " " if "`" in plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}".replace("|", "\\|")
