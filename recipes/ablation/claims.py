"""What the CrossGET paper claims, judged by a study's numbers: one sentence a claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.report.data.names import metric_name, setting
from bench.report.data.rows import Row
from bench.report.tables.table import Column, Table, escape, interval, words
from recipes.ablation.chains import (
    BIPARTITE,
    COMPLETE,
    ENSEMBLE,
    LOSS,
    MATCHING,
    Chain,
    Part,
    chains,
    matched,
)
from recipes.ablation.estimates import (
    Estimate,
    detectable,
    difference_over_seeds,
    over_seeds,
    score,
)
from recipes.ablation.studies import Setting, Study

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told apart"
ONE_SEED, NOT_MEASURED = "one seed, no verdict", "not measured"


@dataclass(frozen=True)
class Finding:
    """A claim at one budget: what is compared, and the difference that should be above zero."""

    claim: str
    where: str
    compared: str
    by_metric: Callable[[str], Estimate | None]
    left: Callable[[str], Estimate | None] | None = None  # the gap that stays, where one is closed


def verdict(estimate: Estimate | None) -> str:
    """Say what an interval says of "above zero"."""
    if estimate is None:
        return NOT_MEASURED
    if estimate.low is None or estimate.high is None:
        return ONE_SEED
    return HOLDS if estimate.low > 0 else FAILS if estimate.high < 0 else OPEN


def findings(study: Study) -> list[Finding]:
    """Return every claim at every budget where its settings exist, claim by claim."""
    order: dict[str, list[Finding]] = {}
    for chain in (chain for chain in chains(study) if chain.is_trained):
        for finding in _of_chain(study, chain):
            order.setdefault(finding.claim, []).append(finding)
    return [finding for own in order.values() for finding in own]


def _of_chain(study: Study, chain: Chain) -> Iterator[Finding]:
    complete, whole = chain.step(COMPLETE), chain.step(LOSS)

    def pair(claim: str, ours: Setting | None, theirs: Setting | None) -> Finding:
        compared = f"{_named(ours)} − {_named(theirs)}"
        return Finding(claim, chain.where, compared, lambda m: between(ours, theirs, m))

    def part(claim: str, ours: Part, theirs: Part) -> Finding:
        return pair(claim, chain.step(ours), chain.step(theirs))

    if chain.is_ablation:
        yield part("The complete graph beats bipartite matching at the same r", COMPLETE, BIPARTITE)
        yield pair(
            "The complete graph beats bipartite matching at the same MACs",
            complete,
            matched(study, complete),
        )
        yield part("Cross-guided matching helps", MATCHING, COMPLETE)
        yield part("Cross-guided ensemble helps", ENSEMBLE, MATCHING)
        yield part("The alignment loss helps", LOSS, ENSEMBLE)
    if complete and whole:
        yield pair("Guidance and its loss beat the matching without them", whole, complete)
    yield pair("Trained crossget beats trained tome at equal MACs", whole, chain.matched)
    base = study.unreduced
    yield Finding(
        "Training narrows the gap of crossget to the unreduced model",
        chain.where,
        f"trained gap − untrained gap of {_named(whole)} to {_named(base)}",
        lambda metric: narrowed(whole, base, metric),
        lambda metric: between(whole, base, metric),
    )


def _named(one: Setting | None) -> str:
    if one is None:
        return "(not measured)"
    weight = f", loss {one.weight:g}" if one.weight is not None and one.method == "crossget" else ""
    share = f" at {one.share:.1f} %" if one.share is not None else ""
    return f"{one.method} {setting(dict(one.params))}".strip() + weight + share


def between(ours: Setting | None, theirs: Setting | None, metric: str) -> Estimate | None:
    """Return the difference of two fine-tuned settings, paired by seed."""
    if ours is None or theirs is None:
        return None
    return difference_over_seeds(ours.scores(metric), theirs.scores(metric))


def narrowed(ours: Setting | None, base: Setting | None, metric: str) -> Estimate | None:
    """Return by how much training brought a setting closer to the unreduced model."""
    if ours is None or base is None or ours.untrained is None or base.untrained is None:
        return None
    before = score(ours.untrained, metric), score(base.untrained, metric)
    if before[0] is None or before[1] is None:
        return None
    after, reference = ours.scores(metric), base.scores(metric)
    gap = before[0] - before[1]
    return over_seeds([after[s] - reference[s] - gap for s in sorted(after) if s in reference])


def sentences(study: Study) -> list[str]:
    """Return one Markdown sentence for each claim, with its verdict at each budget."""
    claims: dict[str, list[str]] = {}
    for finding in findings(study):
        found = finding.by_metric(study.verdict)
        text = f"*{verdict(found)}* at {escape(finding.where)}"
        if found:
            text += f": {_written(found)}"
        rest = finding.left(study.verdict) if finding.left and found else None
        if rest:
            text += f", which leaves {_written(rest)}"
        claims.setdefault(finding.claim, []).append(text)
    return [f"**{claim}**: {'; '.join(parts)}." for claim, parts in claims.items()]


def headline(study: Study) -> str:
    """Return what a study says of guidance, or else its first claim; empty where it has none."""
    every = sentences(study)
    asked = [
        sentence for sentence in every if sentence.startswith(("**Guidance", "**Cross-guided"))
    ]
    return " ".join(asked or every[:1])


def _written(found: Estimate) -> str:
    row = {"value": found.value, "value_low": found.low, "value_high": found.high}
    (text,) = interval("", "value{}", digits=2, sign=True).texts([row])
    seen = detectable(found)
    power = f", which could have seen {seen:.1f} points" if seen is not None else ""
    return f"{text} over {found.n} seed" + ("s" if found.n != 1 else "") + power


def claims_table(study: Study) -> Table | None:
    """Return every claim at every budget by every metric that is shown; None without claims."""
    rows = [_row(study, finding) for finding in findings(study)]
    if not rows:
        return None
    columns = [
        words(head, key)
        for head, key in (("Claim", "claim"), ("Where", "where"), ("Difference", "compared"))
    ]
    columns.append(Column("Seeds", f"{study.verdict}_seeds", digits=0))
    for metric in study.shown:
        head = f"{metric_name(metric)}, points"
        columns.append(interval(head, f"{metric}_difference{{}}", digits=2, sign=True))
        columns.append(Column("detectable", f"{metric}_detectable", digits=1))
        columns.append(words("verdict", f"{metric}_verdict"))
    caption = "Difference of trained settings, paired by seed, with Student's t interval. "
    caption += "Detectable: the smallest difference that so many seeds, spread as these, show "
    caption += "in four of five studies (power 0.8, two-sided, 5 %). Nothing is corrected for the "
    caption += "number of claims. Loss is the share of CrossGET's own."
    return Table(f"{study.name}--claims", caption, columns, rows)


def _row(study: Study, finding: Finding) -> Row:
    row: Row = {"claim": finding.claim, "where": finding.where, "compared": finding.compared}
    for metric in study.shown:
        found = finding.by_metric(metric)
        row[f"{metric}_difference"] = found.value if found else None
        row[f"{metric}_difference_low"] = found.low if found else None
        row[f"{metric}_difference_high"] = found.high if found else None
        row[f"{metric}_detectable"] = detectable(found)
        row[f"{metric}_seeds"] = found.n if found else 0
        row[f"{metric}_verdict"] = verdict(found)
    return row
