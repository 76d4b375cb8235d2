"""What an answer of a multimodal language model costs, stage by stage: MACs, cache, times."""

from __future__ import annotations

from bench.records.record import Generation, Record, Stage
from bench.report.data import equal
from bench.report.data.differences import LEGEND
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import MIB, Row
from bench.report.tables.comparison import disturbed_legend
from bench.report.tables.table import Column, Table, escape, interval, name_columns

STAGES = ("vision", "projector", "prefill", "decode")
TIMED = {
    "vision": "image encoder",
    "prefill": "prefill",
    "ttft": "first token",
    "decode": "a further token",
    "end_to_end": "answer",
}


@makes("table", 50, lead="**What an answer costs.**")
def answer_table(frames: Frames, group: str) -> Table | None:
    """Return a table's costs of an answer; None where no model of it speaks."""
    cells = [(row, frames.by_uid[row["key"]]) for row in frames.by_group[group]]
    rows = [
        row | _row(frames, record, record.cost.generation)
        for row, record in cells
        if record.cost.generation
    ]
    if not rows:
        return None
    columns = name_columns(rows, flag=True)
    for stage in STAGES:
        head = f"{stage} MMACs" + (" a token" if stage == "decode" else "")
        columns.append(Column(head, f"{stage}_mmacs", most=2, better=-1))
    columns.append(Column("KV cache MiB", "kv_mib", digits=3, better=-1))
    for stage, head in TIMED.items():
        how = {"digits": 2, "suffix": "×", "null": 1, "within": f"{stage}_aa_half_x", "better": 1}
        columns.append(Column(f"{head} ms", f"{stage}_ms", digits=2, better=-1).timing())
        columns.append(interval("speed-up", f"{stage}_speedup{{}}_x", **how).timing())
    tokens = rows[0]["new_tokens"]
    caption = f"One prompt, {tokens} new tokens, greedy; further tokens are a mean over the answer"
    legend = "; ".join(filter(None, (LEGEND, disturbed_legend(rows))))
    return Table(f"{group}--answers", escape(f"{caption}. {legend}."), columns, rows)


def _row(frames: Frames, record: Record, cost: Generation) -> Row:
    row: Row = {"new_tokens": cost.new_tokens, "kv_mib": cost.kv_bytes / MIB}
    row |= {"disturbed": cost.disturbed, "disturbance": cost.disturbance}
    row["kv_mib_unreduced"] = cost.baseline_kv_bytes / MIB
    for stage in STAGES:
        row[f"{stage}_mmacs"] = cost.macs[stage] / 1e6
        row[f"{stage}_mmacs_unreduced"] = cost.baseline_macs[stage] / 1e6
    for timed in cost.stages:
        row |= stage_row(frames, record, timed)
    return row


def stage_row(frames: Frames, record: Record, timed: Stage, batch: int = 1) -> Row:
    """Return the fields of a timed stage of an answer, or of answers to a batch of prompts."""
    name, (low, high) = timed.name, timed.speedup.ci95
    row: Row = {f"{name}_ms": timed.p50_ms, f"{name}_speedup_x": timed.speedup.median}
    row |= {f"{name}_speedup_low_x": low, f"{name}_speedup_high_x": high}
    timing = equal.at_stage(name, batch)
    return row | {f"{name}_aa_half_x": equal.half(frames.spreads, record, timing)}
