"""What the cells of a run need: profiles, tasks, weights, and the model that is loaded."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

from bench import tasks
from bench.core.errors import BenchError
from bench.core.names import check_folder_name
from bench.measure import machine, profiles
from bench.measure.profiles import Profile
from bench.models import catalogue
from bench.models.loading import COSTS_ALONE
from bench.records.record import COST_ONLY, Cell
from bench.runs import shape_only
from bench.runs.session import Session, parameters, threads_of
from bench.runs.shape_only import Requests
from bench.tasks import Task

MOST_MEMORY = 0.7  # of the free one, for weights: activations, and what loading holds twice


class Resources:
    """Looks up what cells need; each question is asked once, its error is kept as well.

    Attributes:
        session: the model that is loaded at present.
        tasks: those that were loaded, by name.
        missing: by model or task, why it is out of reach; "" where it is there.
    """

    def __init__(self, machine_name: str | None = None) -> None:
        """Name the machine; by default it is named after its hardware."""
        if machine_name is not None:
            check_folder_name("--machine", machine_name)
        self.session: Session | None = None
        self.tasks: dict[str, Task] = {}
        self.missing: dict[str, str] = {}
        self._machine_name = machine_name
        self._answers: dict[Any, Any] = {}
        self._requests: dict[str, Requests | None] = {}

    @property
    def problems(self) -> list[str]:
        """What is wrong with tasks and weights that are of no use."""
        errors = [str(answer) for answer in self._answers.values() if _is_error(answer)]
        return list(dict.fromkeys(errors))

    def profile(self, name: str) -> Profile:
        """Return a hardware profile, checked against this machine."""
        profile: Profile = self._once(("profile", name), lambda: profiles.load(name))
        return profile

    def machine(self, profile: Profile) -> str:
        """Return the name of this machine under a profile."""
        name: str = self._machine_name or self._once(
            ("machine", profile), lambda: machine.slug(profile.device, threads_of(profile))
        )
        return name

    def task(self, name: str) -> Task:
        """Return a task; raises BenchError where its data are of no use."""
        self.tasks[name] = self._once(("task", name), lambda: tasks.load(name))
        return self.tasks[name]

    def weights(self, cell: Cell, profile: Profile) -> str:
        """Return the hash of a model's weights; raises BenchError where they are of no use."""
        key = ("weights", cell.model, cell.random_weights, cell.seed)
        sha: str = self._once(key, lambda: self._hash_of(cell, profile))
        return sha

    def _hash_of(self, cell: Cell, profile: Profile) -> str:
        sha = catalogue.fingerprint(cell.model, random_weights=cell.random_weights, seed=cell.seed)
        if sha is not None:
            return sha
        # weights from a hub: only loading them tells
        return str(self.session_for(cell, profile).loaded.provenance["sha256"])

    def session_for(self, cell: Cell, profile: Profile) -> Session:
        """Return the loaded model of a cell; the one before it is let go first."""
        if self.session is None or self.session.opened_for != Session.key(cell, profile):
            self.session = None
            gc.collect()
            self.session = Session.open(cell, profile)
        return self.session

    def check_request(self, cell: Cell) -> None:
        """Check what a cell asks of its method; raises as `shape_only.Requests` does.

        A model whose shape cannot be had says so where it is loaded.
        """
        if cell.model not in self._requests:
            self._requests[cell.model] = None
            with contextlib.suppress(BenchError):
                self._requests[cell.model] = Requests(shape_only.on_meta(cell.model))
        requests = self._requests[cell.model]
        if requests is not None:
            params = {key: value for key, value in parameters(cell).items() if key != "budget"}
            requests.check(cell.method, params)

    def too_large(self, cell: Cell, profile: Profile) -> str | None:
        """Return why a model's weights cannot be made up on this machine; None where they can."""
        dtype = cell.dtype or "float32"
        needed = self._once(("bytes", cell.model, dtype), lambda: _bytes(cell.model, dtype))
        free = machine.free_memory(profile.device)
        if needed <= MOST_MEMORY * free:
            return None
        gib = [size / 2**30 for size in (needed, free)]
        return (
            f"weights of {gib[0]:.0f} GiB do not fit the {gib[1]:.0f} GiB that are free here: "
            "counted from its shape, not timed"
        )

    def missing_for(self, cell: Cell, profile: Profile, source: str) -> str | None:
        """Return what a cell's accuracy needs and is out of reach; None where all is there.

        Args:
            cell: with the weights that accuracy needs.
            profile: the cell's.
            source: where the data can be had; "" where that is unknown.
        """
        if cell.task != COST_ONLY and cell.task not in self.missing:
            reason = out_of_reach(lambda: self.task(cell.task))
            self.missing[cell.task] = "; ".join(filter(None, (reason, reason and source)))
        if cell.model not in self.missing:
            self.missing[cell.model] = out_of_reach(lambda: self._fitting_weights(cell, profile))
        reasons = (self.missing.get(name) for name in (cell.task, cell.model))
        return "; ".join(filter(None, reasons)) or None

    def _fitting_weights(self, cell: Cell, profile: Profile) -> str:
        too_large = self.too_large(cell, profile)
        if too_large:  # loading them would have the system kill the run
            raise BenchError(f"{cell.model}: {too_large}; use more memory or --dtype bfloat16")
        return self.weights(cell, profile)

    def _once(self, question: Any, ask: Callable[[], Any]) -> Any:
        if question not in self._answers:
            try:
                self._answers[question] = ask()
            except BenchError as error:
                self._answers[question] = error
        answer = self._answers[question]
        if _is_error(answer):
            raise answer
        return answer


def _is_error(answer: Any) -> bool:
    return isinstance(answer, BenchError)


def out_of_reach(ask: Callable[[], Any]) -> str:
    """Return the reason why what is asked for is out of reach; "" where it is there."""
    try:
        ask()
    except BenchError as error:
        return str(error).removesuffix(COSTS_ALONE)  # which is what the cell gets
    return ""


def _bytes(model: str, dtype: str) -> int:
    parameters = shape_only.on_meta(model, dtype).model.parameters()
    return sum(tensor.numel() * tensor.element_size() for tensor in parameters)
