"""Answers in batches of unequal prompts, as a language model is served: throughput, first token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.records.record import Generation, Record, Served
from bench.report.data.differences import LEGEND
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row
from bench.report.tables.answers import stage_row
from bench.report.tables.comparison import disturbed_legend
from bench.report.tables.table import Column, Table, escape, interval, name_columns

TIMED = ("ttft", "end_to_end")
CACHE_BYTES = 2**30
RAGGED = 0.05  # more of the cache empty than of the unreduced model's, and it is said in words


@makes("table", 51, lead="**Answers in batches.**")
def serving_table(frames: Frames, group: str) -> Table | None:
    """Return throughput and time to the first token by batch; None where no batch was timed."""
    records = [(row, frames.by_uid[row["key"]]) for row in frames.by_group[group]]
    cells = [(row, record, record.cost.generation) for row, record in records]
    rows = [
        row | batch
        for row, record, answers in cells
        if answers and answers.served
        for batch in _rows(frames, record, answers)
    ]
    if not rows:
        return None
    columns = name_columns(rows, flag=True)
    columns += [
        Column("prompts at once", "batch", digits=0),
        Column("first token ms", "ttft_ms", digits=1).timing(),
        _speedup("ttft"),
        Column("tokens a second", "tokens_per_s", digits=1).timing(),
        _speedup("end_to_end"),
        Column("empty slots %", "empty_percent", digits=1),
        Column("prompts in 1 GiB of cache", "prompts_per_gib", digits=0),
    ]
    legend = "; ".join(filter(None, (LEGEND, disturbed_legend(rows))))
    caption = (
        f"{rows[0]['new_tokens']} new tokens an answer, greedy; of several prompts no two are "
        f"equally long. {_ragged(rows)}{legend}"
    )
    return Table(f"{group}--serving", escape(f"{caption}."), columns, rows)


def _speedup(stage: str) -> Column:
    how = {"digits": 2, "suffix": "×", "null": 1, "within": f"{stage}_aa_half_x"}
    return interval("speed-up", f"{stage}_speedup{{}}_x", **how).timing()


def _rows(frames: Frames, record: Record, answers: Generation) -> Iterator[Row]:
    """Yield the fields of each batch, of one prompt first."""
    one = Served(1, answers.stages, disturbed=answers.disturbed, disturbance=answers.disturbance)
    for batch in (one, *answers.served):
        row: Row = {"batch": batch.batch, "new_tokens": answers.new_tokens}
        row |= {"disturbed": batch.disturbed, "disturbance": batch.disturbance}
        row["prompts_per_gib"] = CACHE_BYTES // answers.kv_bytes
        for name, filled in (("", batch.filled), ("_unreduced", batch.baseline_filled)):
            row[f"empty_percent{name}"] = None if filled is None else 100 * (1 - filled)
        for stage in batch.stages:
            if stage.name in TIMED:
                row |= stage_row(frames, record, stage, batch.batch)
        row["tokens_per_s"] = 1e3 * batch.batch * answers.new_tokens / row["end_to_end_ms"]
        yield row


def _ragged(rows: Sequence[Row]) -> str:
    """Return a sentence on each method whose unequal lengths undo its gain in a batch."""
    alone = {row["key"]: row for row in rows if row["batch"] == 1}
    sentences = []
    for row in rows:
        one, empty = alone[row["key"]], row["empty_percent"]
        if empty is None or empty - row["empty_percent_unreduced"] < 100 * RAGGED:
            continue
        if row["end_to_end_speedup_high_x"] < one["end_to_end_speedup_low_x"]:
            sentences.append(
                f"{row['label']} leaves samples unequally long: of {row['batch']} prompts "
                f"{empty:.0f} % of the slots are empty (unreduced "
                f"{row['empty_percent_unreduced']:.0f} %), and its speed-up falls from "
                f"{one['end_to_end_speedup_x']:.2f} to {row['end_to_end_speedup_x']:.2f}. "
            )
    return "".join(sentences)
