"""What one measured cell leaves behind: a record, written as one JSON file.

A record says what was run (`Cell`), what it scored (`Accuracy`), what it cost (`Cost`), and where
both come from (provenance, environment, command). Reading records needs no torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from bench.core.documents import parse_json, read_text
from bench.core.errors import BenchError

SCHEMA = 1
BASELINE = "none"  # the unreduced model, by its name among methods
Engine = Literal["eager", "compile", "graphs"]  # what each does: bench.measure.engines
ENGINES: tuple[Engine, ...] = get_args(Engine)
EAGER, COMPILE, GRAPHS = ENGINES
COST_ONLY = "cost"  # the task name of a cell that measures cost and no accuracy

# tokens into and out of each block, by tower; means where several examples were counted
Tokens = dict[str, list[tuple[int | float, int | float]]]
Status = Literal["ok", "failed", "oom", "unsupported"]


@dataclass(frozen=True)
class Cell:
    """One square of the comparison: a method with fixed parameters on a model, task and profile."""

    suite: str
    model: str
    task: str
    method: str
    params: dict[str, Any]
    label: str
    profile: str
    seed: int = 0
    limit: int | None = None  # samples used for accuracy; None is all of them
    baseline: bool = False  # the unreduced model
    random_weights: bool = False
    dtype: str | None = None  # None: the profile's first
    backend: str | None = None  # attention backend; None: the profile's first
    engine: str = EAGER  # runs the timed passes
    batch_sizes: tuple[int, ...] | None = None  # for latency; None: the profile's
    answer_batches: tuple[int, ...] = (1,)  # for answers of a language model; 1 is always timed
    latency_seconds: float = 1.5  # time budget for each batch size
    names: dict[str, str] = field(default_factory=dict)  # short ones of its model and task
    precision: float | None = None  # half-width at which its paired interval is narrow enough


@dataclass(frozen=True)
class Metric:
    """A value with its 95 % interval over `n` samples; percent metrics run from 0 to 100."""

    value: float
    unit: str
    ci95: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Stop:
    """How many samples a cell took until its difference to the unreduced model was known so well.

    Attributes:
        precision: the half-width of that difference's 95 % interval that was asked for, in the
            primary metric's unit.
        asked: samples that it would have taken at most.
        looks: after how many samples it was looked, each with the half-width there. The last one
            ended it, because it was narrow enough or all samples were taken.
        unreduced: the unreduced model's scores on the samples that were taken, in their order.
    """

    precision: float
    asked: int
    looks: list[tuple[int, float]]
    unreduced: list[float]

    @property
    def samples(self) -> int:
        """How many samples were taken."""
        return self.looks[-1][0]

    @property
    def early(self) -> bool:
        """Whether that is fewer than would have been taken without."""
        return self.samples < self.asked


@dataclass(frozen=True)
class Accuracy:
    """The metrics of a task and its outcome for each sample; `reason` says why there are none.

    Attributes:
        metrics: of a method that draws at random, means over its seeds, with intervals that cover
            samples and seeds.
        outcomes: under the first seed.
        repeats: the outcomes under each further seed; none in records of before, and where nothing
            is drawn.
        seed_values: the primary metric under each seed, the first included; empty without repeats.
        stop: of a cell with a precision, when it stopped, by its first seed; None where it could
            not stop.
    """

    primary: str | None
    metrics: dict[str, Metric] = field(default_factory=dict)
    outcomes: dict[str, list[Any]] = field(default_factory=dict)
    reason: str | None = None
    repeats: list[dict[str, list[Any]]] = field(default_factory=list)
    seed_values: list[float] = field(default_factory=list)
    stop: Stop | None = None


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass, by two counters, beside the unreduced model's."""

    total: int
    reduction: int  # what the method itself spends, part of `total`
    closed_form: int
    baseline_total: int
    scope: str
    unit: str = "MACs"
    by_op: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Params:
    """Parameter counts; `added` is what the method brings with it."""

    total: int
    added: int


@dataclass(frozen=True)
class Speedup:
    """Median of the paired time ratios, unreduced over reduced, with its 95 % interval.

    The interval is about what a repeat of the whole measurement would give: it comes from the
    spread of `blocks`, the ratios of blocks of pairs that were taken apart in time. Records of
    before have no blocks, and an interval of the pairs' spread alone.
    """

    median: float
    ci95: tuple[float, float]
    backend: str | None = None  # attention backend of the unreduced side
    engine: str | None = None  # engine of the unreduced side
    blocks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Paired timings at one batch size; every sample is kept, in milliseconds a forward pass.

    Attributes:
        disturbed: other load reached the timing, however often (`attempts`) it was taken again;
            `disturbance` says by what one can tell.
        load: processors that other processes kept busy meanwhile, mean.
        dispersion: of the unreduced side: (90th - 10th percentile) / median of its samples.
        equal: what the same measurement says of two equal things, the unreduced model and its
            twin (A/A); None where the suite has no unreduced model.
    """

    batch: int
    dtype: str
    backend: str
    device: str
    threads: int
    samples_ms: list[float]
    baseline_samples_ms: list[float]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput_per_s: float
    speedup: Speedup
    speedup_vs_fastest: Speedup | None = None
    reduction_share: float | None = None
    attention_path: str | None = None
    utilisation: float | None = None
    disturbed: bool = False
    disturbance: str | None = None
    attempts: int = 1
    load: float | None = None
    dispersion: float | None = None
    equal: Speedup | None = None
    engine: str = EAGER


@dataclass(frozen=True)
class Memory:
    """Peak memory at one batch size, in bytes; `baseline_` is the unreduced model's.

    The peak is a whole process's on a CPU, libraries included; `activation_bytes` is what a forward
    pass needs on top of what was there before it, which is where reduction can save.
    """

    peak_bytes: int
    weights_bytes: int
    batch: int
    how: str
    baseline_peak_bytes: int | None = None
    activation_bytes: int | None = None
    baseline_activation_bytes: int | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of an answer, timed in pairs with the unreduced model's; milliseconds."""

    name: str
    samples_ms: list[float]
    baseline_samples_ms: list[float]
    p50_ms: float
    speedup: Speedup


