"""The command `train`: fine-tune a model with a method at work."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import path
from bench.core.documents import yaml_value
from bench.core.errors import BenchError
from bench.core.names import check_name
from bench.core.numbers import LARGEST

Text = str | None


def train(
    context: typer.Context,
    model: Annotated[
        Text,
        typer.Argument(help="A CLIP, a classifier or a model that answers [embedded:clip-emoji]."),
    ] = None,
    method: Annotated[
        Text, typer.Option(help="Reduction method to train with; 'none' for none.")
    ] = None,
    r: Annotated[
        Text, typer.Option("--r", help="Tokens removed a layer: 8, or vision=16,text=2.")
    ] = None,
    keep_rate: Annotated[
        Text, typer.Option(help="Share of tokens kept at the chosen layers: 0.7.")
    ] = None,
    layers: Annotated[
        Text, typer.Option(help="Blocks to reduce at, from 0: 1,3,5, or vision=1/3/5.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A method's parameter.")
    ] = None,
    data: Annotated[
        Text,
        typer.Option(
            help="emoji or karpathy:JSON[:IMAGES]; drawings; fashion or imagefolder:PATH; scenes; "
            "clutter."
        ),
    ] = None,
    loss_weight: Annotated[
        float | None, typer.Option(help="Share of the method's own loss [0.5].")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data [1].")] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images a step, of all processes together [32].")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Peak learning rate of AdamW [0.0003].")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Train adapters of this rank; default all weights.")
    ] = None,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Train what the method learns, alone.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder to write into; default in runs/.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="Of new weights, batches and augmentation.")
    ] = 0,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Begin anew in the same folder.")
    ] = False,
    no_scores: Annotated[
        bool, typer.Option("--no-scores", help="Leave out scoring the model at the end.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; in bfloat16 where that is fast.")
    ] = "cpu",
    data_dir: Annotated[
        Path | None, typer.Option(parser=path, help="Cache of the raw data.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="CPU threads.")] = None,
) -> None:
    """Fine-tune a model with token reduction on; stopped or killed, the same command goes on.

    The folder that it writes is a model's name for every other command. How the embedded models
    themselves were trained, from scratch: python -m recipes --help.

    \b
    Examples:
      run_bench.py train --method crossget --r 34                    fine-tune embedded:clip-emoji
      run_bench.py train --method crossget --r vision=34,text=2      both towers reduced
      run_bench.py train --method none                               the same batches, not reduced
      run_bench.py train embedded:vit-fashion --method dynamicvit --keep-rate 0.7 --freeze
      run_bench.py train openai/clip-vit-base-patch16 --method tome --r 16 \\
                   --data karpathy:flickr30k.json:images --device cuda --out runs/clip-tome
      torchrun --nproc-per-node 8 -- run_bench.py train … --device cuda      on eight GPUs

    \b
    Then, on what was written:
      run_bench.py run --model runs/clip-tome --task karpathy:flickr30k.json:images \\
                   --method tome --r 16
    """
    tuning = {
        "r": r, "keep_rate": keep_rate, "layers": layers, "param": param, "data": data,
        "loss_weight": loss_weight, "batch": batch, "rate": rate, "rank": rank,
        "freeze": freeze or None, "epochs": epochs,
    }  # fmt: skip
    chosen = {key: value for key, value in tuning.items() if value is not None}
    if method is None:
        if model is None and not chosen:
            print(context.get_help())
            return
        names = [f"--{key.replace('_', '-')}" for key in chosen]
        raise BenchError(
            f"{' '.join(names) or f'train {model}'} needs --method NAME, or 'none' "
            "(from scratch: python -m recipes NAME)"
        )
    if data is not None:
        check_name("--data", data)
    from bench.runs.options import NATURAL_TASK
    from bench.training.finetune import finetune
    from bench.training.loop import Settings

    recipe = _recipe(model, method, chosen)
    out = out or Path("runs") / f"{recipe.name()}-seed{seed}"
    settings = Settings(out, seed, not no_resume, device, data_dir, threads)
    command = shlex.join(["run_bench.py", *sys.argv[1:]])
    task = None if no_scores else NATURAL_TASK.get(recipe.model)
    scores = finetune(recipe, settings, command, task)
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(json.dumps({key: round(value, 4) for key, value in scores.items()}))


def _recipe(model: str | None, method: str, chosen: dict[str, Any]) -> Any:
    """Return the Recipe that the options describe; the others are its defaults."""
    from bench.runs.options import budget, listed
    from bench.training.finetune import Recipe

    knobs = ("r", "keep_rate", "layers")
    budgets = {key: budget(chosen.pop(key), key) for key in knobs if key in chosen}
    if "layers" in budgets:
        budgets["layers"] = listed(budgets["layers"])
    if "loss_weight" in chosen:
        chosen["weight"] = chosen.pop("loss_weight")
    if model is not None:
        chosen["model"] = model
    params = _parameters(chosen.pop("param", []))
    return Recipe(method=method, budget=budgets, params=params, **chosen)


def _parameters(texts: list[str]) -> dict[str, Any]:
    pairs = [text.partition("=") for text in texts]
    if all(equals for _, equals, _ in pairs):
        return {key: yaml_value(value, f"--param {key}") for key, _, value in pairs}
    raise BenchError(f"--param {' '.join(texts)}: wants KEY=VALUE, such as guided_matching=false")
