"""The tables of a study: all settings before and after fine-tuning, and the ablation chains."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.records.record import Record
from bench.report.data.bands import by_band, place
from bench.report.data.mixture import is_older
from bench.report.data.names import metric_name, setting
from bench.report.data.rows import Row, cell_row, latency_rows
from bench.report.data.timings import conditions
from bench.report.tables.comparison import disturbed_legend
from bench.report.tables.table import Column, Table, escape, interval, name_columns, words
from recipes.ablation.chains import METHOD, Chain, Step, chains
from recipes.ablation.estimates import (
    Estimate,
    difference_over_samples,
    difference_over_seeds,
    over_samples,
    over_seeds,
)
from recipes.ablation.studies import UNREDUCED, Setting, Study

_COSTS = ("gmacs", "gmacs_pct_of_unreduced", "params_m")
_OVER_SEEDS = (
    "Untrained: half the 95 % interval over samples; trained: mean over seeds and half of "
    "Student's 95 % interval; differences are paired by seed. Intervals over seeds hold for this "
    "test set: what other samples would change is not in them. ≈: an interval that holds zero. "
)


def settings_table(study: Study, metric: str) -> Table:
    """Return all settings by band of MACs: accuracy as it was and fine-tuned, and the speed-up."""
    condition, batch = timing(study)
    rows = [_setting_row(study, s, metric) | speedup(s, condition, batch) for s in study.settings]
    place(rows)
    for row in rows:
        row["band"] = UNREDUCED if row["is_baseline"] else row["band"]
    rows.sort(key=by_band)
    head = metric_name(metric)
    columns = [
        *name_columns(rows),
        words("Towers", "towers"),
        *([words("Own loss", "own_loss")] if any(row["own_loss"] for row in rows) else []),
        Column("GMACs", "gmacs"),
        Column("% of unreduced", "gmacs_pct_of_unreduced", digits=1, wide=True),
        Column("Seeds", "seeds", digits=0, wide=True),
        interval(f"{head}, untrained", "untrained{}", digits=1, half=True, better=1),
        interval(f"{head}, trained", "trained{}", digits=1, half=True, better=1),
        interval("Gain", "gain{}", digits=1, sign=True, null=0, wide=True),
        interval(f"Δ to trained {UNREDUCED}", "delta{}", digits=1, sign=True, null=0),
        *_speed_column(rows, batch),
    ]
    scopes = dict.fromkeys(s.record.cost.macs.scope for s in study.settings if s.record.cost.macs)
    caption = f"MACs: {escape(', '.join(scopes))}. " if scopes else ""
    caption += f"{_OVER_SEEDS}{_speed_caption(condition, batch, rows)}{escape(study.about)}."
    return Table(f"{study.name}--{metric}", caption, columns, rows)


def _setting_row(study: Study, one: Setting, metric: str) -> Row:
    own, base = one.scores(metric), study.unreduced
    before, after = over_samples(one.untrained, metric), over_seeds(list(own.values()))
    gain = over_seeds([value - before.value for value in own.values()]) if before else None
    reduced = one.method != UNREDUCED
    delta = difference_over_seeds(own, base.scores(metric)) if base and reduced else None
    row = _named(study, one) | {"metric": metric, "seeds": len(own) or None}
    row |= _fields("untrained", before) | _fields("trained", after)
    row |= _fields("gain", gain) | _fields("delta", delta)
    best = after or before
    return row | {"accuracy_value": best.value if best else None}


def _named(study: Study, one: Setting) -> Row:
    """Return what a setting is and costs."""
    finished = cell_row(one.record, study.name, {})
    row: Row = {name: finished[name] for name in ("group", "method", "setting", "is_baseline")}
    row |= {"towers": one.towers, "own_loss": _own_loss(study, one)}
    row |= {name: finished[name] for name in _COSTS}
    return row | {"budget": finished["budget"], "older": any(map(is_older, one.records))}


def _own_loss(study: Study, one: Setting) -> str:
    """Write the share of a method's own loss where it has one: where several were tried."""
    if one.weight is None:
        return ""
    tried = {s.weight for s in study.settings if s.method == one.method} - {None}
    return f"{one.weight:g}" if len(tried) > 1 or one.method == METHOD else ""


def chain_table(study: Study, chain: Chain, index: int) -> Table:
    """Return the ablation at one budget: each part with what it adds to the one before."""
    condition, batch = timing(study)
    before: list[Step | None] = [None, *chain.steps[:-1]]
    rows = [
        _step_row(study, step, last) | speedup(step.setting, condition, batch)
        for step, last in zip(chain.steps, before, strict=True)
    ]
    for name, one in (("at the same MACs", chain.matched), ("unreduced", study.unreduced)):
        if one:
            label = f"{name}: {one.method} {setting(dict(one.params))}".strip()
            rows.append(_reference(study, label, one) | speedup(one, condition, batch))
    columns = [words("Step", "step"), Column("GMACs", "gmacs"), Column("Seeds", "seeds", digits=0)]
    for metric in study.shown:
        head = metric_name(metric)
        kinds = ("untrained", "trained") if metric == study.verdict else ("trained",)
        for kind in kinds:
            keys = f"{metric}_{kind}{{}}"
            columns.append(interval(f"{head}, {kind}", keys, digits=1, half=True))
            step = f"{metric}_{kind}_step{{}}"
            columns.append(interval("Δ step", step, digits=1, sign=True, null=0))
    columns += _speed_column(rows, batch)
    return Table(f"{study.name}--ablation-{index}", _chain_caption(chain, rows), columns, rows)


