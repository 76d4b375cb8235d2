"""The training loop that all embedded models share: schedule, optimisers, checkpoints, log.

A recipe is a list of phases. The learning rate is constant after a short warm-up and falls linearly
to zero over the last phase, so phases before it do not depend on how long it is. Position tables
are interpolated inside the model, so early phases train the same parameters at a lower resolution
and a fraction of the cost; the last phase is always at the full resolution.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError

SAVE_SECONDS = 60.0
CHECKPOINT = "checkpoint.pt"


class TrainingError(BenchError):
    """Training cannot start or go on; the message names the fix."""


@dataclass(frozen=True)
class Phase:
    """Training at one resolution: side in pixels, passes over the data, images a step."""

    pixels: int
    epochs: float
    batch: int


@dataclass(frozen=True)
class Rates:
    """Learning rates: `matrix` for the blocks' weights (Muon), `other` for the rest (AdamW).

    `matrix` None leaves everything to AdamW, as fine-tuning does. `known` are parts of the model,
    by the beginnings of their parameters' names, that AdamW trains at 0.3 of the rate.
    """

    matrix: float | None = 3e-3
    other: float = 1e-3
    known: tuple[str, ...] = ()
    decay: float = 0.05
    warmup_steps: int = 100


@dataclass(frozen=True)
class Settings:
    """What a user may choose of a training run; None is the recipe's own value.

    `epochs` are passes over the data at full resolution, `low_epochs` those before at a lower one.
    """

    out: Path
    seed: int = 0
    epochs: float | None = None
    low_epochs: float | None = None
    resume: bool = True
    device: str = "cpu"
    data_dir: Path | None = None
    threads: int | None = None
    compile: bool = False

    def compile_blocks(self, blocks: Iterable[nn.Module]) -> None:
        """Compile alike blocks in place if asked to; on a CPU a third to a half faster."""
        for block in blocks if self.compile else ():
            block.compile()

    def begun(self) -> Settings:
        """Seed torch, set its threads, make the folder; return the settings.

        Raises:
            TrainingError: there is no such device, or the folder cannot be written.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        try:
            torch.empty(0, device=self.device)
        except (AssertionError, RuntimeError) as error:
            raise TrainingError(f"no device '{self.device}' here: try --device cpu") from error
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.out).close()
        except OSError as error:
            raise TrainingError(
                f"cannot write to {self.out} ({error.strerror}): name another folder with --out"
            ) from error
        return self


@dataclass
class Progress:
    """Where training stands; saved with the weights, so that a killed run goes on from here."""

    step: int = 0
    seconds: float = 0.0
    extra: dict[str, Tensor] = field(default_factory=dict)


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
    found: list[torch.optim.Optimizer] = []
    if matrices and rates.matrix is not None:
        found.append(
            torch.optim.Muon(
                matrices, lr=rates.matrix, weight_decay=rates.decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if rest:
        groups = [{"params": group, "lr": rate} for rate, group in rest.items()]
        found.append(torch.optim.AdamW(groups, lr=rates.other, weight_decay=rates.decay))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def rate_factor(step: int, warmup: int, decay_start: int, total: int) -> float:
    """Return the share of the peak learning rate at a step: warm-up, plateau, linear fall."""
    fall = (total - step) / max(1, total - decay_start)
    return max(0.0, min((step + 1) / max(1, warmup), 1.0, fall))


def save_atomic(state: object, path: Path) -> None:
    """Write a torch checkpoint so that a kill leaves either the old file or the new one."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    torch.save(state, partial)
    partial.replace(path)


class Log:
    """A JSON-lines log; on resuming, lines after the checkpoint's step are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        """Open the log at `path`, keeping only lines of steps up to `step`."""
        self.path = path
        lines = path.read_text().splitlines() if path.exists() and step else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))

    def write(self, **values: Any) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


@dataclass
class Job:
    """What differs between models: the data size, the loss of some images, the evaluation.

    `loss(indices, pixels, rng, state)` gets positions (B,) into the training data, the side in
    pixels, a generator that depends only on seed and step, and tensors kept in the checkpoint.
    A checkpoint that says something else `about` itself is not resumed.
    """

    model: nn.Module
    images: int
    loss: Callable[[Tensor, int, torch.Generator, dict[str, Tensor]], Tensor]
    evaluate: Callable[[], dict[str, float]]
    phases: Sequence[Phase]
    rates: Rates = field(default_factory=Rates)
    about: Mapping[str, Any] = field(default_factory=dict)

    def steps(self) -> list[int]:
        """Return the number of steps of each phase."""
        return [max(1, round(p.epochs * self.images / p.batch)) for p in self.phases]


