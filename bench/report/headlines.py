"""The sentences on top of a report: what it found, in the terms of the question that it asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.report.data import disturbed
from bench.report.data.frame import Frames
from bench.report.data.leads import fastest, meetings
from bench.report.data.names import metric_name
from bench.report.data.rows import Row, known, label_of
from bench.report.data.ties import BEST
from bench.report.data.timings import is_noise
from bench.report.figures.breakeven import Map, Sweep, by_model
from bench.report.tables.table import escape, signed

# Where a method acts, by the towers whose blocks see fewer tokens; the first that holds is said.
PLACES = {
    "vision": "in the image encoder",
    "projector": "ahead of the language model",
    "language": "inside the language model",
}


def headline(frames: Frames, group: str) -> str:
    """Say in one sentence who is most accurate near half the MACs, and what can be gained there.

    Settings that a paired test cannot tell from the most accurate are all named, and so is the
    fastest of them. Empty where no two methods meet at a share of the MACs.
    """
    met = meetings(frames, group).items()
    peers = {name: cells for name, cells in met if all(known(r["mac_bound_x"]) for r in cells)}
    if not peers:
        return ""
    name = min(peers, key=lambda name: _from_half(peers[name]))
    best, *equals = [row for row in peers[name] if row[BEST]]
    many = len(peers[name])
    unit, metric = best["accuracy_unit"], metric_name(best["metric"])
    if not equals:
        text = f"At {name} of the MACs {_label(best)} is the most accurate of {many} settings: "
        text += f"{metric} {best['accuracy_value']:.1f} {unit}"
        if known(best["delta"]):
            text += f" ({signed(best['delta'], 1)} to {escape(frames.baseline)})"
        return text + _speed(frames, [best]) + "."
    tied = [best, *equals]
    levels = [row["accuracy_value"] for row in tied]
    text = f"At {name} of the MACs {len(tied)} of {many} settings share the lead: "
    text += f"{_listed([_label(row) for row in tied])} ({metric} {max(levels):.1f} to "
    text += f"{min(levels):.1f} {unit}{_of_baseline(frames, group)})"
    return text + _speed(frames, tied) + "."


def _of_baseline(frames: Frames, group: str) -> str:
    base = next((row for row in frames.by_group[group] if row["is_baseline"]), None)
    if base is None or not known(base["accuracy_value"]):
        return ""
    return f"; {escape(frames.baseline)} {base['accuracy_value']:.1f}"


def _speed(frames: Frames, rows: Sequence[Row]) -> str:
    """Say the speed-up of the fastest of some cells at their largest batch.

    What other load disturbed makes no headline.
    """
    found = fastest(frames, rows)
    if found is None:
        return f" (speed-up not told: {disturbed.LOAD})" if frames.timed(rows) else ""
    cell, timing = found
    ends = [timing[f"speedup{end}_x"] for end in ("", "_low", "_high")]
    noise = ", within noise" if is_noise(ends, timing["aa_half_x"], 1) else ""
    who = "" if len(rows) == 1 else f"; the fastest of them is {_label(cell)}"
    text = f"{who}, measured speed-up {timing['speedup_x']:.2f}× at batch {timing['batch']}"
    return f"{text} (MAC bound {cell['mac_bound_x']:.2f}×{noise})"


def where(frames: Frames, group: str) -> str:
    """Say how accurate the best method of each place is, where methods act at several places."""
    best: dict[str, Row] = {}
    for row in frames.by_group[group]:
        place = _place(frames, row)
        if place and not row["is_baseline"] and known(row["accuracy_value"]):
            best[place] = max(best.get(place, row), row, key=lambda one: one["accuracy_value"])
    if len(best) < 2:
        return ""
    parts = [
        f"{words} {_label(best[place])} ({best[place]['accuracy_value']:.1f} "
        f"{best[place]['accuracy_unit']} at {best[place]['gmacs_pct_of_unreduced']:.0f} % of the "
        f"MACs{_answered(frames, best[place])})"
        for place, words in PLACES.items()
        if place in best
    ]
    return f"The most accurate by place: {_listed(parts)}{_of_baseline(frames, group)}."


def _place(frames: Frames, row: Row) -> str:
    """Return the first tower in which a cell has fewer tokens than it began with, or none."""
    tokens = frames.by_uid[row["key"]].cost.tokens
    fewer = [
        name for name in PLACES if any(b < tokens[name][0][0] for _, b in tokens.get(name, []))
    ]
    return fewer[0] if fewer and "language" in tokens else ""


def _answered(frames: Frames, row: Row) -> str:
    """Return the speed-up of an answer, where one was timed and nothing disturbed it."""
    answer = frames.by_uid[row["key"]].cost.generation
    stages = {stage.name: stage for stage in answer.stages} if answer else {}
    if answer is None or answer.disturbed or "end_to_end" not in stages:
        return ""
    return f", answers {stages['end_to_end'].speedup.median:.2f}× as fast"


def break_even(frames: Frames) -> list[str]:
    """Say for each model from where on reduction pays, where batches and resolutions were swept."""
    return [_pays(sweep, methods) for sweep, methods in by_model(frames).items()]


def _pays(sweep: Sweep, methods: Mapping[str, Map]) -> str:
    """Say where which method is faster than the unreduced model, of one model at like MACs."""
    slower = {
        name: [f"batch {b}, {px} px ({x:.2f}×)" for (b, px), x in sorted(places.items()) if x <= 1]
        for name, places in methods.items()
    }
    everywhere = [f"**{escape(name)}**" for name, where in slower.items() if not where]
    text = f"{escape(sweep.model)}, {sweep.share} of MACs: faster than unreduced at every batch "
    text += "and resolution that was timed: "
    text += _listed(everywhere) if everywhere else "no method"
    rest = [f"**{escape(name)}** at {', '.join(where)}" for name, where in slower.items() if where]
    return text + (f"; slower: {'; '.join(rest)}." if rest else ".")


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def of(frames: Frames, group: str) -> Iterator[str]:
    """Yield the sentences about one model and task."""
    if group in frames.groups():
        yield from filter(None, (headline(frames, group), where(frames, group)))


def _label(row: Row) -> str:
    return f"**{escape(label_of(row))}**"


def _from_half(rows: Sequence[Row]) -> float:
    """Return how far some cells are from half the MACs on average, in points."""
    shares = [row["gmacs_pct_of_unreduced"] for row in rows]
    return float(abs(sum(shares) / len(shares) - 50))
