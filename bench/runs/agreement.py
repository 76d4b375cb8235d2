"""Whether two measurements of a cell agree: outcomes, counts, and times on one kind of machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.records.outcomes import scores_by_seed
from bench.records.record import Record

# Share of the samples whose score may be another one on other hardware: rounding decides close
# calls. Of fewer samples than make one whole, none may.
UNLIKE = {"float32": 0.01}
UNLIKE_HALF = 0.03  # of the dtypes of 16 bits
COUNTED_ON_IMAGES = 0.005  # share by which means over images may differ, as between two counters
KIND = ("gpu", "cpu")  # of a machine, whose times compare
CONDITION = ("batch", "dtype", "backend", "engine", "threads")
LIBRARIES = ("python", "torch", "transformers", "timm", "numpy")
CODE = ("measurement_sha256", "family_sha256", "method_source_sha256", "task_source_sha256")


@dataclass
class Agreement:
    """What a comparison saw.

    Attributes:
        against: what does not agree, a line each.
        notes: what was compared, with how much of it agrees, and what was not compared.
        versions: what differs without being a result, "torch 2.9 → 2.10".
    """

    against: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)


def same_kind(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two environments are of one kind of machine."""
    return all(old.get(name) == new.get(name) for name in KIND)


def compare(old: Record, new: Record) -> Agreement:
    """Hold a measurement made here to a recorded one."""
    result = Agreement(versions=list(_versions(old, new)))
    _accuracy(old, new, result)
    _counts(old, new, result)
    if same_kind(old.env, new.env):
        _timings(old, new, result)
    else:
        result.notes.append("timings not compared: another kind of machine")
    return result


def _versions(old: Record, new: Record) -> Iterator[str]:
    for name in LIBRARIES:
        if old.env.get(name) != new.env.get(name):
            yield f"{name} {old.env.get(name)} → {new.env.get(name)}"
    for name in CODE:
        was, now = (str(one.provenance.get(name))[:8] for one in (old, new))
        if was != now:
            yield f"{name.removesuffix('_sha256').replace('_', ' ')} {was} → {now}"


def _accuracy(old: Record, new: Record, result: Agreement) -> None:
    if old.accuracy.primary is None:
        result.notes.append("no accuracy to compare")
        return
    if new.accuracy.primary != old.accuracy.primary:
        result.against.append(f"accuracy: none here ({new.accuracy.reason})")
        return
    share = UNLIKE.get(old.cell.dtype or "float32", UNLIKE_HALF)
    most = 0  # samples that changed, in the metric where most did
    for name, metric in old.accuracy.metrics.items():
        ours = new.accuracy.metrics.get(name)
        stopped = old.accuracy.stop is not None and new.accuracy.stop is not None
        if ours is None or ours.unit != metric.unit or (ours.n != metric.n and not stopped):
            result.against.append(f"{name}: not of the same samples here")
            continue
        pair = [scores_by_seed(name, one.accuracy) for one in (old, new)]
        if stopped:  # a few answers may differ, and with them when it stopped
            n = min(metric.n, ours.n)
            pair = [None if one is None else one[:, :n] for one in pair]
        if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
            bound = 100 * most / metric.n + 1e-6
            if abs(metric.value - ours.value) > bound and (metric.unit == "%" or not most):
                result.against.append(f"{name}: {metric.value:g}, here {ours.value:g}")
            continue
        changed = int((~np.isclose(pair[0], pair[1], rtol=1e-4, atol=1e-6)).sum())
        most = max(most, changed)
        text = f"{name}: {metric.value:g}, here {ours.value:g}; {changed} of {pair[0].size} differ"
        close = changed <= int(share * pair[0].size)
        (result.notes if close else result.against).append(text)


def _counts(old: Record, new: Record, result: Agreement) -> None:
    """Counts do not depend on hardware; means over images may, where rounding picks the tokens."""
    per_image = any(n % 1 for blocks in old.cost.tokens.values() for two in blocks for n in two)
    share = COUNTED_ON_IMAGES if per_image else 0.0
    before, after = _counted(old), _counted(new)
    unlike = [
        f"{name}: {before.get(name)}, here {after.get(name)}"
        for name in {**before, **after}
        if not _near(before.get(name), after.get(name), share)
    ]
    result.against += unlike[:5]
    if not unlike:
        within = f", within {100 * share:g} %" if share else ""
        result.notes.append(f"{len(before)} counts agree{within}")


def _counted(record: Record) -> dict[str, Any]:
    """Return MACs, parameters and tokens by name."""
    cost, counted = record.cost, dict[str, Any]()
    if cost.macs is not None:
        names = ("total", "reduction", "closed_form", "baseline_total", "scope")
        counted |= {f"MACs, {name}": getattr(cost.macs, name) for name in names}
    if cost.params is not None:
        counted |= {"parameters": cost.params.total, "parameters, added": cost.params.added}
    for tower, blocks in cost.tokens.items():
        counted |= {f"tokens, {tower} block {i}": tuple(two) for i, two in enumerate(blocks)}
    if cost.generation is not None:
        answer = cost.generation
        counted |= {f"MACs, {stage}": macs for stage, macs in answer.macs.items()}
        counted["KV cache, bytes"] = answer.kv_bytes
    return counted


def _near(before: Any, after: Any, share: float) -> bool:
    if not share or before is None or after is None or isinstance(before, str):
        return bool(before == after)
    return bool(np.allclose(after, before, rtol=share, atol=share))


def _timings(old: Record, new: Record, result: Agreement) -> None:
    """Two speed-ups agree where their intervals overlap; disturbed ones are not compared."""
    conditions = [[getattr(one, name) for name in CONDITION] for one in new.cost.latency]
    for one in old.cost.latency:
        condition = [getattr(one, name) for name in CONDITION]
        here = zip(conditions, new.cost.latency, strict=True)
        ours = next((other for like, other in here if like == condition), None)
        name = f"speed-up at batch {one.batch}"
        if ours is None or one.disturbed or ours.disturbed:
            why = "other load disturbed it" if ours else "not timed under the same conditions"
            result.notes.append(f"{name}: not compared, {why}")
            continue
        (low, high), (least, most) = one.speedup.ci95, ours.speedup.ci95
        overlap = max(low, least) <= min(high, most)
        text = f"{name}: [{low:.3f}, {high:.3f}], here [{least:.3f}, {most:.3f}]"
        (result.notes if overlap else result.against).append(text)
