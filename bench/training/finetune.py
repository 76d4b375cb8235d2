"""Fine-tune a model with token reduction on, so that trained is compared with trained.

The loss is `(1 - w) task + w own`, where `own` is what the method adds (CrossGET's alignment loss,
§3.1, w = 0.5 in its CLIP code) and the task loss is CLIP's contrastive one, or a classifier's cross
entropy; a method that adds nothing gets the task loss alone, from the same batches, for as many
steps, at the same rates.

What it writes into its folder is a model that every command takes by the folder's name:
`training.json` (what was done, and the model it started from), the weights (`adapter.safetensors`
with `rank`, else `model.safetensors`; none where they were frozen), and `METHOD.safetensors` with
what the method learned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bench
from bench import tasks
from bench.core import Learner, Reducer
from bench.core.errors import BenchError, Unsupported
from bench.engine.families import adapter_for
from bench.models import catalogue
from bench.models.loaded import Loaded
from bench.models.names import TRAINING
from bench.models.sources.tuned import ADAPTER, WEIGHTS
from bench.records import machine
from bench.records.store import write_atomic
from bench.runs.options import NATURAL_TASK
from bench.training import lora, pairs
from bench.training import recipe as recipes
from bench.training.contrastive import MAX_LOGIT_SCALE, contrastive_loss
from bench.training.loop import CHECKPOINT, Job, Phase, Rates, Settings, fit
from bench.training.recipe import Recipe


def finetune(recipe: Recipe, settings: Settings, command: str = "") -> dict[str, float]:
    """Fine-tune as `recipe` says, unless that is done; return the scores of the last evaluation.

    Raises:
        BenchError: unknown names, unusable data, a model that is neither a CLIP nor a classifier,
            a folder that holds another training.
    """
    reducer = recipes.reducer(recipe)
    about = json.loads(json.dumps({**asdict(recipe), "seed": settings.seed}, default=str))
    done = recipes.done(settings.begun(), recipe, about)
    if done is not None:
        return done
    loaded = catalogue.load(recipe.model, device=settings.device, backend=_backend(settings.device))
    model: Any = loaded.model
    if loaded.kind not in TASK_LOSSES and not hasattr(model, "visual_projection"):
        raise Unsupported(
            f"{recipe.model} is neither a CLIP nor of the kinds {', '.join(TASK_LOSSES)}: only "
            "these can be fine-tuned so far"
        )
    data = pairs.load(recipe.data, loaded, settings.data_dir)
    model.requires_grad_(not recipe.freeze)
    if recipe.rank:
        lora.attach(model, recipe.rank, settings.seed)
    learned = _learn(reducer, model)
    if recipe.freeze and not learned:
        raise BenchError(f"method '{recipe.method}' learns nothing of its own: leave --freeze out")
    start = time.monotonic()
    with bench.reduced(model, reducer, **recipe.budget):
        if learned and not _is_reduced(model):
            raise BenchError(
                f"with this budget {recipe.method} removes nothing and learns nothing: "
                "give a larger --r, or --method none to train without reduction"
            )
        job = Job(
            model,
            len(data),
            _loss(loaded, reducer, recipe, data),
            _scores(recipe, loaded),
            [Phase(loaded.image_size[0], recipe.epochs, recipe.batch)],
            Rates(matrix=None, other=recipe.rate, decay=0.0, warmup_steps=20),
        )
        job.about = about = {**about, "steps": sum(job.steps())}
        if not settings.resume:
            recipes.clear(settings.out)
        scores = fit(job, settings, evaluate_every=1000)
    if learned:
        del model.learned
    _write(settings, recipe, model, reducer, learned)
    about |= {
        "precision": f"{settings.device}, bfloat16 autocast",
        "command": command,
        "scores": {name: round(value, 4) for name, value in scores.items()},
        "seconds": round(time.monotonic() - start, 1),
        "environment": machine.environment(
            machine.slug(settings.device, torch.get_num_threads()),
            settings.device,
            torch.get_num_threads(),
        ),
    }
    write_atomic(settings.out / TRAINING, json.dumps(about, indent=1) + "\n")  # now it is done
    (settings.out / CHECKPOINT).unlink()
    return scores


def _is_reduced(model: Any) -> bool:
    towers = adapter_for(model).towers(model).values()
    return any("forward" in block.__dict__ for tower in towers for block in tower.blocks)


def _backend(device: str) -> str:
    """Torch's fused attention is slow backwards in bf16 on a CPU."""
    return "eager" if device == "cpu" else "sdpa"