def _position(job: Job, step: int) -> tuple[Phase, int, int]:
    """Return the phase of a global step, the step inside it, and the phase's number."""
    for number, (phase, count) in enumerate(zip(job.phases, job.steps(), strict=True)):
        if step < count:
            return phase, step, number
        step -= count
    raise IndexError(step)


def _indices(job: Job, phase: Phase, inner: int, seed: int) -> Tensor:
    """Return the positions (B,) of a step's images; each pass is its own shuffle."""
    per_pass = max(1, job.images // phase.batch)
    shuffle = torch.Generator().manual_seed(seed * 7919 + inner // per_pass + phase.pixels * 10007)
    start = inner % per_pass * phase.batch
    return torch.randperm(job.images, generator=shuffle)[start : start + phase.batch]


def check_same(said: Mapping[str, Any], about: Mapping[str, Any], folder: Path) -> None:
    """Raise TrainingError when a folder holds another training than the one `about` describes."""
    other = [f"{key} is {said.get(key)}" for key, own in about.items() if said.get(key) != own]
    if other:
        raise TrainingError(
            f"{folder} holds another training ({', '.join(other)} there): "
            "name another folder with --out, or begin anew with --no-resume"
        )


def _restore(path: Path, job: Job, opts: list[torch.optim.Optimizer]) -> Progress:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        check_same(saved.get("about", job.about), job.about, path.parent)
        job.model.load_state_dict(saved["model"])
        for optimizer, state in zip(opts, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return Progress(**saved["progress"])
    except TrainingError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"cannot resume from {path} ({reason}): delete it") from error


def _save(path: Path, job: Job, opts: list[torch.optim.Optimizer], progress: Progress) -> None:
    save_atomic(
        {
            "model": job.model.state_dict(),
            "optimizers": [o.state_dict() for o in opts],
            "progress": vars(progress),
            "about": dict(job.about),
        },
        path,
    )


def _step(
    job: Job, opts: list[torch.optim.Optimizer], progress: Progress, seed: int, total: int
) -> float:
    """Do one optimiser step; return the loss."""
    phase, inner, _ = _position(job, progress.step)
    last = total - job.steps()[-1]
    factor = rate_factor(progress.step, job.rates.warmup_steps, last, total)
    rng = torch.Generator().manual_seed(seed * 1_000_003 + progress.step)
    loss = job.loss(_indices(job, phase, inner, seed), phase.pixels, rng, progress.extra)
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {float(loss.detach())} at step {progress.step}: try a smaller --rate"
        )
    for optimizer in opts:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(job.model.parameters(), 1.0)
    for optimizer in opts:
        optimizer.step()
    return float(loss.detach())


def _evaluate(job: Job) -> dict[str, float]:
    with torch.compiler.set_stance("force_eager"):  # not worth compiling for the few passes
        return job.evaluate()


def fit(
    job: Job, settings: Settings, *, evaluate_every: int, log_every: int = 20
) -> dict[str, float]:
    """Train to the end of the last phase and return the final evaluation.

    Writes `checkpoint.pt` about once a minute, and `log.jsonl`, in the settings' folder.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    path = settings.out / CHECKPOINT
    opts = optimizers(job.model, job.rates)
    progress = _restore(path, job, opts) if settings.resume and path.exists() else Progress()
    log, total, recent = Log(settings.out / "log.jsonl", progress.step), sum(job.steps()), 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as bar:
        task = bar.add_task("training", total=total, completed=progress.step)
        saved = time.monotonic()
        while progress.step < total:
            began = time.monotonic()
            job.model.train()
            loss = _step(job, opts, progress, settings.seed, total)
            recent = loss if not recent else 0.98 * recent + 0.02 * loss
            progress.step += 1
            progress.seconds += time.monotonic() - began
            pixels = _position(job, progress.step - 1)[0].pixels
            bar.update(task, advance=1, description=f"{pixels} px, loss {recent:.3f}")
            if progress.step % log_every == 0:
                log.write(
                    step=progress.step,
                    pixels=pixels,
                    loss=round(recent, 4),
                    seconds=round(progress.seconds, 1),
                )
            if progress.step % evaluate_every == 0 and progress.step < total:
                log.write(step=progress.step, pixels=pixels, **_evaluate(job))
            if time.monotonic() - saved > SAVE_SECONDS or progress.step == total:
                _save(path, job, opts, progress)
                saved = time.monotonic()
    final = _evaluate(job)
    log.write(step=total, final=True, seconds=round(progress.seconds, 1), **final)
    return final
