"""Jobs on a Ray cluster: Ray decides what runs where, this says what each job takes.

A node offers what it is told to at its start:

    ray start --head --resources='{"quiet": 1, "cpu": 1}'
    ray start --address=HEAD:6379 --resources='{"quiet": 1, "h100": 1}'

`quiet` is the whole node's: a cell that is timed takes all of it, and a shard of an accuracy the
part of the node that it works on. The other names are the hardware profiles that a node has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import bench
from bench.core.errors import BenchError
from bench.measure import profiles
from bench.measure.profiles import AUTO
from bench.records.files import write_atomic
from bench.records.sources import code_hash, library_versions
from bench.runs.executors import on_node
from bench.runs.executors.on_node import NodeFacts, Planned
from bench.runs.executors.tasks import Ask, Tasks
from bench.runs.jobs import Done, Failure, Job, Jobs, Results, Watch
from bench.runs.measuring import failed
from bench.runs.planning import Agenda, PlannedCell
from bench.runs.resources import Resources
from bench.runs.spec import Document, Options, Suite

QUIET = "quiet"
SOME = 0.001  # of a resource that says what a node has
PACKAGES = ("bench", "crossget", "methods")


@contextlib.contextmanager
def connected(
    address: str | None, workers: int | None, time_limit: float | None
) -> Iterator[RayBackend]:
    """Give the backend of a cluster; the connection is closed behind it, and what it ran is ended.

    Args:
        address: of the cluster; None starts a Ray of this machine.
        workers: processors that a Ray of this machine counts; None is what PyTorch takes.
        time_limit: seconds that a job may take.

    Raises:
        BenchError: no cluster answers there.
    """
    import ray

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        settings |= on_node.this_machine(workers) | {"address": "local", "include_dashboard": False}
        places = [str(_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(places)}}
    else:
        settings |= {"address": address, "runtime_env": _shipped()}
    try:
        ray.init(**settings)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BenchError(f"--address {address}: no Ray cluster answers there ({reason})") from error
    try:
        yield RayBackend(time_limit)
    finally:
        ray.shutdown()


def _root() -> Path:
    return Path(bench.__file__).parents[1]


def _shipped() -> dict[str, Any]:
    """Return the environment that takes the working tree along, where it is not installed."""
    with contextlib.suppress(PackageNotFoundError):
        site = Path(str(distribution("crossget-bench").locate_file("")))
        checkout = (_root() / "pyproject.toml").exists()
        if site.resolve() == _root().resolve() and not checkout:
            return {}
    return {
        "py_modules": [str(_root() / package) for package in PACKAGES],
        "excludes": ["**/__pycache__"],
    }


class RayBackend:
    """The backend of a Ray cluster.

    Attributes:
        nodes: what is known of those that offer quiet, by Ray's id.
    """

    def __init__(self, time_limit: float | None) -> None:
        """Look at the nodes.

        Raises:
            BenchError: none offers quiet, or one has other code or libraries than this machine.
        """
        import ray

        self.ray, self.time_limit = ray, time_limit
        offers = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
        offers = {node: what for node, what in offers.items() if what.get(QUIET, 0) >= 1}
        if not offers:
            raise BenchError(
                "no node of the cluster offers quiet: start nodes with "
                """ray start --resources='{"quiet": 1, "cpu": 1}' (see docs/cluster.md)"""
            )
        names = profiles.names()
        asked = {
            node: _remote(on_node.facts, _at(node, int(what.get("GPU", 0)))).remote(
                [name for name in names if name in what]
            )
            for node, what in offers.items()
        }
        self.nodes: dict[str, NodeFacts] = {node: ray.get(ref) for node, ref in asked.items()}
        for facts in self.nodes.values():
            _check_alike(facts)

    # --- planning ------------------------------------------------------------------------------

    def plan(
        self, suite: Suite, machine: str | None, solved: Path, origin: Document | Options
    ) -> Agenda:
        """Return the suite's cells, each planned on a node of its profile.

        Raises:
            BenchError: as `planning.plan`; or no node offers a profile, or nodes differ that do.
        """
        agendas = [
            self._planned(suite, profile, machine, solved, origin)
            for profile in dict.fromkeys(map(self._named, suite.profiles))
        ]
        resources = Resources(machine)
        for agenda in agendas:
            resources.missing |= agenda.missing
        cells = list(_taking_turns([agenda.cells for agenda in agendas]))
        notes = [note for agenda in agendas for note in agenda.notes]
        return Agenda(cells, resources, list(dict.fromkeys(notes)))

    def check(self, todo: Sequence[PlannedCell]) -> None:
        """Nothing is left to check: each cell was checked where it was planned."""

    def _named(self, profile: str) -> str:
        """Return the profile that is meant; `auto` is the one that all nodes have."""
        if profile != AUTO:
            return profile
        found = {facts.profile for facts in self.nodes.values()}
        if len(found) > 1:
            raise BenchError(f"--profile: nodes have {', '.join(sorted(found))}: name one of them")
        return found.pop()

    def _planned(
        self,
        suite: Suite,
        profile: str,
        machine: str | None,
        solved: Path,
        origin: Document | Options,
    ) -> Planned:
        node, facts = self._of(profile)[0]
        gpus = facts.gpus if profiles.get(profile).device == "cuda" else 0
        narrowed = suite.model_copy(update={"profiles": [profile]})
        known = solved.read_text(encoding="utf-8") if solved.exists() else None
        whole = {**_at(node, gpus), "resources": {QUIET: 1}}  # a latency may be solved for
        planned: Planned | str = self.ray.get(
            _remote(on_node.plan, whole).remote(narrowed, machine, known, origin)
        )
        if isinstance(planned, str):
            raise BenchError(planned)
        if planned.solved not in (None, known):
            write_atomic(solved, planned.solved or "")
        return planned

    def _of(self, profile: str) -> list[tuple[str, NodeFacts]]:
        """Return the nodes that offer a profile; they are alike."""
        offering = [(n, facts) for n, facts in self.nodes.items() if profile in facts.machines]
        if not offering:
            raise BenchError(
                f"no node of the cluster offers the profile '{profile}': start one with "
                f"""ray start --resources='{{"quiet": 1, "{profile}": 1}}'"""
            )
        kinds = {facts.machines[profile]: facts.host for _, facts in offering}
        if len(kinds) > 1:
            shown = ", ".join(f"{kind} ({host})" for kind, host in kinds.items())
            raise BenchError(
                f"nodes that offer the profile '{profile}' are of several kinds, whose results do "
                f"not compare: {shown}; let nodes of one kind offer it"
            )
        return offering

    # --- doing ---------------------------------------------------------------------------------

    def execute(self, jobs: Jobs, watch: Watch) -> Results:
        """Do jobs on the cluster."""
        tasks = Tasks(on_node.do, self.ask, self._failed, self.time_limit, watch)
        return tasks.execute(jobs)

    def ask(self, job: Job) -> Ask:
        """Return what a job takes of a node of its profile."""
        profile = job.planned.profile
        offering = [facts for _, facts in self._of(profile.name)]
        cpus = min(facts.cpus for facts in offering)
        gpus = max(1, min(facts.gpus for facts in offering))
        cuda = profile.device == "cuda"
        if job.timed:
            share, processors = 1.0, cpus
        elif cuda:
            share, processors = 1 / gpus, max(1, cpus // gpus)
        else:
            processors = min(profile.threads or cpus, cpus)
            share = processors / cpus
        quiet = int(share * 10_000) / 10_000  # so that all shares fit
        return Ask(processors, int(cuda), {QUIET: max(quiet, SOME), profile.name: SOME})

    def _failed(self, job: Job, failure: Failure, where: str, seconds: float) -> Done:
        """Return what came of a job that has no record of its own."""
        facts = next((f for f in self.nodes.values() if f.host == where), None)
        env = dict(facts.env) if facts else None
        return Done(job, failed(job, failure, env, seconds), where=where)


def _at(node: str, gpus: int) -> dict[str, Any]:
    """Return the options of a task that runs on a node, and nowhere else.

    It sees a GPU where the node has some: Ray hides them from a task that asks for none.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return {"scheduling_strategy": where, "num_cpus": 0, "num_gpus": min(gpus, 1)}


def _remote(function: Any, options: dict[str, Any]) -> Any:
    import ray

    return ray.remote(function).options(max_retries=0, **options)


def _check_alike(facts: NodeFacts) -> None:
    """Raise BenchError where a node measures with other code or libraries than the driver plans."""
    ours = {**library_versions(), "the code that measures": code_hash()[:12]}
    theirs = {**facts.libraries, "the code that measures": facts.code[:12]}
    unlike = [f"{k} {theirs.get(k)} and here {v}" for k, v in ours.items() if theirs.get(k) != v]
    if unlike:
        raise BenchError(f"node {facts.host} has {'; '.join(unlike)}: install the same there")


def _taking_turns(lists: list[list[PlannedCell]]) -> Iterator[PlannedCell]:
    """Yield one of each list in turn, so that no profile's nodes wait for another's cells."""
    for place in range(max(map(len, lists))):
        yield from (cells[place] for cells in lists if place < len(cells))
