"""The data of the report's page: its cells, the plots that they stand in, records, looks."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline

from bench.report.data.differences import FLAGS
from bench.report.data.frame import Frames
from bench.report.data.names import metric_name, task_name
from bench.report.data.rows import Row, known
from bench.report.data.timings import is_noise, under_main
from bench.report.figures import style

LONGEST_LIST = 8  # of numbers; samples and outcomes are longer, and named instead of shown
# fmt: off
NUMBERS = (
    "accuracy_value", "accuracy_low", "accuracy_high", "accuracy_n", "delta", "delta_low",
    "delta_high", "gmacs", "gmacs_pct_of_unreduced", "peak_mib",
)
# fmt: on


def text(value: Any) -> str:
    """Write JSON that may stand inside a script element: no `<` can end it."""
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def packed(value: Any) -> str:
    """Write JSON deflated, in base64: a browser unpacks it."""
    return base64.b64encode(zlib.compress(text(value).encode(), 9)).decode()


def cells(frames: Frames) -> tuple[list[Row], list[Row], list[Any]]:
    """Return the panels of the plot, the cells that they hold, and the cells' records."""
    panels: list[Row] = []
    result: list[Row] = []
    records: list[Any] = []
    for group, rows in frames.by_group.items():
        condition, timed = under_main(frames.timed(rows))
        about = _about(rows, frames.title(group), condition)
        speeds = speeds_of(timed)
        for row in rows:
            tokens = _mean_tokens(frames.counts[row["key"]])
            short = {name: frames.named(row[name]) for name in ("model", "task")}
            result.append(_cell(row | short, len(panels), tokens, speeds.get(row["key"], {})))
            records.append(shortened(frames.by_uid[row["key"]]))
        panels.append(about | {"apart": "recipe" in rows[0], "mixed": frames.remark(group)})
    return panels, result, records


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


def speeds_of(timings: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """Return for each cell and batch size: milliseconds, speed-up and its interval, two flags.

    The flags are 1 where the speed-up is within noise, and where other load disturbed the timing.
    """
    names = ("p50_ms", "speedup_x", "speedup_low_x", "speedup_high_x")
    speeds: dict[str, dict[str, list[Any]]] = {}
    for entry in timings:
        values = [_short(entry[name]) for name in names]
        noise = is_noise([entry[name] for name in names[1:]], entry["aa_half_x"], 1)
        values += [int(noise), int(entry["disturbed"])]
        speeds.setdefault(entry["key"], {})[str(entry["batch"])] = values
    return speeds


def _mean_tokens(counts: Sequence[Row]) -> float | None:
    """Return the tokens that a block works on, mean over all blocks of all towers."""
    blocks = [entry["tokens"] for entry in counts if entry["layer"] > 0]
    return sum(blocks) / len(blocks) if blocks else None


def _short(value: Any) -> Any:
    """Six digits are more than a screen shows; the record has them all."""
    return float(f"{value:.6g}") if known(value) else None


def shortened(value: Any) -> Any:
    """Return a record, or a part of one, as JSON has it, with long lists named instead of shown."""
    if is_dataclass(value):  # asdict would copy every outcome
        value = vars(value)
    if isinstance(value, dict):
        return {name: shortened(item) for name, item in value.items()}
    if not isinstance(value, list | tuple):
        return value
    plain = bool(value) and isinstance(value[0], str | int | float | list)
    if plain and len(value) > LONGEST_LIST:
        return f"… {len(value)} values, in the record's file"
    return [shortened(item) for item in value]


def looks(frames: Frames) -> dict[str, Row]:
    """Return every series' colour and the outline of its marker, as in all other figures."""
    return {
        name: {"color": look.color, "path": _outline(look.marker)}
        for name, look in style.looks(frames.series, frames.leaders).items()
    }


def _outline(marker: str) -> str:
    """Return matplotlib's marker as SVG path data, one unit wide."""
    style_ = MarkerStyle(marker)
    outline = style_.get_path().transformed(style_.get_transform())
    letters = dict(
        zip((Outline.MOVETO, Outline.LINETO, Outline.CURVE3, Outline.CURVE4), "MLQC", strict=True)
    )
    parts = []
    for points, code in outline.iter_segments(simplify=False):
        flipped = [f"{(-1) ** i * v:.3f}" for i, v in enumerate(points)]  # SVG's y goes down
        parts.append(letters[code] + " ".join(flipped) if code in letters else "Z")
    return "".join(parts)
