"""A suite on a Ray cluster of three nodes on this machine, each of one processor.

Skipped without the extra `ray`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import folders
import pytest
import workers
from workers import Heard, job, one

from bench.core.errors import BenchError
from bench.measure.memory import PeakMemory
from bench.records.record import Record
from bench.records.store import Store
from bench.runs import cell, runner, session, spec
from bench.runs.executors import How
from bench.runs.jobs import Done, Failure, Job
from bench.runs.shards import Shard

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")

from bench.runs.executors import cluster as on_ray  # noqa: E402
from bench.runs.executors.on_node import NodeFacts  # noqa: E402
from bench.runs.executors.tasks import Ask, Flight, Tasks  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

OFFERED = {"quiet": 1, "cpu": 1}
SCRIPT = """
import sys
from pathlib import Path
import workers
from bench.runs import runner, spec
from bench.runs.executors import How, on_node
from bench.runs.executors import cluster
cluster.on_node.do = workers.on_node
suite, origin = spec.load(sys.argv[1])
how = How(on="ray", address=sys.argv[3], shards=2)
summary = runner.run(suite, origin, Path(sys.argv[2]), machine="m", command="t", how=how)
print("interrupted" if summary.interrupted else f"{summary.ran} {summary.skipped}")
"""


def started(monkeypatch: pytest.MonkeyPatch, repo: Path, nodes: int) -> Any:
    from ray.cluster_utils import Cluster

    places = [str(repo), str(repo / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    head = {"num_cpus": 1, "resources": OFFERED, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes - 1):
        made.add_node(num_cpus=1, resources=OFFERED)
    return made


@pytest.fixture(scope="module")
def cluster(repo: Path) -> Iterator[Any]:
    """Three nodes that stay."""
    with pytest.MonkeyPatch.context() as patch:
        made = started(patch, repo, 3)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def connected(cluster: Any) -> Iterator[None]:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suite")
    vit, images = folders.vit(root / "vit"), folders.images(root / "images")
    text = folders.SUITE.format(vit=vit, images=images).replace("limit: 8\n", "")
    text = text.replace("methods:\n", "methods:\n  - {name: random, keep_rate: 0.5}\n")
    (root / "tiny.yaml").write_text(text)
    return root / "tiny.yaml"


def given_up(job: Job, failure: Failure, where: str, seconds: float) -> Done:
    from bench.runs.measuring import failed

    return Done(job, failed(job, failure, {}, seconds), where=where)


def quiet(job: Job) -> Ask:
    return Ask(1, 0, {"quiet": 1.0, "cpu": 0.001})


def run(
    *jobs: Job, ask: Callable[[Job], Ask] = quiet, limit: float | None = None
) -> tuple[list[Done], Heard]:
    heard = Heard()
    tasks = Tasks(workers.pretend_on_node, ask, given_up, limit, heard)
    return list(tasks.execute(one(*jobs))), heard


def seen(done: Done) -> Any:
    assert done.record is not None
    return done.record.env["seen"]


def records(folder: Path) -> dict[str, Record]:
    store = Store(folder)
    found = store.read_all()
    assert not store.problems
    assert len({record.cell.label for record in found}) == len(found)
    return {record.cell.label: record for record in found}


def test_accuracy_in_shards_on_a_cluster_is_that_of_one_process(
    cluster: Any, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "EVALUATION_PIXELS", 3 * 32**2)
    monkeypatch.setattr(session, "peak", lambda *a, **k: PeakMemory(2, 1, 1, "fake"))
    suite, origin = spec.load(str(suite_file))
    runner.run(suite, origin, tmp_path / "here", machine="m", quiet=True)
    monkeypatch.setattr(on_ray.on_node, "do", workers.on_node)
    how = How(on="ray", address=cluster.address, shards=2)
    summary = runner.run(suite, origin, tmp_path / "there", machine="m", quiet=True, how=how)
    assert (summary.ran, summary.failed) == (5, 0), summary.reasons
    here, there = records(tmp_path / "here"), records(tmp_path / "there")
    assert here.keys() == there.keys()
    for label, record in there.items():
        assert record.key == here[label].key
        assert record.accuracy == here[label].accuracy
        assert record.env["fingerprint"] == here[label].env["fingerprint"]
        (timing,) = record.cost.latency
        assert timing.equal is not None  # of the node that it ran on, whoever had the baseline
    again = runner.run(suite, origin, tmp_path / "there", machine="m", quiet=True, how=how)
    assert (again.ran, again.skipped) == (0, 5)


def test_a_node_that_dies_costs_no_cell(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(monkeypatch, repo, 3)
    try:
        ray.init(address=made.address, log_to_driver=False, logging_level="error")
        heard, results, killed = Heard(), [], False
        jobs = [job(f"sleep {(0.5, 5)[number % 2]} {number}") for number in range(10)]
        tasks = Tasks(workers.pretend_on_node, quiet, given_up, None, heard)
        for done in tasks.execute(one(*jobs)):
            results.append(done)
            ended = {done.job.planned.cell.label for done in results}
            at_work = {
                where
                for label, where in heard.begun
                if label not in ended and label.startswith("sleep 5")
            }
            others = [n for n in made.list_all_nodes() if n is not made.head_node]
            victims = [node for node in others if node.node_id in at_work]
            if victims and not killed:
                made.remove_node(victims[0], allow_graceful=False)
                killed = True
        assert killed
        assert Counter(done.job.name for done in results) == Counter(one.name for one in jobs)
        assert all(done.record and done.record.status == "ok" for done in results)
        assert heard.notes and "it runs again" in heard.notes[0]
    finally:
        ray.shutdown()
        made.shutdown()


def test_deaths_are_tried_again_twice_and_hangs_are_ended(connected: None, tmp_path: Path) -> None:
    once, always = tmp_path / "once", tmp_path / "always"
    labels = [f"die once {once}", f"die {always}", "sleep 600", "sleep 0"]
    results, heard = run(*map(job, labels), limit=8.0)
    found = {done.job.planned.cell.label: done.record for done in results}
    assert [found[label].status for label in labels] == ["ok", "failed", "failed", "ok"]  # type: ignore[union-attr]
    assert (once.read_text(), always.read_text()) == ("xx", "xxx")
    reasons = [found[label].reason or "" for label in labels]  # type: ignore[union-attr]
    assert "died 3 times" in reasons[1] and "time limit" in reasons[2]
    assert len(heard.notes) == 3


def test_out_of_memory_is_a_record_and_no_retry(connected: None) -> None:
    tasks = Tasks(workers.pretend_on_node, quiet, given_up, None, Heard())
    flight = Flight(job("sleep 0"))
    failure = tasks._failure(flight, ray.exceptions.OutOfMemoryError("killed"))
    assert failure is not None and failure.status == "oom"
    assert not tasks.retries.died
    ray.kill(tasks.board)


def test_what_is_timed_has_its_node_for_itself(connected: None) -> None:
    """Where there are slices, several run on a node; a timed one never beside another."""

    def ask(job: Job) -> Ask:
        return Ask(0, 0, {"quiet": 1.0 if job.timed else 0.5})

    shards = [job(f"sleep 0.6 {i}", Shard(1, 2)) for i in range(8)]
    timed = [job(f"sleep 0.6 timed {i}") for i in range(4)]
    mixed = [one for pair in zip(shards, [*timed, *shards[4:]], strict=True) for one in pair]
    results, _ = run(*{one.name: one for one in mixed}.values(), ask=ask)
    assert len(results) == 12
    spans = [(seen(one)["node"], *seen(one)["time"], one.job.timed) for one in results]
    for node, begin, end, is_timed in spans:
        beside = [s for s in spans if s[0] == node and s[1] < end and begin < s[2]]
        assert len(beside) == 1 if is_timed else not any(s[3] for s in beside)


def facts(host: str, cpus: int, gpus: int, **machines: str) -> NodeFacts:
    return NodeFacts(host, cpus, gpus, next(iter(machines)), machines, {}, "", {})


def backend(*nodes: NodeFacts) -> on_ray.RayBackend:
    made = object.__new__(on_ray.RayBackend)
    made.nodes = {str(number): node for number, node in enumerate(nodes)}
    return made


def test_a_job_takes_what_its_profile_needs() -> None:
    machines = {"cpu": "epyc-16t", "cpu-1-thread": "epyc-1t"}
    made = backend(facts("a", 16, 0, **machines), facts("b", 96, 8, h100="h100"))
    part = Shard(1, 4)
    for profile, shard, asked in (
        ("cpu", None, Ask(16, 0, {"quiet": 1.0, "cpu": 0.001})),
        ("cpu-1-thread", part, Ask(1, 0, {"quiet": 0.0625, "cpu-1-thread": 0.001})),
        ("h100", None, Ask(96, 1, {"quiet": 1.0, "h100": 0.001})),
        ("h100", part, Ask(12, 1, {"quiet": 0.125, "h100": 0.001})),
    ):
        assert made.ask(job("sleep 0", shard, profile=profile)) == asked


def test_nodes_that_do_not_fit_are_named() -> None:
    made = backend(facts("a", 2, 0, cpu="epyc"), facts("b", 2, 0, cpu="xeon"))
    with pytest.raises(BenchError, match=r"of several kinds.*epyc \(a\), xeon \(b\)"):
        made.ask(job("sleep 0"))
    with pytest.raises(BenchError, match="no node of the cluster offers the profile 'h100'"):
        made.ask(job("sleep 0", profile="h100"))
    with pytest.raises(BenchError, match="nodes have cpu, h100: name one"):
        backend(facts("a", 2, 0, cpu="x"), facts("b", 2, 1, h100="y"))._named("auto")
    other = facts("c", 2, 0, cpu="x")
    with pytest.raises(BenchError, match="node c has .*the code that measures"):
        on_ray._check_alike(other)


def test_cells_go_to_nodes_of_their_profile(connected: None, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1, resources={"quiet": 1, "h100": 1})
    try:
        cluster.wait_for_nodes()

        def ask(job: Job) -> Ask:
            return Ask(1, 0, {"quiet": 1.0, job.planned.profile.name: 0.001})

        jobs = [job(f"sleep 0.2 {i}", profile=("cpu", "h100")[i % 2]) for i in range(8)]
        results, _ = run(*jobs, ask=ask)
        where = {one.job.planned.profile.name: set() for one in results}  # type: ignore[var-annotated]
        for done in results:
            where[done.job.planned.profile.name].add(seen(done)["node"])
        assert where["h100"] == {node.node_id} and node.node_id not in where["cpu"]
    finally:
        cluster.remove_node(node)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_ends_loses_nothing_and_leaves_nothing(
    number: signal.Signals, cluster: Any, suite_file: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    command = [sys.executable, "-c", SCRIPT, str(suite_file), str(results), cluster.address]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 300
    while not list(results.glob("*/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(number)
    out, _ = first.communicate(timeout=60)
    assert number == signal.SIGKILL or out.split() == ["interrupted"]
    before = records(results)
    assert 1 <= len(before) < 5
    if number == signal.SIGINT:
        assert not list(results.rglob("*.tmp")) and not list(results.rglob("*.lock"))
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    deadline = time.monotonic() + 60
    while (free := ray.available_resources()).get("quiet", 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.5)
    ray.shutdown()
    assert free.get("quiet") == 3  # nothing of the first driver runs on
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.split() == [str(5 - len(before)), str(len(before))], again.stderr
    after = records(results)
    assert len(after) == 5
    assert all(after[label] == record for label, record in before.items())
