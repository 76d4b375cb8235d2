"""A study's section of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.records.record import Record
from bench.report.ablation import claims, tuned, tuned_plots, tuned_tables
from bench.report.data.estimates import MEAN_RECALL
from bench.report.data.mixture import remark
from bench.report.tables.comparison import metric_name
from bench.report.tables.table import Table, escape, remarked


def sections(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return what the template shows of each study in some records."""
    return [_section(study) for study in tuned.studies(records)]


def tables(section: dict[str, Any]) -> list[Table]:
    """Return all tables of a section."""
    own = [table for name in ("settings", "chains") for _, table in section[name]]
    return own + ([section["claims"]] if section["claims"] else [])


def _section(study: tuned.Study) -> dict[str, Any]:
    mixed = remark(study.records)
    judged = metric_name(study.verdict)
    if study.verdict == MEAN_RECALL:
        judged += " (of R@1, R@5 and R@10 both ways), the least noisy metric"
    reading = f'Judged by {judged}, in points, of fine-tuned models: "{claims.HOLDS}" where the '
    reading += f'95 % interval over seeds lies above zero, "{claims.FAILS}" where it lies below, '
    reading += f'"{claims.OPEN}" where it contains zero.'
    judgements = claims.claims_table(study)
    return {
        "title": escape(study.title),
        "about": escape(study.about) + ".",
        "sentences": claims.sentences(study),
        "reading": reading,
        "claims": judgements and remarked(judgements, mixed),
        "plots": tuned_plots.plots(study),
        "chains": [(name, remarked(t, mixed)) for name, t in tuned_tables.chain_tables(study)],
        "settings": [
            (metric_name(metric), remarked(tuned_tables.settings_table(study, metric), mixed))
            for metric in study.shown
        ],
    }
