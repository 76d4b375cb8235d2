"""The data of the report's page: its cells, the plots that they stand in, records, looks."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from bench.records.record import Record
from bench.report.data.differences import FLAGS
from bench.report.data.frame import Frames
from bench.report.data.rows import Row, known
from bench.report.tables.comparison import metric_name, task_name, title
from bench.report.tables.table import group_rows, is_noise
from bench.report.tables.timings import conditions, latency_of, under

LONGEST_LIST = 8  # of numbers; samples and outcomes are longer, and named instead of shown
SHARED = ("env", "provenance", "command")  # parts of a record that many records have in common
# fmt: off
NUMBERS = (
    "accuracy_value", "accuracy_low", "accuracy_high", "accuracy_n", "delta", "delta_low",
    "delta_high", "gmacs", "gmacs_pct_of_unreduced", "peak_mib",
)
# What fine-tuned models must have in common to stand in one plot.
PLACE = (
    "task", "machine", "profile", "limit", "dtype", "backend", "how", "macs_scope", "metric",
)
# fmt: on


def text(value: Any) -> str:
    """Write JSON that may stand inside a script element: no `<` can end it."""
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def packed(value: Any) -> str:
    """Write JSON deflated, in base64: a browser unpacks it."""
    return base64.b64encode(zlib.compress(text(value).encode(), 9)).decode()


def cells(frames: Frames) -> tuple[list[Row], list[Row], dict[str, Any]]:
    """Return the panels of the plot, the cells that they hold, and the cells' records."""
    means = _mean_tokens(frames)
    panels: dict[str, Row] = {}
    places: dict[tuple[Any, ...], str] = {}
    members: dict[str, list[str]] = {}
    result: list[Row] = []
    shown: list[Record] = []
    for group in sorted(frames.by_group, key=lambda name: name in frames.apart):
        rows = group_rows(frames, group)
        name = _panel(rows, frames, group, places)
        timed = latency_of(frames, rows)
        condition = next(iter(conditions(timed)), None)
        if name not in panels:
            panels[name] = _about(rows, name, condition) | {"apart": group in frames.apart}
        members.setdefault(name, []).append(group)
        speeds = _speeds(under(condition, timed))
        at = list(panels).index(name)
        for row in rows:
            result.append(_cell(row, at, means.get(row["key"]), speeds.get(row["key"], {})))
            shown.append(frames.by_uid[row["key"]])
    shared = [panel | {"mixed": frames.remark(*members[name])} for name, panel in panels.items()]
    return shared, result, _records(shown)


def _panel(
    rows: Sequence[Row], frames: Frames, group: str, places: dict[tuple[Any, ...], str]
) -> str:
    """Name the plot that a table's cells stand in: fine-tuned models of one task share theirs."""
    if group not in frames.apart:
        return title(rows, frames)
    place = tuple(rows[0][name] for name in PLACE)
    if place not in places:
        twins = sum(key[0] == place[0] for key in places)
        places[place] = f"fine-tuned models · {task_name(place[0])}"
        places[place] += f" ({twins + 1})" if twins else ""
    return places[place]


def _about(rows: Sequence[Row], name: str, condition: str | None) -> Row:
    """Return what all of a panel's numbers have in common."""

    def first(key: str) -> Any:
        return next((row[key] for row in rows if row[key]), None)

    metric = first("metric")
    return {
        "title": name,
        "metric": metric_name(metric) if metric else "accuracy",
        "unit": first("accuracy_unit") or "",
        "scope": first("macs_scope") or "scope not recorded",
        "condition": condition or "",
        "memory": f"batch {first('peak_batch')}" if first("peak_batch") else "",
    }


def _cell(row: Row, panel: int, tokens: float | None, speeds: dict[str, list[Any]]) -> Row:
    cell = {name: row[name] for name in ("model", "method", "setting")}
    cell |= {"task": task_name(row["task"]), "panel": panel, "base": bool(row["is_baseline"])}
    cell |= {name: _short(row[name]) for name in NUMBERS}
    cell["marks"] = "".join(flag.mark for flag in FLAGS if row[flag.field])
    return cell | {"tokens": _short(tokens), "speeds": speeds}