@dataclass(frozen=True)
class Served:
    """Answers to a batch of prompts of unequal length, each of `Generation.new_tokens` tokens.

    Attributes:
        stages: of `Generation.stages` those that a batch has as a whole.
        filled, baseline_filled: share of the slots of the key-value cache, over all blocks, that
            hold a token of a prompt and not padding; None where nobody can tell.
        disturbed, disturbance, attempts, load: as in `Latency`.
    """

    batch: int
    stages: list[Stage]
    filled: float | None = None
    baseline_filled: float | None = None
    disturbed: bool = False
    disturbance: str | None = None
    attempts: int = 1
    load: float | None = None


@dataclass(frozen=True)
class Generation:
    """What an answer of a multimodal language model costs, one prompt at a time, and in batches.

    MACs by stage: "vision", "projector", "prefill" (with the head for the first token), "decode" (a
    further token, after the prompt). `kv_bytes` is the key-value cache that the prompt leaves.
    `disturbed`, `disturbance`, `attempts` and `load` are of the timed stages, as in `Latency`.
    `served` has the larger batches that were asked for and fit into memory.
    """

    new_tokens: int
    macs: dict[str, int]
    baseline_macs: dict[str, int]
    kv_bytes: int
    baseline_kv_bytes: int
    stages: list[Stage] = field(default_factory=list)
    disturbed: bool = False
    disturbance: str | None = None
    attempts: int = 1
    load: float | None = None
    served: list[Served] = field(default_factory=list)


@dataclass(frozen=True)
class Cost:
    """Everything a cell costs; a part that could not be measured is None and named in `notes`."""

    macs: Macs | None = None
    params: Params | None = None
    tokens: Tokens = field(default_factory=dict)
    latency: list[Latency] = field(default_factory=list)
    memory: Memory | None = None
    notes: list[str] = field(default_factory=list)
    generation: Generation | None = None


@dataclass(frozen=True)
class Record:
    """One cell's result. `key` identifies everything the result depends on.

    `provenance` has the hashes of the measuring code (`bench.records.sources`): that of what all
    models share, `measurement_sha256`, and `family_sha256` of the model's family. `env` has the
    versions of the libraries and the host's `fingerprint`.
    """

    key: str
    status: Status
    reason: str | None
    cell: Cell
    accuracy: Accuracy
    cost: Cost
    provenance: dict[str, Any]
    env: dict[str, Any]
    command: str
    created: str  # ISO 8601, UTC
    seconds: float
    schema: int = SCHEMA

    @property
    def done(self) -> bool:
        """Whether running the cell again could teach nothing: it worked, or it never can."""
        return self.status in ("ok", "unsupported")

    def to_json(self) -> str:
        """Return the record as indented JSON, with long lists of numbers on one line each."""
        return dump(asdict(self))

    @staticmethod
    def read(path: Path) -> Record:
        """Return the record in a file; raises BenchError where there is none that is complete."""
        return Record.from_json(read_text(path), str(path))

    @staticmethod
    def from_json(text: str, source: str = "record") -> Record:
        """Return the record in `text`; raises BenchError, which begins with `source`."""
        value = parse_json(text, source)
        try:
            record: Record = _adapter().validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"'{where}': {first['msg'].lower()}" if where else "not a mapping"
            raise BenchError(f"{source}: not a complete record ({reason})") from None
        if record.schema != SCHEMA:
            raise BenchError(f"{source}: of schema {record.schema}, this program reads {SCHEMA}")
        return record


@functools.cache
def _adapter() -> Any:
    return TypeAdapter(Record)


def dump(value: Any, indent: int = 0) -> str:
    """Return `value` as JSON that a person and `git diff` can read: leaf lists stay on one line."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value:
        inner = ",\n".join(f"{pad}{json.dumps(k)}: {dump(v, indent + 1)}" for k, v in value.items())
        return "{\n" + inner + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inner = ",\n".join(pad + dump(item, indent + 1) for item in value)
        return "[\n" + inner + "\n" + " " * indent + "]"
    return json.dumps(value, allow_nan=False)


def label(method: str, params: Mapping[str, Any]) -> str:
    """Return how tables name a method with its parameters, such as `tome r=8`."""

    def short(value: Any) -> str:
        if isinstance(value, Mapping):
            return ",".join(f"{key}:{short(item)}" for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return ",".join(map(short, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    return " ".join([method, *(f"{key}={short(value)}" for key, value in params.items())])
