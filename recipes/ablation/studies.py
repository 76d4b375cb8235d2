"""The fine-tuned models of a report, by how they were trained; beside each, the same untrained.

A model that was fine-tuned with token reduction on, and measured only as it was trained, is one
seed of one setting of a study. Models that started from the same one, by the same recipe, make up a
study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.record import Record
from bench.records.store import slug
from bench.report.data import load
from bench.report.data.grouping import RECIPE, params_key, recipe, training
from bench.report.data.names import series
from recipes.ablation.estimates import MEAN_RECALL, recalls, score

Params = Mapping[str, Any]
BUDGET = ("r", "keep_rate", "layers")  # parameters that say how many tokens go, and where
UNREDUCED = "none"


@dataclass(frozen=True)
class Setting:
    """A method with its parameters: as it is, and fine-tuned with some seeds.

    `weight` is the share of the method's own loss in the training; None where nothing was trained.
    """

    method: str
    params: Params
    weight: float | None
    untrained: Record | None
    trained: Mapping[int, Record]

    @property
    def record(self) -> Record:
        """Any of its records, for what does not depend on weights."""
        return next((record for record in self.records if record.cost.macs), self.records[0])

    @property
    def records(self) -> list[Record]:
        """All of its records, the fine-tuned models' first."""
        return [record for record in (*self.trained.values(), self.untrained) if record]

    @property
    def budget(self) -> dict[str, Any]:
        """The parameters that say how many tokens go."""
        return {name: value for name, value in self.params.items() if name in BUDGET}

    @property
    def variant(self) -> dict[str, Any]:
        """The other parameters; a part that is switched on is what the method does anyway."""
        return {k: v for k, v in self.params.items() if k not in BUDGET and v is not True}

    @property
    def series(self) -> str:
        """The method with its variant, in words."""
        return series(self.method, self.params)

    @property
    def share(self) -> float | None:
        """MACs in percent of the unreduced model's."""
        macs = self.record.cost.macs
        return 100 * macs.total / macs.baseline_total if macs and macs.baseline_total else None

    @property
    def towers(self) -> str:
        """The towers that lose tokens on the way, like ``vision+text``; empty for none."""
        tokens = self.record.cost.tokens
        return "+".join(t for t, layers in tokens.items() if any(b < a for a, b in layers))

    @property
    def losses(self) -> list[list[tuple[int, float]]]:
        """The losses of each seed's training, by step, where its record has them."""
        abouts = [training(record) or {} for record in self.trained.values()]
        return [about["losses"] for about in abouts if about.get("losses")]

    def scores(self, metric: str) -> dict[int, float]:
        """Return what the fine-tuned models scored, by seed."""
        found = {seed: score(record, metric) for seed, record in self.trained.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Study:
    """Settings that were fine-tuned from one model, by one recipe, and measured alike."""

    name: str
    title: str
    about: str
    settings: tuple[Setting, ...]
    primary: str
    metrics: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The metric that claims are judged by: the mean recall, which varies least."""
        return MEAN_RECALL if MEAN_RECALL in self.metrics else self.primary

    @property
    def shown(self) -> list[str]:
        """The metrics that tables show: the verdict's, the primary one and its opposite."""
        wanted = (self.verdict, self.primary, "i2t_r1", "t2i_r1")
        return [m for m in dict.fromkeys(wanted) if m in self.metrics]

    @property
    def records(self) -> list[Record]:
        """The records of all settings, which may share one that was not fine-tuned."""
        records = [record for one in self.settings for record in one.records]
        return list({load.uid(record): record for record in records}.values())

    @property
    def unreduced(self) -> Setting | None:
        """The model with all its tokens."""
        return next((s for s in self.settings if s.method == UNREDUCED), None)


def studies(records: Sequence[Record]) -> list[Study]:
    """Return the studies in some records, which come from old to new."""
    done = [record for record in records if record.status == "ok"]
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in done:
        about = training(record)
        if about:
            shared = [str(about.get(name)) for name in RECIPE]
            found.setdefault((*_place(record, about["model"]), *shared), []).append(record)
    plain = [r for r in done if not (r.provenance.get("training") or r.cell.random_weights)]
    result: list[Study] = []
    for key, own in sorted(found.items()):
        untrained = [r for r in plain if _place(r, r.cell.model) == key[: -len(RECIPE)]]
        result.append(_study(own, untrained, {study.name for study in result}))
    return result


def _place(record: Record, model: str) -> tuple[str, ...]:
    cell = record.cell
    values = (model, cell.task, load.machine(record), cell.profile, cell.limit, cell.dtype)
    return tuple(map(str, (*values, cell.backend)))


def _study(trained: Sequence[Record], untrained: Sequence[Record], taken: set[str]) -> Study:
    abouts = [training(record) or {} for record in trained]
    cell, about = trained[0].cell, abouts[0]
    stem = name = f"tuned--{slug(str(about['model']))}--{slug(cell.task)}"
    while name in taken:
        name = f"{stem}-{int(name.removeprefix(stem).strip('-') or 1) + 1}"
    place = [load.machine(trained[0]), cell.profile]
    metrics = dict.fromkeys(m for r in trained for m in r.accuracy.metrics)
    both = any(recalls(record) for record in trained)
    return Study(
        name,
        f"{about['model']} · {cell.task}",
        f"Fine-tuning: {recipe(about)}; measured on {', '.join(place)}",
        tuple(_settings(list(zip(trained, abouts, strict=True)), untrained)),
        next((r.accuracy.primary for r in trained if r.accuracy.primary), ""),
        (*metrics, *([MEAN_RECALL] if both else [])),
    )


def _settings(
    trained: Sequence[tuple[Record, dict[str, Any]]], untrained: Sequence[Record]
) -> list[Setting]:
    """Return every setting that was trained, or measured without."""
    plain = {(r.cell.method, params_key(r.cell.params)): r for r in untrained}
    seeds: dict[tuple[str, str, float], dict[int, Record]] = {}
    for record, about in trained:  # of one seed that was trained twice the newer counts
        name = (record.cell.method, params_key(record.cell.params))
        own = seeds.setdefault((*name, float(about.get("weight") or 0.0)), {})
        own[int(about.get("seed") or 0)] = record
    result = []
    for (method, params, weight), own in sorted(seeds.items()):
        cell = next(iter(own.values())).cell
        by_seed = dict(sorted(own.items()))
        result.append(Setting(method, cell.params, weight, plain.get((method, params)), by_seed))
    for name in sorted(plain.keys() - {key[:2] for key in seeds}):
        result.append(Setting(name[0], plain[name].cell.params, None, plain[name], {}))
    return result