def _speeds(timings: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """Return for each cell and batch size: milliseconds, speed-up and its interval, two flags.

    The flags are 1 where the speed-up is within noise, and where other load disturbed the timing.
    """
    names = ("p50_ms", "speedup_x", "speedup_low_x", "speedup_high_x")
    speeds: dict[str, dict[str, list[Any]]] = {}
    for entry in timings:
        values = [_short(entry[name]) for name in names]
        noise = is_noise([entry[name] for name in names[1:]], entry["aa_half_x"], 1)
        values += [int(noise), int(entry["disturbed"])]
        speeds.setdefault(entry["key"], {})[str(int(entry["batch"]))] = values
    return speeds


def _mean_tokens(frames: Frames) -> dict[str, float]:
    """Return the tokens that a block works on, mean over all blocks of all towers."""
    found = {}
    for key, entries in frames.counts.items():
        blocks = [entry["tokens"] for entry in entries if entry["layer"] > 0]
        if blocks:
            found[key] = sum(blocks) / len(blocks)
    return found


def _short(value: Any) -> Any:
    """Six digits are more than a screen shows; the record has them all."""
    return float(f"{value:.6g}") if known(value) else None


def _records(records: Sequence[Record]) -> dict[str, Any]:
    """Return records without what repeats: common parts, and the names of all fields.

    A record is the number of its shape and its values, in the order in which the shape has them.
    """
    shared: dict[str, int] = {}
    shapes: dict[str, int] = {}
    shown = []
    for record in records:
        value = dict(vars(record))  # asdict would copy every outcome
        for name in SHARED:
            value[name] = shared.setdefault(text(value[name]), len(shared))
        leaves: list[Any] = []
        shape = text(_shape(value, leaves))
        shown.append([shapes.setdefault(shape, len(shapes)), *leaves])
    return {
        "parts": SHARED,
        "shared": [json.loads(part) for part in shared],
        "shapes": [json.loads(part) for part in shapes],
        "records": shown,
    }


def _shape(value: Any, leaves: list[Any]) -> Any:
    """Return nested fields with a 0 in the place of each value, which goes to `leaves`."""
    if value is None or isinstance(value, str | int | float):
        leaves.append(value)
        return 0
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict) and value:
        return {name: _shape(item, leaves) for name, item in value.items()}
    nested = isinstance(value, list | tuple) and value
    if nested and (is_dataclass(value[0]) or isinstance(value[0], dict)):
        return [_shape(item, leaves) for item in value]
    if isinstance(value, list) and len(value) > LONGEST_LIST and not isinstance(value[0], tuple):
        value = f"… {len(value)} values, in the record's file"
    leaves.append(value)
    return 0


def looks(frames: Frames) -> dict[str, Row]:
    """Return every method's colour and the outline of its marker, as in all other figures."""
    return {
        name: {"color": look.color, "path": _outline(look.marker)}
        for name, look in frames.looks.items()
    }


def _outline(marker: str) -> str:
    """Return matplotlib's marker as SVG path data, one unit wide."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # "created a temporary config folder"
    from matplotlib.markers import MarkerStyle
    from matplotlib.path import Path as Outline

    style_ = MarkerStyle(marker)
    outline = style_.get_path().transformed(style_.get_transform())
    letters = {
        Outline.MOVETO: "M",
        Outline.LINETO: "L",
        Outline.CURVE3: "Q",
        Outline.CURVE4: "C",
    }
    parts = []
    for points, code in outline.iter_segments(simplify=False):
        if code == Outline.CLOSEPOLY:
            parts.append("Z")
        else:
            flipped = [f"{(-1) ** i * v:.3f}" for i, v in enumerate(points)]  # SVG's y goes down
            parts.append(letters[code] + " ".join(flipped))
    return "".join(parts)
