"""What the kit runs methods on: the towers of small models, and what goes into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.adapters import adapter_for
from bench.check import models

BATCH = 3
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One tower of one kind of model.

    Attributes:
        name: for the table.
        build: makes the model.
        tower: which tower is reduced.
        part: the submodule that is called; "" is the whole model.
        masked: padding is masked out, so that those tokens stand for nothing.
        compiles: torch.compile is tried here; it costs more than all the rest.
    """

    name: str
    build: Callable[[], nn.Module]
    tower: str = "vision"
    part: str = ""
    masked: bool = False
    compiles: bool = False

    def inputs(self, seed: int) -> Inputs:
        """Three images, or three texts of different length."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.tower == "vision":
                return (models.images(BATCH),)
            ids = models.token_ids(BATCH)
        return (ids, (ids != 0).long()) if self.masked else (ids,)


# Four blocks each, so that the usual layers 1, 2 and 3 leave the first block alone.
_clip, _siglip = partial(models.clip, text_layers=4), partial(models.siglip, text_layers=4)
_no_class = partial(models.timm_vit, class_token=False, global_pool="avg", fc_norm=True)

CASES = (
    Case("timm ViT", models.timm_vit, compiles=True),
    Case("timm no-class", _no_class),
    Case("timm registers", partial(models.timm_vit, reg_tokens=4)),
    Case("CLIP vision", _clip, part="vision_model"),
    Case("CLIP text", _clip, "text", "text_model", compiles=True),
    Case("CLIP text masked", _clip, "text", "text_model", masked=True),
    Case("SigLIP vision", _siglip, part="vision_model"),
    Case("SigLIP text", _siglip, "text", "text_model"),
    Case("HF ViT", models.hf_vit),
    Case("DINOv2", models.dinov2),
)


class Subject:
    """A case's model, built, and what it answers unreduced."""

    def __init__(self, case: Case) -> None:
        """Build it and run it once, before any method has been made."""
        self.case = case
        with torch.random.fork_rng(devices=[]):
            self.model = case.build()
        towers = adapter_for(self.model).towers(self.model)
        self.tower = towers[case.tower]
        self.shapes = {name: (len(t.blocks), t.width) for name, t in towers.items()}
        self.inputs, self.others = case.inputs(1), case.inputs(2)
        self.tokens = 0

        def count(x: Tensor) -> Tensor:
            self.tokens = x.shape[1]
            return x

        with self.at_first_block(count), torch.no_grad():
            self.plain = self.run()
        self.before = snapshot(self.model)

    def run(self, inputs: Inputs | None = None, model: nn.Module | None = None) -> Tensor:
        """What the tower's reader says, (B,...)."""
        part: Any = (model or self.model).get_submodule(self.case.part)
        out = part(*(self.inputs if inputs is None else inputs))
        if isinstance(out, Tensor):
            return out
        return out.logits if "logits" in out else out.pooler_output  # type: ignore[no-any-return]

    def run_all(self) -> bool:
        """Run all towers, where there are several; returns whether there are."""
        if len(self.shapes) == 1:
            return False
        images, ids = (replace(self.case, tower=t).inputs(1)[0] for t in ("vision", "text"))
        self.model(pixel_values=images, input_ids=ids)
        return True

    def at_first_block(self, change: Callable[[Tensor], Tensor]) -> _Hook:
        """Let `change` see and replace the sequence (B,N,C) ahead of the first block."""
        return _Hook(self.tower.blocks[0], change)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, and copies of all weights."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = value
    return {**found, **{name: (t, t.clone()) for name, t in model.state_dict().items()}}


class _Hook:
    def __init__(self, block: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        self.block, self.change = block, change

    def __enter__(self) -> None:
        self.handle = self.block.register_forward_pre_hook(
            lambda _, args: (self.change(args[0]), *args[1:])
        )

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
