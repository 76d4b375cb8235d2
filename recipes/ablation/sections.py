"""A study's section of the report."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report.content import Block, Section
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.mixture import remark
from bench.report.data.names import metric_name
from bench.report.tables.table import escape
from recipes.ablation import claims, figures, studies, tables
from recipes.ablation.estimates import MEAN_RECALL


@makes("section", 0, overall=True)
def sections(frames: Frames) -> list[Section]:
    """Return a section for each study among a report's records."""
    return [section(study) for study in studies.studies(frames.records)]


def section(study: studies.Study) -> Section:
    """Return what a report shows of a study."""
    return Section(
        f"Fine-tuned: {escape(study.title)}", tuple(_blocks(study)), claims.headline(study)
    )


def _blocks(study: studies.Study) -> Iterator[Block]:
    mixed = remark(study.records)
    judged = metric_name(study.verdict)
    if study.verdict == MEAN_RECALL:
        judged += " (of R@1, R@5 and R@10 both ways), the least noisy metric"
    reading = f'Judged by {judged}, in points, of fine-tuned models: "{claims.HOLDS}" where the '
    reading += f'95 % interval over seeds lies above zero, "{claims.FAILS}" where it lies below, '
    reading += f'"{claims.OPEN}" where it contains zero.'
    sentences = "\n".join(f"- {sentence}" for sentence in claims.sentences(study))
    yield Block(f"{escape(study.about)}.\n\n{sentences}".strip())
    judgements = claims.claims_table(study)
    if judgements:
        yield Block(reading, paper=False)
        every = (judgements.remarked(mixed),)
        yield Block(tables=every, fold="Every claim by every metric", paper=False)
    yield Block(plots=tuple(figures.plots(study)))
    for name, table in tables.chain_tables(study):
        yield Block(f"### Part by part: {name}", (table.remarked(mixed),))
    for index, metric in enumerate(study.shown):
        settings = (tables.settings_table(study, metric).remarked(mixed),)
        head = f"Every setting: {metric_name(metric)}"
        yield Block(tables=settings, fold=head) if index else Block(f"### {head}", settings)
