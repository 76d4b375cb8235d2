"""The training loop: steps, processes, checkpoints and a log, on Hugging Face's accelerate.

transformers' `Trainer` wants samples that it batches itself and a loss of each batch's outputs.
Here the texts of a batch are chosen together, the contrastive loss is of the batch over all
processes, and a method adds a loss of what it saw inside the model. So the loop is written out, and
accelerate does the rest: one GPU or several (`accelerate launch`, `torchrun`), and checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn

from bench.core.documents import parse_json, parse_json_lines
from bench.core.errors import BenchError
from bench.records import files
from bench.training import checkpoints
from bench.training.checkpoints import TrainingError

SAVE_SECONDS = 60.0
LOG = "log.jsonl"
LOG_EVERY = 10  # steps, whose mean loss is a line of the log


@dataclass(frozen=True)
class Settings:
    """Where and how a training runs, whatever is trained.

    Attributes:
        out: folder for checkpoints, log and weights.
        seed: of new weights, the order of the data and the augmentation.
        resume: go on from the checkpoint in `out`, if there is one.
        device: "cpu" or "cuda"; of several processes each takes the GPU of its number.
        data_dir: cache of the raw data; None is `$CROSSGET_BENCH_CACHE`.
        threads: of the CPU; None is torch's own choice.
    """

    out: Path
    seed: int = 0
    resume: bool = True
    device: str = "cpu"
    data_dir: Path | None = None
    threads: int | None = None

    def begun(self) -> Self:
        """Seed torch, set its threads and make the folder; return the settings of this process.

        Raises:
            BenchError: there is no such device, or the folder cannot be written.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        try:
            torch.empty(0, device=self.device)
        except (AssertionError, RuntimeError) as error:
            raise TrainingError(f"no device '{self.device}' here: try --device cpu") from error
        with files.writing(f"to {self.out}", "name another folder with --out"):
            self.out.mkdir(parents=True, exist_ok=True)
            files.check_writable(self.out)
        for path in files.leftovers(self.out):
            files.remove(path)
        processes = accelerator(self.device)
        alone = processes.num_processes == 1
        return self if alone else replace(self, device=str(processes.device))


