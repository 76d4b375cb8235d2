"""A loaded model and what its cells share: its unreduced twin and what the twin costs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import bench
from bench.core import Learner, registry
from bench.core.errors import Unsupported
from bench.core.learner import needs_training
from bench.measure import latency
from bench.measure.counts import MacCount
from bench.measure.engines import engaged
from bench.measure.generation import ANSWER
from bench.measure.memory import PeakMemory, peak
from bench.measure.profiles import Profile
from bench.measure.task_images import task_pixels, with_pixels
from bench.measure.timing import Timing
from bench.models import catalogue, joint
from bench.models.loaded import Loaded, Multimodal
from bench.models.loading import backends_of, set_backend
from bench.records.record import BASELINE, EAGER, Accuracy, Cell, Cost, Speedup
from bench.tasks import Task

ANSWERS = "answers"  # the kind of timing that is no batch size


class Fastest(NamedTuple):
    """An unreduced model, and what it is run with."""

    backend: str
    engine: str
    model: nn.Module


class Session:
    """One model under one profile, dtype, attention backend and engine.

    Attributes:
        loaded: the model that gets reduced.
        plain: the same model with the same weights (shared, not copied), never reduced.
        opened_for: what a cell must have in common with the one that this was opened for.
        equal: what timing the unreduced model against itself gave, by batch size.
        usual_ms: the unreduced model's median time in undisturbed timings, the least so far, by
            kind of timing (a batch size, or "answers").
        unreduced: what the unreduced model scored, see `stopping.place`.
    """

    def __init__(
        self,
        loaded: Loaded,
        profile: Profile,
        dtype: str,
        backend: str,
        engine: str = EAGER,
        opened_for: Any = None,
    ) -> None:
        """Make the twin; nothing is measured yet."""
        self.loaded, self.profile, self.dtype, self.backend = loaded, profile, dtype, backend
        self.engine, self.opened_for = engine, opened_for
        self.plain = twin(loaded.model)
        self.equal: dict[int, Speedup] = {}
        self.usual_ms: dict[str, float] = {}
        self._costs: dict[str, tuple[str, Cost]] = {}
        self.unreduced: dict[Any, Accuracy] = {}
        self._pixels: dict[Any, Tensor | None] = {}
        self._memory: dict[int, PeakMemory] = {}
        self._fastest: dict[int, Fastest] = {}

    @staticmethod
    def open(cell: Cell, profile: Profile) -> Session:
        """Load the model of `cell` onto the profile's device.

        Raises:
            Unsupported: it has no such attention, or its answers cannot be timed with the engine.
        """
        dtype, backend = settings(cell, profile)
        loaded = catalogue.load(
            cell.model,
            random_weights=cell.random_weights,
            device=profile.device,
            dtype=dtype,
            backend=backend,
            seed=cell.seed,
        )
        known = backends_of(loaded.model)
        if cell.backend not in (None, *known):
            raise Unsupported(
                f"{cell.model} has no '{cell.backend}' attention in transformers: leave the "
                f"backend out, or ask for {known[0]}"
            )
        if cell.engine != EAGER and isinstance(loaded, Multimodal):
            raise Unsupported(
                f"engine '{cell.engine}' times encoders: a prompt that is put together, and an "
                "answer token by token, are no one graph; use --engine eager"
            )
        backend = backend if backend in known else known[0]
        return Session(loaded, profile, dtype, backend, cell.engine, Session.key(cell, profile))

    @staticmethod
    def key(cell: Cell, profile: Profile) -> tuple[Any, ...]:
        """Return what cells that share a session have in common."""
        return (
            cell.model,
            cell.random_weights,
            cell.seed,
            profile,
            *settings(cell, profile),
            cell.engine,
        )

    def note_baseline(self, kind: str, ms: float | None) -> None:
        """Note the unreduced model's median time in a timing, where that was undisturbed."""
        if ms is not None:
            self.usual_ms[kind] = min(ms, self.usual_ms.get(kind, ms))

    def recall(self, cost: Cost) -> None:
        """Take over what was measured of the unreduced model, its cost, in an earlier run."""
        for timing in cost.latency:
            self.equal[timing.batch] = timing.speedup
            baseline = Timing(tuple(timing.baseline_samples_ms))
            self.note_baseline(str(timing.batch), None if timing.disturbed else baseline.p50_ms)
        answer = cost.generation
        for stage in answer.stages if answer is not None and not answer.disturbed else ():
            if stage.name == ANSWER:
                baseline = Timing(tuple(stage.baseline_samples_ms))
                self.note_baseline(ANSWERS, baseline.p50_ms)

    def cost_of(self, cell: Cell) -> Cost | None:
        """Return what the same method cost on another task, with a note; None if not measured."""
        task, cost = self._costs.get(_any_task(cell), ("", None))
        if cost is None:
            return None
        note = f"its costs were measured once, with task {task}: they do not depend on the images"
        return dataclasses.replace(cost, notes=[*cost.notes, note])

    def note_cost(self, cell: Cell, cost: Cost) -> None:
        """Keep what a cell cost for the same method on other tasks."""
        self._costs[_any_task(cell)] = cell.task, cost

    def pixels(self, task: Task, limit: int | None) -> Tensor | None:
        """Return images of a task as the model gets them, see `task_pixels`."""
        key = (task.name, limit)
        if key not in self._pixels:
            self._pixels[key] = task_pixels(self.loaded, task, limit)
        return self._pixels[key]

    @property
    def threads(self) -> int:
        """Intra-op threads of PyTorch under this profile."""
        return threads_of(self.profile)

    @functools.cached_property
    def baseline_macs(self) -> MacCount:
        """Count of the unreduced model on one example."""
        return bench.count_macs(self.plain, **self.loaded.example_inputs(1))

    def fastest(self, batch: int) -> Fastest:
        """Return what runs the unreduced model fastest.

        That is any of its attention backends run eagerly, or its own under the session's engine.
        """
        if batch not in self._fastest:
            candidates = [Fastest(self.backend, self.engine, self.plain)]
            if self.engine != EAGER:
                candidates.append(Fastest(self.backend, EAGER, self.plain))
            for backend in backends_of(self.plain):
                if backend != self.backend:
                    other = twin(self.plain)  # the other one may be reduced now
                    set_backend(other, backend)
                    candidates.append(Fastest(backend, EAGER, other))
            inputs = self.loaded.example_inputs(batch) if len(candidates) > 1 else {}
            self._fastest[batch] = (
                min(candidates, key=lambda one: _seconds(one, inputs)) if inputs else candidates[0]
            )
        return self._fastest[batch]

    def memory(self, cell: Cell, batch: int, pixels: Tensor | None = None) -> PeakMemory:
        """Return the peak memory of `cell`: a fresh process's, or the CUDA allocator's.

        Args:
            cell: what to run.
            batch: samples a call.
            pixels: (B,C,H,W) images to run on; noise where there are none.
        """
        if self.profile.device == "cuda":
            model = self.plain if cell.baseline else self.loaded.model
            inputs = inputs_of(self.loaded, batch, pixels)
            return peak(lambda: lambda: model(**inputs), device="cuda")
        images = None if pixels is None else pixels.float().numpy()  # tensors would stay shared
        return peak(
            functools.partial(workload, cell, self.dtype, self.backend, batch, images),
            threads=self.threads,
        )

    def baseline_memory(self, cell: Cell, batch: int) -> PeakMemory:
        """Return the unreduced model's peak; measured once."""
        if batch not in self._memory:
            plain = dataclasses.replace(cell, method=BASELINE, params={}, baseline=True)
            self._memory[batch] = self.memory(plain, batch)
        return self._memory[batch]


