"""Fine-tune a model with token reduction on, so that trained is compared with trained.

The loss is `(1 - w) task + w method`: CrossGET adds its alignment loss (§3.1, w = 0.5 in its CLIP
code). The task loss is CLIP's contrastive one, a classifier's cross entropy, or that of the right
answers. A method that adds nothing gets the task loss alone, from the same batches, for as many
steps, at the same rates.

What it writes into its folder is a model that every command takes by the folder's name:
`training.json` (what was done, and the model it started from), the weights (`adapter.safetensors`
with `rank`, else `model.safetensors`; none where they were frozen), and `METHOD.safetensors` with
what the method learned.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bench
from bench import tasks
from bench.core import Learner, Reducer, registry
from bench.core.errors import BenchError
from bench.core.numbers import LARGEST
from bench.core.parameters import check_request
from bench.engine.families import adapter_for
from bench.measure import machine
from bench.models import adapters, catalogue, learning
from bench.models.loaded import Loaded
from bench.models.sources import tuned
from bench.models.sources.tuned import ADAPTER, TRAINING, WEIGHTS
from bench.records.files import write_atomic
from bench.records.record import label
from bench.records.store import slug
from bench.training import checkpoints, loop, pairs
from bench.training.checkpoints import TrainingError
from bench.training.loop import Job, Settings
from bench.training.losses import BatchLoss, precision, task_loss

EVALUATE_EVERY = 1000  # steps
LARGEST_RANK = 1 << 16  # more than any layer has channels


@dataclass(frozen=True)
class Recipe:
    """What is fine-tuned, how the tokens are reduced meanwhile, and for how long.

    `rank` 0 trains all weights; a positive one trains adapters of that rank and leaves the weights.
    `weight` is the share of the method's own loss. `freeze` trains what the method learns, alone.
    """

    model: str = "embedded:clip-emoji"
    method: str = "none"
    budget: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 0.5
    data: str = ""
    epochs: float = 1.0
    batch: int = 32
    rate: float = 3e-4
    rank: int = 0
    freeze: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense.

        Raises:
            BenchError: there is such a number.
        """
        for name, fine in {
            "epochs": 0 < self.epochs < math.inf,
            "batch": 0 < self.batch <= LARGEST,
            "rate": 0 < self.rate < math.inf,
            "rank": 0 <= self.rank <= LARGEST_RANK,
            "weight": 0 <= self.weight <= 1,
        }.items():
            if not fine:
                option = "--loss-weight" if name == "weight" else f"--{name}"
                raise BenchError(f"{option} {getattr(self, name)} makes no sense in a fine-tuning")

    def name(self) -> str:
        """Return a folder name that tells one recipe from another."""
        named = ("model", "method", "budget", "params")
        usual = {f.name: f.default for f in fields(self) if f.name not in named}
        numbers = {key: v for key, v in asdict(self).items() if v != usual.get(key, v)}
        text = label(self.method, {**self.budget, **self.params, **numbers})
        return slug(f"{Path(self.model).name}-{text}")


def finetune(
    recipe: Recipe, settings: Settings, command: str = "", task: str | None = None
) -> dict[str, float]:
    """Fine-tune as `recipe` says, unless that is done; return the scores of the last evaluation.

    Args:
        recipe: what is trained, with which method, on what.
        settings: where, on which device.
        command: the command line, to be noted in `training.json`.
        task: the name of the task that scores the model; None scores nothing.

    Raises:
        BenchError: unknown names, unusable data, a model that is neither a CLIP nor a classifier,
            a folder that holds another training.
    """
    catalogue.check_name(recipe.model)
    pairs.check_name(recipe.data)
    check_request(recipe.method, {**recipe.budget, **recipe.params})
    reducer = learning.reducer(recipe.method, recipe.params, tuned.learned_with(recipe.model))
    about = json.loads(json.dumps({**asdict(recipe), "seed": settings.seed}, default=str))
    settings = settings.begun()
    done = _done(settings, recipe, about)
    if done is not None:
        return done
    processes = loop.accelerator(settings.device)
    # Torch's fused attention is slow backwards in bfloat16 on a CPU.
    backend = "eager" if torch.device(settings.device).type == "cpu" else "sdpa"
    loaded = catalogue.load(recipe.model, device=settings.device, backend=backend)
    of_task = task_loss(loaded, processes)
    data = pairs.load(recipe.data, loaded, settings.data_dir)
    trained, learned = _prepared(recipe, reducer, loaded, settings.seed)
    started = time.monotonic()
    with bench.reduced(loaded.model, reducer, **recipe.budget):
        if learned and not _is_reduced(loaded.model):
            raise BenchError(
                f"with this budget {recipe.method} removes nothing and learns nothing: "
                "give a larger --r, or --method none to train without reduction"
            )
        steps = max(1, round(recipe.epochs * len(data) / recipe.batch))
        about |= {"steps": steps}
        loss = _loss(of_task, loaded, reducer, recipe, data, settings.seed, processes)
        parameters = [p for p in trained.parameters() if p.requires_grad]
        adamw = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
        scorer = _scorer(task, loaded)
        job = Job(trained, loss, steps, [adamw], scorer, about=about)
        if processes.is_main_process and not settings.resume:
            # The new training may not write all of these.
            learned_files = [f"{name}.safetensors" for name in registry.methods()]
            _clear(settings.out, TRAINING, ADAPTER, WEIGHTS, *learned_files)
        scores = loop.fit(job, settings, evaluate_every=EVALUATE_EVERY)
    if processes.is_main_process:
        _write(settings, recipe, loaded.model, reducer, learned)
        about |= {
            "precision": f"{settings.device}, {precision(loaded)}",
            "command": command,
            "scores": {name: round(value, 4) for name, value in scores.items()},
            "losses": loop.losses(settings.out),
            "seconds": round(time.monotonic() - started, 1),
            "processes": processes.num_processes,
            "environment": _environment(settings.device),
        }
        write_atomic(settings.out / TRAINING, json.dumps(about, indent=1) + "\n")  # now it is done
        _clear(settings.out)
    return scores


