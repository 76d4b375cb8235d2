"""Speed-ups of the same cells under several engines, side by side: what compiling takes away."""

from __future__ import annotations

from collections.abc import Mapping

from bench.report.data.bands import by_band
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row
from bench.report.data.timings import batches, ends_of, under_main, with_timings
from bench.report.tables.comparison import disturbed_legend, speedup_column
from bench.report.tables.table import Column, Table, escape, name_columns

CAPTION = (
    "Speed-ups under each engine, both sides under the same one, beside what the saved MACs allow; "
    "accuracies, MACs and memory are those of the eager pass. {}."
)


@makes("table", 62, overall=True)
def engine_tables(frames: Frames) -> list[Table]:
    """Return one table a model and task that were timed under several engines."""
    found = [_table(frames, groups) for groups in frames.by_engine if len(groups) > 1]
    return [table for table in found if table]


def _table(frames: Frames, groups: Mapping[str, str]) -> Table | None:
    """Return the table of some groups, by engine; None where nothing was timed."""
    rows: dict[tuple[str, str], Row] = {}
    conditions, sizes = [], set()
    for engine, group in groups.items():
        own = frames.by_group[group]
        condition, latency = under_main(frames.timed(own))
        conditions += [condition] if condition else []
        sizes |= {*batches(latency)}
        for row in with_timings(own, latency):
            timed = {f"{k}_{engine}": v for k, v in row.items() if "_batch" in k}
            rows.setdefault((row["method"], row["setting"]), row).update(timed)
    if not sizes:
        return None
    shown, ends = sorted(rows.values(), key=by_band), ends_of(sorted(sizes))
    under = {f"{size}_{engine}": f"{engine}, b{size}" for size in ends for engine in groups}
    columns = [*name_columns(shown), Column("MAC bound", "mac_bound_x", digits=2, suffix="×")]
    columns += [speedup_column(head, "speedup", key) for key, head in under.items()]
    title = f"Engines: {frames.subject(shown[0])}"
    said = (f"Timing: {', and '.join(conditions)}", disturbed_legend(shown, [*under]))
    caption = CAPTION.format("; ".join(filter(None, said)))
    name = f"{next(iter(groups.values()))}--engines"
    return Table(name, escape(caption), columns, shown, escape(title))