def _chain_caption(chain: Chain, rows: Sequence[Row]) -> str:
    text = "Δ step: to the step above, paired by seed (untrained: by sample); "
    text += "the alignment loss acts in training only. ≈: an interval that holds zero."
    if chain.missing:
        text += f" Not measured: {', '.join(chain.missing)}."
    if chain.matched is None:
        text += " No setting of tome costs the same MACs."
    legend = disturbed_legend(rows)
    text += f" {legend}." if legend else ""
    return escape(text)


def _step_row(study: Study, step: Step, last: Step | None) -> Row:
    if step.setting is None:
        return {"step": step.part.name, "gmacs": None, "seeds": None, **_BLANK}
    row = _reference(study, step.part.name, step.setting)
    previous = last.setting if last else None
    for metric in study.metrics:
        kinds: dict[str, Estimate | None] = {"untrained": None, "trained": None}
        if previous:
            ours, theirs = step.setting.scores(metric), previous.scores(metric)
            kinds["trained"] = difference_over_seeds(ours, theirs)
        if previous and step.untrained:
            pair = step.setting.untrained, previous.untrained
            kinds["untrained"] = difference_over_samples(*pair, metric)
        if not step.untrained:
            row |= _fields(f"{metric}_untrained", None)
        for kind, found in kinds.items():
            row |= _fields(f"{metric}_{kind}_step", found)
    return row


def _reference(study: Study, label: str, one: Setting) -> Row:
    """Return a row that has no step before it."""
    seeds = len(one.scores(study.verdict)) or None
    row = {**_named(study, one), "step": label, "seeds": seeds, **_BLANK}
    for metric in study.metrics:
        row |= _fields(f"{metric}_untrained", over_samples(one.untrained, metric))
        row |= _fields(f"{metric}_trained", over_seeds(list(one.scores(metric).values())))
    return row


def chain_tables(study: Study) -> list[tuple[str, Table]]:
    """Return each ablation with its heading."""
    found = [chain for chain in chains(study) if chain.is_ablation]
    return [(escape(c.where), chain_table(study, c, i)) for i, c in enumerate(found, 1)]


def timing(study: Study) -> tuple[str | None, int]:
    """Return the condition that most was timed in, and the largest batch there."""
    records = [r for s in study.settings for r in (*s.trained.values(), s.untrained) if r]
    rows = [row for record in records for row in latency_rows(record)]
    condition = next(iter(conditions(rows)), None)
    return condition, max((r["batch"] for r in rows if r["condition"] == condition), default=0)


def speedup(one: Setting | None, condition: str | None, batch: int) -> Row:
    """Return the median over seeds of the paired speed-ups, with their range.

    It counts as disturbed where the timing of any seed was. Training does not change what is
    computed: without trained records the untrained one counts.
    """
    records: list[Record | None] = [*one.trained.values()] if one else []
    records = records or [one.untrained if one else None]
    rows = [row for record in records if record for row in latency_rows(record)]
    rows = [row for row in rows if (row["condition"], row["batch"]) == (condition, batch)]
    found = [row["speedup_x"] for row in rows]
    if not found:
        return dict.fromkeys((*_ends("speedup_x"), "disturbed"))
    ends = (min(found), max(found)) if len(found) > 1 else (None, None)
    speeds = dict(zip(_ends("speedup_x"), (median(found), *ends), strict=True))
    return speeds | {"disturbed": any(row["disturbed"] for row in rows)}


def _speed_column(rows: Sequence[Row], batch: int) -> list[Column]:
    if not batch:
        return []
    head = f"speed-up, b{batch}"
    return [interval(head, "speedup_x{}", digits=2, suffix="×", better=1).timing()]


def _speed_caption(condition: str | None, batch: int, rows: Sequence[Row]) -> str:
    if not batch:
        return "No timings recorded. "
    text = f"Speed-up at batch {batch} ({condition}): median over seeds of the paired medians"
    legend = disturbed_legend(rows)
    return f"{escape(text)}, and their range. " + (f"{legend}. " if legend else "")


def _ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _fields(name: str, found: Estimate | None) -> Row:
    ends = (found.value, found.low, found.high) if found else (None, None, None)
    return dict(zip(_ends(name), ends, strict=True)) | {f"{name}_n": found.n if found else None}


_BLANK: Row = {"is_baseline": True, "band": ""}  # nothing is best in a chain
