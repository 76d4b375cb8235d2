"""From the command line to a record, with methods whose costs are known.

One sleeps so long for each sample, one holds so much memory for each sample, one halves the tokens
at block 1, one answers wrongly for known samples. They come from another distribution, as a user's
would, since memory is measured in fresh processes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import folders
import numpy as np
import pytest
from commands import Server
from scipy import stats

from bench.records.record import Latency, Record
from bench.records.store import Store

SLEEP_MS, HELD_BYTES = 15, 24 << 20  # for each sample
METHODS = f'''
import time
from dataclasses import dataclass
import torch
from bench.core import Plan, Reducer
from bench.measure import blocks
from bench.core.registry import register

blocks.PAUSES_S = ()  # tests run beside each other: nothing is taken again

class Kept(Reducer):
    budget = {{"r": [1, 0, 0, 0]}}
    def plan(self, site, r):
        B, N = site.x.shape[:2]
        self.act(B)
        return Plan(torch.arange(N - r).expand(B, -1))

@register("sleeper", source="a test")
@dataclass(frozen=True)
class Sleeper(Kept):
    """Sleeps for each sample and drops the last token."""
    def act(self, B):
        time.sleep({SLEEP_MS / 1e3} * B)

@register("holder", source="a test")
@dataclass(frozen=True)
class Holder(Kept):
    """Holds memory for each sample for a moment and drops the last token."""
    def act(self, B):
        torch.ones(B, {HELD_BYTES}, dtype=torch.uint8)

@register("halver", source="a test")
@dataclass(frozen=True)
class Halver(Reducer):
    """Drops the second half of the patches at block 1."""
    max_share = 1.0
    budget = {{"r": [0, 32, 0, 0]}}
    def plan(self, site, r):
        B, N = site.x.shape[:2]
        return Plan(torch.arange(N - r).expand(B, -1))
'''
SUITE = """\
name: known
models:
  - {{name: {vit}, tasks: ["imagefolder:{images}"]}}
