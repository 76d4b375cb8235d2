"""Does a compiled pass say what the eager one says, for every method on every encoder family?

Small models of the real classes, float32, TorchInductor; a break in the graph is an error. Methods
whose counts depend on the image are left out.

    python benchmarks/engines.py
    python benchmarks/engines.py --methods tome,crossget --families timm,clip
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import bench
from bench.check import models
from bench.core.errors import BenchError, check_known
from bench.core.kinds import is_adaptive
from bench.core.learner import needs_training
from bench.core.registry import methods as registered
from bench.measure import engines

TOLERANCE = 1e-5
FAMILIES: dict[str, Callable[[], Any]] = {
    "timm": lambda: models.timm_vit(depth=2),
    "timm-registers": lambda: models.timm_vit(depth=2, reg_tokens=4),
    "eva": lambda: models.eva(depth=2),
    "beit": lambda: models.beit(depth=2),
    "clip": models.clip,
    "siglip": models.siglip,
    "hf-vit": models.hf_vit,
    "dinov2": models.dinov2,
    "dinov3": models.dinov3,
    "hf-beit": models.hf_beit,
}


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """Return the arguments of a model for a batch of two."""
    torch.manual_seed(1)
    if "timm" in type(model).__module__:
        return {"x": models.images()}
    words = {"input_ids": models.token_ids()} if hasattr(model, "text_model") else {}
    return {"pixel_values": models.images(), **words}


def answer(out: Any) -> Tensor:
    """Return one tensor of all that a model answers."""
    if isinstance(out, Tensor):
        return out
    if "image_embeds" in out:
        return torch.cat([out.image_embeds, out.text_embeds], 1)
    return out.logits if "logits" in out else out.pooler_output


def difference(family: str, method: str) -> float:
    """Return the largest difference of the compiled pass from the eager one.

    Raises:
        BenchError: the method cannot run on the family, or not as one graph.
    """
    model = FAMILIES[family]()
    arguments, cls = inputs(model), registered()[method]
    budget: dict[str, Any] = {}
    if "keep_rate" in cls.budget:
        budget = {"keep_rate": 0.7, "layers": [1]}
    if needs_training(cls):
        budget[cls.learns] = "random"
    engines.forget()
    with torch.inference_mode(), bench.reduced(model, method, **budget):
        eager = answer(model(**arguments))
        compiled = answer(engines.engaged(model, "compile", arguments)(**arguments))
    return float((compiled - eager).abs().max())


def main(
    methods: Annotated[str, typer.Option(help="comma-separated; default all for images")] = "",
    families: Annotated[str, typer.Option(help="comma-separated; default all")] = "",
) -> None:
    """Compare compiled with eager passes; exits with 1 if one differs."""
    known = [n for n, c in registered().items() if "vision" in c.towers and not is_adaptive(c)]
    names = [name for name in methods.split(",") if name] or known
    places = [name for name in families.split(",") if name] or list(FAMILIES)
    wrong = 0
    try:
        engines.require("compile", "cpu")
        for name in names:
            check_known("no method of constant counts", name, known)
        for place in places:
            check_known("unknown family", place, FAMILIES)
    except BenchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    for name in names:
        for place in places:
            start = time.monotonic()
            try:
                gap = difference(place, name)
                outcome = f"{gap:.1e}" + (" DIFFERS" if gap > TOLERANCE else "")
                wrong += gap > TOLERANCE
            except BenchError as error:
                outcome = str(error)
                wrong += "one graph" in outcome
            print(
                f"{name:<14} {place:<15} {time.monotonic() - start:5.1f} s  {outcome}", flush=True
            )
    print(f"{wrong} wrong" if wrong else "compiled passes equal eager ones")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