def accelerator(device: str) -> Any:
    """Return a new accelerate.Accelerator; it joins the other processes, if there are any.

    accelerate has one device for as long as a program runs, also after the training that chose it.
    One on another device forgets it.
    """
    try:
        import accelerate
        from accelerate.state import AcceleratorState, is_initialized
    except ImportError as error:
        raise TrainingError("training needs accelerate: pip install accelerate peft") from error
    kind = torch.device(device).type
    if is_initialized() and AcceleratorState().device.type != kind:
        AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(
        cpu=kind == "cpu",
        device_placement=False,  # the model is loaded to its device
        step_scheduler_with_optimizer=False,
        mixed_precision="no",  # each loss says what it computes in bfloat16
        # A method may leave parameters of some layers unused.
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


@dataclass
class Job:
    """What is trained, and for how long.

    Attributes:
        model: all that is trained and kept in checkpoints.
        loss: step and generator -> the loss; the generator depends on seed and step alone.
        steps: how many.
        optimizers: those of `model`'s parameters.
        evaluate: returns scores by name.
        warmup: steps until the learning rates have risen to their peaks.
        decay_start: the step from which they fall, to zero at the last.
        about: what a checkpoint must say of itself to be resumed.
    """

    model: nn.Module
    loss: Callable[[int, torch.Generator], Tensor]
    steps: int
    optimizers: Sequence[torch.optim.Optimizer]
    evaluate: Callable[[], dict[str, float]]
    warmup: int = 20
    decay_start: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


class Objective(nn.Module):
    """The loss of a step as a module, whose gradients several processes share."""

    def __init__(self, job: Job) -> None:
        """Hold the job's model, so that its parameters are this module's."""
        super().__init__()
        self.model = job.model
        self.forward = job.loss


def rate_factor(step: int, warmup: int, decay_start: int, total: int) -> float:
    """Return the share of the peak learning rate at a step: warm-up, plateau, linear fall."""
    fall = (total - step) / max(1, total - decay_start)
    return max(0.0, min((step + 1) / max(1, warmup), 1.0, fall))


def shuffled(count: int, batch: int, step: int, seed: int) -> Tensor:
    """Return the positions (batch,) of a step's samples among `count`; each pass is shuffled."""
    per_pass = max(1, count // batch)
    rng = torch.Generator().manual_seed(seed * 7919 + step // per_pass)
    start = step % per_pass * batch
    return torch.randperm(count, generator=rng)[start : start + batch]


@contextlib.contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; the second of them stops at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone has signals
        yield stopped
        return

    def stop(number: int, _: Any) -> None:
        stopped.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(job: Job, settings: Settings, *, evaluate_every: int) -> dict[str, float]:
    """Train to the last step and return the final evaluation.

    Writes a checkpoint about once a minute and when it is stopped, and `log.jsonl`, into the
    settings' folder.

    Raises:
        TrainingError: the loss is not finite, or a checkpoint cannot be used.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, with all steps so far in a checkpoint.
    """
    processes, out = accelerator(settings.device), settings.out
    factor = functools.partial(
        rate_factor, warmup=job.warmup, decay_start=job.decay_start, total=job.steps
    )
    schedules = [torch.optim.lr_scheduler.LambdaLR(opt, factor) for opt in job.optimizers]
    objective, *others = processes.prepare(Objective(job), *job.optimizers, *schedules)
    step, recent = checkpoints.restore(processes, job.about, out) if settings.resume else (0, 0.0)
    first = processes.is_main_process  # alone writes files
    log: Callable[..., None] = _log(out / LOG, step) if first else lambda **_: None
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    at = time.monotonic()
    with Progress(*columns, disable=not first) as bar, _stoppable() as stopped:
        task = bar.add_task("training", total=job.steps, completed=step)
        while step < job.steps:
            rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
            value = _step(objective, others, processes, step, rng)
            loss, stop = _agreed(processes, value, stopped.is_set())
            recent += (loss - recent) / (step % LOG_EVERY + 1)  # the mean since the last line
            step += 1
            bar.update(task, advance=1, description=f"loss {recent:.3f}")
            if step % LOG_EVERY == 0:
                log(step=step, loss=round(recent, 4))
            if step % evaluate_every == 0 and step < job.steps:
                log(step=step, **job.evaluate())
            due = stop or step == job.steps or time.monotonic() - at > SAVE_SECONDS
            if due and first:
                checkpoints.save(processes, job.about, out, step, recent)
                at = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    scores = job.evaluate()
    log(step=job.steps, final=True, **scores)
    return scores


def losses(out: Path) -> list[tuple[int, float]]:
    """Return the steps of a finished training's log, each with the mean loss up to it."""
    lines = parse_json_lines((out / LOG).read_text(), str(out / LOG))
    return [(int(line["step"]), float(line["loss"])) for line in lines if "loss" in line]


def _log(path: Path, step: int) -> Callable[..., None]:
    """Return what appends a JSON line to a log, in which lines after `step` are dropped first."""
    lines = path.read_text().splitlines() if path.exists() and step else []
    files.write_atomic(path, "".join(line + "\n" for line in lines if _at(line) <= step))

    def write(**values: Any) -> None:
        fix = "make room, then the same command goes on"
        with files.writing(path, fix), path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    return write


def _at(line: str) -> float:
    """Return the step of a line of the log; infinity where it was not written to its end."""
    with contextlib.suppress(BenchError, KeyError, TypeError, ValueError):
        return float(parse_json(line, "the log")["step"])
    return math.inf


def _step(
    objective: nn.Module, others: Sequence[Any], processes: Any, step: int, rng: torch.Generator
) -> Tensor:
    """Do one step of `others`, optimisers and then their schedules; return the loss."""
    objective.train()
    loss: Tensor = objective(step, rng)
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()} at step {step}: try a smaller --rate")
    processes.backward(loss)
    processes.clip_grad_norm_(objective.parameters(), 1.0)
    for other in others:
        other.step()
    objective.zero_grad()
    return loss.detach()


def _agreed(processes: Any, loss: Tensor, stopped: bool) -> tuple[float, bool]:
    """Return the mean loss of all processes, and whether one of them was stopped: all then are."""
    both = torch.stack([loss, loss.new_tensor(float(stopped))])
    mean, stops = processes.reduce(both, reduction="mean").tolist()
    return mean, stops > 0