methods: [none, sleeper, holder, halver]
profiles: cpu-1-thread
batch_sizes: [1, 4]
latency_seconds: 0.1
limit: 8
"""


@pytest.fixture(scope="module")
def records(
    tmp_path_factory: pytest.TempPathFactory, repo: Path, commands: Server
) -> dict[str, Record]:
    root = tmp_path_factory.mktemp("known")
    about = root / "plug" / "known_costs-1.dist-info"
    about.mkdir(parents=True)
    (root / "plug" / "known_costs.py").write_text(METHODS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: known-costs\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[crossget_bench.methods]\nknown = known_costs\n")
    suite = root / "known.yaml"
    vit, images = folders.vit(root / "vit"), folders.images(root / "images")
    suite.write_text(SUITE.format(vit=vit, images=images))
    run = [repo / "run_bench.py", "run", "--suite", suite, "--results", root / "results"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "plug"), str(repo)])}
    done = commands.run(*run, cwd=root, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 0
    return {record.cell.method: record for record in Store(root / "results").read_all()}


def timings(records: dict[str, Record], method: str) -> dict[int, Latency]:
    return {timing.batch: timing for timing in records[method].cost.latency}


def test_what_sleeps_is_slower_by_its_sleep_at_each_batch_size(
    records: dict[str, Record],
) -> None:
    slept = timings(records, "sleeper")
    assert list(slept) == [1, 4]
    for batch, timing in slept.items():
        assert min(timing.samples_ms) >= batch * SLEEP_MS
        baseline = float(np.median(timing.baseline_samples_ms))
        assert timing.p50_ms > baseline and timing.speedup.median < 1
        assert timing.speedup.ci95[1] < 1 and timing.speedup_vs_fastest is not None
        assert timing.speedup_vs_fastest.median < 1
        assert timing.reduction_share is not None
        assert timing.reduction_share > batch * SLEEP_MS / (1.5 * timing.p50_ms)
    # the sleep is most of the time, so that four samples take about four times as long as one
    assert slept[4].p50_ms > 2 * slept[1].p50_ms
    assert records["none"].cost.latency[0].reduction_share == 0


def test_numbers_of_a_timing_follow_from_its_samples(records: dict[str, Record]) -> None:
    for method in records:
        for batch, timing in timings(records, method).items():
            samples = np.asarray(timing.samples_ms)
            for percent in (50, 95, 99):
                stated = getattr(timing, f"p{percent}_ms")
                assert stated == pytest.approx(np.percentile(samples, percent), abs=1e-3)
            assert timing.throughput_per_s == pytest.approx(1e3 * batch / timing.p50_ms)
            pairs = np.asarray(timing.baseline_samples_ms) / samples
            quadruples = np.sqrt(pairs[::2] * pairs[1::2])
            speedup = timing.speedup
            assert speedup.median == pytest.approx(np.median(quadruples), rel=1e-3)
            logs = np.log(speedup.blocks)
            reach = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
            low, high = speedup.median * np.exp([-reach, reach])
            assert speedup.ci95 == pytest.approx((low, high))
            # blocks hold as many quadruples or more; their medians lie among the quadruples
            assert quadruples.min() * 0.999 <= min(speedup.blocks)
            assert max(speedup.blocks) <= quadruples.max() * 1.001
            assert len(samples) >= 16 and len(speedup.blocks) == 4
            baseline = np.asarray(timing.baseline_samples_ms)
            middle = np.percentile(baseline, [10, 90])
            spread = (middle[1] - middle[0]) / np.median(baseline)
            assert timing.dispersion == pytest.approx(spread, abs=2e-3)


def test_what_holds_memory_has_it_in_its_peak_and_not_in_the_baselines(
    records: dict[str, Record],
) -> None:
    held, plain = records["holder"].cost.memory, records["none"].cost.memory
    assert held is not None and plain is not None
    assert held.batch == 4 and held.activation_bytes is not None
    more = held.activation_bytes - (held.baseline_activation_bytes or 0)
    assert more == pytest.approx(4 * HELD_BYTES, rel=0.05)
    assert held.baseline_activation_bytes == plain.activation_bytes
    assert held.baseline_peak_bytes == plain.peak_bytes < held.peak_bytes
    assert abs(held.weights_bytes - plain.weights_bytes) < HELD_BYTES


def test_what_halves_the_tokens_costs_what_its_blocks_cost(records: dict[str, Record]) -> None:
    halved, plain = records["halver"].cost.macs, records["none"].cost.macs
    assert halved is not None and plain is not None
    assert records["halver"].cost.tokens["vision"] == [(65, 65), (65, 33), (33, 33), (33, 33)]
    assert halved.baseline_total == plain.total == plain.baseline_total
    # width 32, MLP 64: projections, products, norms of a block over n tokens into, m out of it
    config = json.loads((Path(records["none"].cell.model) / "config.json").read_text())
    d, mlp = config["hidden_size"], config["intermediate_size"]

    def block(n: int, m: int) -> int:
        return n * (4 * d * d + 5 * d) + 2 * n * n * d + m * (2 * d * mlp + 5 * d)

    full, reduced = 4 * block(65, 65), block(65, 65) + block(65, 33) + 2 * block(33, 33)
    final_norm = (65 - 33) * 5 * d
    assert plain.total - halved.total == full - reduced + final_norm
    assert halved.reduction == 0


def test_each_record_is_of_its_own_method(records: dict[str, Record]) -> None:
    hashes = {record.provenance["method_source_sha256"] for record in records.values()}
    assert len(records) == 4 and len(hashes) == 2  # three in one module
    assert len({record.key for record in records.values()}) == 4
    for method, record in records.items():
        assert record.cell.label.startswith(method) and record.status == "ok"
        assert record.cell.baseline == (method == "none")
        assert record.accuracy.metrics["top1"].n == 8
