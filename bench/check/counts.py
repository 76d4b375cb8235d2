"""Property: as many tokens stay as the schedule says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from bench.check.probe import Broken, Call, Probe, Seen, made_by
from bench.core.kinds import InputReducer, ProjectorReducer, is_adaptive
from bench.core.schedules import as_schedule

PATCH = 4  # pixels, in all the kit's models


def counts(probe: Probe) -> str:
    """As many tokens stay as the schedule says, which is computed here a second time."""
    if issubclass(probe.method, InputReducer):
        return _image_counts(probe)
    try:
        passes = probe.passes
    except Exception:
        _counts(probe, probe.latest)  # a wrong count is perhaps why the pass broke off
        raise
    return "; ".join(_counts(probe, seen) for seen in passes)


def _image_counts(probe: Probe) -> str:
    seen, subject, tower = probe.own, probe.subject, probe.tower
    assert isinstance(seen.reducer, InputReducer)
    whole = int(subject.towers["projector"].joins ** 0.5) if "projector" in subject.towers else 1
    rate, expected = seen.budget["keep_rate"][tower.name], []
    for rows, columns in filter(None, subject.grids):
        size = seen.reducer.resize(rate, rows * PATCH, columns * PATCH, (whole * PATCH,) * 2)
        expected.append(tower.prefix + (size[0] // PATCH) * (size[1] // PATCH))
    if seen.entered != expected:
        raise Broken(f"{expected} tokens should reach the first block, and {seen.entered} do")
    return _from_to(subject.lengths, expected)


def _from_to(before: Sequence[int], after: Sequence[int]) -> str:
    return ", ".join(f"{n} to {m}" for n, m in zip(before, after, strict=True))


def _counts(probe: Probe, seen: Seen) -> str:
    """Sequence by sequence, where images lie packed; a layer's decisions come in their order."""
    subject, calls = probe.subject, defaultdict(list)
    for call in seen.calls:
        calls[call.site.layer].append(call)
    ran, packed = seen.trace.tokens[probe.tower.name], len(subject.lengths)
    left = [
        _left(probe, seen, n, grid, calls, [out for _, out in ran[i::packed]])
        for i, (n, grid) in enumerate(zip(subject.lengths, subject.grids, strict=True))
    ]
    for layer, more in calls.items():
        if more and layer < len(ran) // packed:
            raise Broken(f"layer {layer} should lose 0 tokens; the method was not asked so")
    return _from_to(subject.lengths, left)


def _left(
    probe: Probe,
    seen: Seen,
    tokens: int,
    grid: tuple[int, int] | None,
    calls: Mapping[int, list[Call]],
    ran: Sequence[int],
) -> int:
    """How many tokens a sequence ends with; `ran` has those of each layer, `calls` gets shorter."""
    tower, reducer = probe.tower, seen.reducer
    schedule = as_schedule(reducer, **{k: v[tower.name] for k, v in seen.budget.items()})
    nominal = initial = tokens - tower.n_protected
    for layer, out in enumerate(ran):
        wanted = schedule(layer, len(tower.blocks), nominal, initial)
        r = reducer.feasible(wanted, nominal, grid) if wanted > 0 else 0
        if not 0 <= r <= nominal:
            raise Broken(f"feasible({wanted}, {nominal}) says {r}, not 0 to {nominal}")
        nominal -= r
        if not r:
            continue
        if not calls[layer]:
            raise Broken(f"layer {layer} should lose {r} tokens; the method was not asked so")
        call = calls[layer].pop(0)
        nominal = after(call, nominal, is_adaptive(reducer))
        grid = call.plan.grid
        if out != call.plan.keep.shape[1] + made_by(call.plan) - _class(probe, call):
            raise Broken(f"layer {layer} runs on {out} tokens, other than planned")
    return ran[-1] if ran else tokens


def _class(probe: Probe, call: Call) -> int:
    """How many class tokens a projector's method sees and the language model does not."""
    method = probe.method
    keeps_class = issubclass(method, ProjectorReducer) and method.keeps_class
    goes_on = probe.tower.name != "projector" or keeps_class
    return 0 if goes_on else call.site.prefix


def after(call: Call, nominal: int, adaptive: bool) -> int:
    """The count of removable tokens that the next layer's schedule starts from."""
    plan, layer, fixed = call.plan, call.site.layer, call.site.n_protected
    want = fixed + nominal
    kept, made = plan.keep.shape[1], made_by(plan)
    if adaptive:
        most = int((plan.keep >= 0).sum(1).max()) + made
        if most > want:
            raise Broken(f"layer {layer} may keep {want} tokens at most, and a sample keeps {most}")
        return nominal
    if want not in (kept, kept + made):  # a fused token may come on top of the tokens kept
        made_too = f" and makes {made}" if made else ""
        raise Broken(f"layer {layer} should keep {want} tokens, and keeps {kept}{made_too}")
    return kept + made - fixed