def _environment(device: str) -> Mapping[str, Any]:
    threads = torch.get_num_threads()
    return machine.environment(machine.slug(device, threads), device, threads)


def _prepared(
    recipe: Recipe, reducer: Reducer, loaded: Loaded, seed: int
) -> tuple[nn.Module, Mapping[str, nn.Parameter]]:
    """Return the module with all that is trained, and of it what the method learns, by name."""
    loaded.model.requires_grad_(not recipe.freeze)
    if recipe.rank:
        adapters.attach(loaded.model, recipe.rank, seed)
    shapes = learning.towers(reducer, loaded.model)
    learned = dict(reducer.learn(shapes)) if isinstance(reducer, Learner) else {}
    for tower, table in learned.items():
        if tower in shapes and table.shape != shapes[tower]:
            raise BenchError(
                f"what {reducer.name} learned for the {tower} tower is {tuple(table.shape)}, "
                f"and this model takes {shapes[tower]}"
            )
    if recipe.freeze and not learned:
        raise BenchError(f"method '{recipe.method}' learns nothing of its own: leave --freeze out")
    tables = nn.ParameterDict({name.replace(".", "/"): table for name, table in learned.items()})
    trained = nn.ModuleDict({"model": loaded.model, "learned": tables.to(loaded.device)})
    return trained, learned


def _is_reduced(model: Any) -> bool:
    towers = adapter_for(model).towers(model).values()
    return any("forward" in block.__dict__ for tower in towers for block in tower.blocks)


def _loss(
    of_task: BatchLoss,
    loaded: Loaded,
    reducer: Reducer,
    recipe: Recipe,
    data: pairs.Pairs,
    seed: int,
    processes: Any,
) -> Callable[[int, torch.Generator], Tensor]:
    """Return the loss of a step: of the task and of the method, on this process's images."""
    count = min(recipe.batch, len(data))
    if count % processes.num_processes:
        raise TrainingError(
            f"a batch of {count} does not divide into {processes.num_processes} processes: "
            "choose another --batch"
        )
    size = count // processes.num_processes
    share = slice(processes.process_index * size, (processes.process_index + 1) * size)

    def loss(step: int, rng: torch.Generator) -> Tensor:
        batch = data.batch(loop.shuffled(len(data), recipe.batch, step, seed), rng, share)
        task = of_task(batch)
        if not isinstance(reducer, Learner):
            return task
        added = reducer.loss(loaded.model, batch.target.to(loaded.device))
        return task if added is None else (1 - recipe.weight) * task + recipe.weight * added

    return loss


def _scorer(task: str | None, loaded: Loaded) -> Callable[[], dict[str, float]]:
    """Return what scores the model on a task; nothing where there is none."""
    if task is None:
        return dict
    scored = tasks.load(task)

    def evaluate() -> dict[str, float]:
        loaded.model.eval()
        return {key: metric.value for key, metric in scored.evaluate(loaded).metrics.items()}

    return evaluate


def _done(settings: Settings, recipe: Recipe, about: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the scores if the folder holds this very training, finished."""
    out = settings.out
    itself = out.resolve() == Path(recipe.model).expanduser().resolve()
    if itself or (out / "config.json").is_file():
        raise TrainingError(f"{out} holds a model already: name another folder with --out")
    if not settings.resume or not (out / TRAINING).is_file():
        return None
    there = tuned.training(out)
    checkpoints.check_same(there, about, out)
    print(f"{out} is done already; --no-resume trains it again", file=sys.stderr)
    scores = there.get("scores")
    if not isinstance(scores, dict):
        raise TrainingError(f"{out / TRAINING} has no 'scores': train it again with --no-resume")
    return scores


def _clear(out: Path, *names: str) -> None:
    """Remove files of these names, and checkpoints."""
    for name in names:
        (out / name).unlink(missing_ok=True)
    for folder in checkpoints.folders(out):
        shutil.rmtree(folder)


def _write(
    settings: Settings, recipe: Recipe, model: Any, reducer: Reducer, learned: Mapping[str, Tensor]
) -> None:
    weights: dict[str, Mapping[str, Tensor]] = {}
    if recipe.rank:
        weights[ADAPTER] = adapters.factors(model)
    elif not recipe.freeze:
        # Clones: some are tied, and a file may not hold a tensor twice.
        weights[WEIGHTS] = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    if isinstance(reducer, Learner) and learned:
        tables = {f"{reducer.learns}.{k}": v.detach().cpu() for k, v in learned.items()}
        weights[f"{reducer.name}.safetensors"] = tables
    for name, tensors in weights.items():
        with checkpoints.saving(settings.out / name) as scratch:
            save_file(dict(tensors), scratch)
