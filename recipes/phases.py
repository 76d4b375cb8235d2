"""Training from scratch in phases: most of it at a low resolution, the last at the full one.

The learning rate is constant after a short warm-up and falls linearly to zero over the last phase,
so phases before it do not depend on how long it is. Position tables are interpolated inside the
model, so early phases train the same parameters at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.training.loop import Job, Settings, fit, shuffled


@dataclass(frozen=True)
class Phase:
    """Training at one resolution: side in pixels, passes over the data, images a step."""

    pixels: int
    epochs: float
    batch: int


@dataclass(frozen=True)
class Rates:
    """Learning rates: `matrix` for the blocks' weights (Muon), `other` for the rest (AdamW).

    `matrix` None leaves everything to AdamW. `known` are parts of the model that did not begin
    from scratch, by the beginnings of their parameters' names; they get 0.3 of AdamW's rate.
    """

    matrix: float | None = 3e-3
    other: float = 1e-3
    known: tuple[str, ...] = ()
    decay: float = 0.05
    warmup_steps: int = 100


@dataclass(frozen=True)
class Scratch(Settings):
    """What a user may choose of a training from scratch; None is the recipe's own value.

    `epochs` are passes over the data at full resolution, `low_epochs` those before at a lower one.
    """

    epochs: float | None = None
    low_epochs: float | None = None
    compile: bool = False

    def compile_blocks(self, blocks: Iterable[nn.Module]) -> None:
        """Compile alike blocks in place if asked to; on a CPU a third to a half faster."""
        for block in blocks if self.compile else ():
            block.compile()


def optimizers(model: nn.Module, rates: Rates) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks and AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inside = parameter.ndim == 2 and ("blocks." in name or "layers." in name)
            rate = rates.other * (0.3 if name.startswith(rates.known) else 1.0)
            muon = inside and rates.matrix is not None
            (matrices if muon else rest.setdefault(rate, [])).append(parameter)
    chosen: list[torch.optim.Optimizer] = []
    if matrices and rates.matrix is not None:
        chosen.append(
            torch.optim.Muon(
                matrices, lr=rates.matrix, weight_decay=rates.decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if rest:
        groups = [{"params": group, "lr": rate} for rate, group in rest.items()]
        chosen.append(torch.optim.AdamW(groups, lr=rates.other, weight_decay=rates.decay))
    return chosen


def train_phases(
    settings: Settings,
    model: nn.Module,
    images: int,
    loss: Callable[[Tensor, int, torch.Generator], Tensor],
    evaluate: Callable[[], dict[str, float]],
    phases: Sequence[Phase],
    rates: Rates,
    *,
    evaluate_every: int = 200,
) -> dict[str, float]:
    """Train through all phases and return the final evaluation.

    Args:
        settings: where the checkpoints go, the seed, the device.
        model: what is trained.
        images: how many there are in a pass over the data.
        loss: positions (B,) of images, the side in pixels and a generator -> the loss.
        evaluate: returns scores by name.
        phases: one after the other.
        rates: of learning.
        evaluate_every: so many steps.
    """
    lengths = [max(1, round(phase.epochs * images / phase.batch)) for phase in phases]

    def step_loss(step: int, rng: torch.Generator) -> Tensor:
        number = 0
        while step >= lengths[number]:
            step -= lengths[number]
            number += 1
        phase = phases[number]
        indices = shuffled(images, phase.batch, step, settings.seed + 1009 * number)
        return loss(indices, phase.pixels, rng)

    def scores() -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):  # not worth compiling for the few passes
            return evaluate()

    job = Job(
        model,
        step_loss,
        sum(lengths),
        optimizers(model, rates),
        scores,
        warmup=rates.warmup_steps,
        decay_start=sum(lengths[:-1]),
    )
    return fit(job, settings, evaluate_every=evaluate_every)


def either(chosen: Any, default: Any) -> Any:
    """Return what the user chose, or the recipe's own value where that is None."""
    return default if chosen is None else chosen
