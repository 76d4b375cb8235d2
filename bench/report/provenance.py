"""Where a report's numbers come from: machines, versions, commands, dates, weights, conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.record import Record
from bench.report import load
from bench.report.frame import Frames
from bench.report.tables import MISSING, escape

_FIELDS = ("cpu", "gpu", "threads", "python", "torch", "transformers", "timm", "numpy", "git")

CONVENTIONS = (
    "**GMACs** are 10⁹ multiply-accumulates, counted by fvcore's rules with scaled-dot-product "
    "attention included; twice as many make GFLOPs. The scope stands above each table. "
    '"% reducing" is what the method itself spends.',
    "**Intervals** are 95 %. Accuracies carry half their interval's width; the CSV files have both "
    "ends. **Δ** compares the same samples one by one: hit-or-miss metrics with Bonett and Price's "
    "interval for paired proportions (the CSV's p value is McNemar's exact test), others with the "
    "paired t interval. Nothing is corrected for multiple comparisons.",
    "**Speed-up** is the unreduced model's time over the method's, from runs that alternate the "
    "two: median ratio and its interval. The **MAC bound** is the speed-up that the saved MACs "
    'allow; "of MAC bound" is the share of it that was measured.',
    "**Bold** is the best of a column within a ten-point band of MACs: only there do methods "
    "compete at a like budget. It does not say that the lead is beyond noise.",
    "**b8** is a batch of 8; milliseconds are those of one forward pass of the whole batch. One "
    "table holds one profile, attention backend, dtype and scope.",
)


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
        values = _distinct(record.env.get(name) for record in records)
        if values:
            facts.append((escape(name), ", ".join(map(escape, values))))
    facts.append(("profiles", ", ".join(map(escape, _distinct(r.cell.profile for r in records)))))
    facts.append(("commands", "; ".join(_code(c) for c in _distinct(r.command for r in records))))
    dates = sorted(record.created for record in records)
    facts.append(("recorded", f"{escape(dates[0])} to {escape(dates[-1])}"))
    minutes = sum(record.seconds for record in records) / 60
    facts.append(("cells", f"{len(records)}, {minutes:.1f} minutes of measuring in all"))
    return facts


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


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _code(text: str) -> str:
    plain = " ".join(text.split())
    fence = "``" if "`" in plain else "`"
    pad = " " if "`" in plain else ""
    return f"{fence}{pad}{plain}{pad}{fence}".replace("|", "\\|")