def _learn(reducer: Reducer, model: Any) -> dict[str, nn.Parameter]:
    """Give `model` the method's own parameters, so that they are trained and kept with it."""
    shapes = recipes.towers(reducer, model)
    learned = dict(reducer.learn(shapes)) if isinstance(reducer, Learner) else {}
    for tower, table in learned.items():
        if tower in shapes and table.shape != shapes[tower]:
            raise BenchError(
                f"what {reducer.name} learned for the {tower} tower is {tuple(table.shape)}, "
                f"and this model takes {shapes[tower]}"
            )
    if learned:
        named = {name.replace(".", "/"): table for name, table in learned.items()}
        model.learned = nn.ParameterDict(named).to(next(model.parameters()).device)
    return learned


def _loss(
    loaded: Loaded, reducer: Reducer, recipe: Recipe, data: pairs.Pairs
) -> Callable[[Tensor, int, torch.Generator, dict[str, Tensor]], Tensor]:
    task_loss = TASK_LOSSES.get(loaded.kind, _contrastive)(loaded)

    def loss(indices: Tensor, _: int, rng: torch.Generator, __: dict[str, Tensor]) -> Tensor:
        batch = data.batch(indices, rng)
        task = task_loss(batch)
        if not isinstance(reducer, Learner):
            return task
        own = reducer.loss(loaded.model, batch.own.to(loaded.device))
        return task if own is None else (1 - recipe.weight) * task + recipe.weight * own

    return loss


def _cross_entropy(loaded: Loaded) -> Callable[[pairs.Batch], Tensor]:
    def loss(batch: pairs.Batch) -> Tensor:
        with torch.autocast(loaded.device.type, torch.bfloat16):
            out = loaded.model(**{loaded.image_argument: batch.images.to(loaded.device)})
        logits = getattr(out, "logits", out).float()
        return nn.functional.cross_entropy(logits, batch.own.to(loaded.device))

    return loss


def _contrastive(loaded: Loaded) -> Callable[[pairs.Batch], Tensor]:
    model: Any = loaded.model
    device = loaded.device
    tokenizer = _tokenizer(loaded)

    def loss(batch: pairs.Batch) -> Tensor:
        words = {key: value.to(device) for key, value in tokenizer(batch.texts).items()}
        if model.logit_scale.requires_grad:
            with torch.no_grad():
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        with torch.autocast(device.type, torch.bfloat16):
            out = model(pixel_values=batch.images.to(device), **words)
        a, b, scale = out.image_embeds.float(), out.text_embeds.float(), model.logit_scale.exp()
        return contrastive_loss(a, b, scale, batch.own.to(device))

    return loss


def _answers(loaded: Loaded) -> Callable[[pairs.Batch], Tensor]:
    """The model's own loss of the right answers."""
    if loaded.teach is None:
        raise BenchError(f"{loaded.name} has no processor: put its files beside its weights")
    teach = loaded.teach

    def loss(batch: pairs.Batch) -> Tensor:
        shown = [list(pictures) for pictures in batch.pictures]
        inputs = loaded.placed(teach(shown, batch.texts, list(batch.answers)))
        with torch.autocast("cuda", torch.bfloat16, enabled=loaded.device.type == "cuda"):
            found: Tensor = loaded.model(**inputs).loss
        return found

    return loss


TASK_LOSSES = {
    "classifier": _cross_entropy,
    **dict.fromkeys(("multimodal", "answerer", "captioner", "pair-classifier"), _answers),
}


def _tokenizer(loaded: Loaded) -> Callable[[list[str]], dict[str, Tensor]]:
    """Return the model's tokenizer, once it has shown that it pads texts to one length."""
    try:
        if loaded.tokenizer is not None and loaded.tokenizer(["one", "one two"]):
            return loaded.tokenizer
    except ValueError:
        pass  # transformers makes up an empty one where its files are missing
    raise BenchError(f"{loaded.name} has no tokenizer: put its files beside its weights")


def _scores(recipe: Recipe, loaded: Loaded) -> Callable[[], dict[str, float]]:
    """Return what scores the model on the task that goes with it; nothing where none does."""
    name = NATURAL_TASK.get(recipe.model)
    if name is None:
        return dict
    task = tasks.load(name)

    def evaluate() -> dict[str, float]:
        loaded.model.eval()
        return {key: m.value for key, m in task.evaluate(loaded).metrics.items()}

    return evaluate


def _write(
    settings: Settings, recipe: Recipe, model: Any, reducer: Reducer, learned: Mapping[str, Tensor]
) -> None:
    if recipe.rank:
        save_file(lora.detach(model), settings.out / ADAPTER)
    elif not recipe.freeze:
        # Clones: some are tied, and a file may not hold a tensor twice.
        state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        save_file(state, settings.out / WEIGHTS)
    if isinstance(reducer, Learner) and learned:
        tensors = {f"{reducer.learns}.{k}": v.detach().cpu() for k, v in learned.items()}
        save_file(tensors, settings.out / f"{reducer.name}.safetensors")