def inputs_of(loaded: Loaded, batch: int, pixels: Tensor | None) -> dict[str, Any]:
    """Return the arguments of a model for a batch of noise, or of these images (B,C,H,W)."""
    inputs = None if pixels is None else with_pixels(loaded, pixels)
    return loaded.example_inputs(batch) if inputs is None else inputs


def threads_of(profile: Profile) -> int:
    """Return the intra-op threads of PyTorch under a profile."""
    return profile.threads or torch.get_num_threads()


def settings(cell: Cell, profile: Profile) -> tuple[str, str]:
    """Return the dtype and the attention backend of a cell, by default the profile's first.

    Of a model that has one way of attention alone, that one.
    """
    dtype = cell.dtype or profile.dtypes[0]
    if cell.backend:
        return dtype, cell.backend
    alone = catalogue.type_of(cell.model) in joint.TYPES
    return dtype, joint.ATTENTION if alone else profile.backends[0]


def apply(loaded: Loaded, cell: Cell) -> AbstractContextManager[nn.Module]:
    """Reduce a model as `cell` says.

    The cell's seed goes to a method that has one, and so does what it learned with this model,
    unless the cell names something else.
    """
    return bench.reduced(loaded.model, cell.method, **parameters(cell))


def parameters(cell: Cell) -> dict[str, Any]:
    """Return the arguments for `reduced()`: the cell's, its seed, and what the method learned."""
    params = dict(cell.params)
    method = registry.method(cell.method)
    if "seed" in {f.name for f in dataclasses.fields(method)}:  # type: ignore[arg-type]
        params.setdefault("seed", cell.seed)
    if cell.random_weights and needs_training(method):
        params.setdefault(method.learns, "random")
    learned = catalogue.learned(cell.model).get(cell.method)
    if learned is not None and not cell.random_weights and issubclass(method, Learner):
        params.setdefault(method.learns, learned)
    return params


def _any_task(cell: Cell) -> str:
    return repr(dataclasses.replace(cell, task="", limit=None, precision=None, names={}))


def twin(model: nn.Module) -> nn.Module:
    """Return a copy of `model` that shares its parameters and buffers."""
    shared: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def workload(
    cell: Cell, dtype: str, backend: str, batch: int, images: Any = None
) -> Callable[[], object]:
    """Build the forward pass of a cell; runs in the fresh process that measures memory.

    `images` (B,C,H,W) are a NumPy array, or None for noise.
    """
    loaded = catalogue.load(
        cell.model,
        random_weights=cell.random_weights,
        dtype=dtype,
        backend=backend,
        seed=cell.seed,
    )
    stack = contextlib.ExitStack()
    stack.enter_context(apply(loaded, cell))
    inputs = inputs_of(loaded, batch, None if images is None else torch.from_numpy(images))

    def run(_: Any = stack) -> object:
        return loaded.model(**inputs)

    return run


def _seconds(candidate: Fastest, inputs: dict[str, Any]) -> float:
    """Return the median time of a few forward passes, after a first one."""
    device = next(candidate.model.parameters()).device
    with torch.inference_mode():
        run = engaged(candidate.model, candidate.engine, inputs)
        sample = latency.sampler(lambda: run(**inputs), device)
        times = [sample()[latency.PASS] for _ in range(4)]
    return statistics.median(times[1:]) / 1e3
