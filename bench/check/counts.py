"""Property: as many tokens stay as the schedule says."""

from __future__ import annotations

from bench.check.probe import Broken, Call, Probe, Seen, made_by
from bench.schedules import as_schedule


def counts(probe: Probe) -> str:
    """As many tokens stay as the schedule says, which is computed here a second time."""
    if probe.method.acts == "input":
        return _image_counts(probe)
    try:
        passes = probe.passes
    except Exception:
        _counts(probe, probe.latest)  # a wrong count is perhaps why the pass broke off
        raise
    return "; ".join(_counts(probe, seen) for seen in passes)


def _image_counts(probe: Probe) -> str:
    seen, image = probe.own, probe.subject.inputs["pixel_values"]
    side = int((probe.subject.tokens - probe.tower.prefix) ** 0.5)
    patch = image.shape[-1] // side
    rate = seen.budget["keep_rate"][probe.tower.name]
    height, width = seen.reducer.resize(rate, image.shape[-2], image.shape[-1], (patch, patch))
    expected = probe.tower.prefix + (height // patch) * (width // patch)
    if seen.entered != expected:
        raise Broken(f"{expected} tokens should reach the first block, and {seen.entered} do")
    return f"{probe.subject.tokens} to {seen.entered}"


def _counts(probe: Probe, seen: Seen) -> str:
    tower, reducer = probe.tower, seen.reducer
    schedule = as_schedule(reducer, **{k: v[tower.name] for k, v in seen.budget.items()})
    initial = probe.subject.tokens - tower.n_protected
    nominal = initial
    grid = tower.grid(probe.subject.tokens - tower.prefix)
    calls = {call.site.layer: call for call in seen.calls}
    ran = [out for _, out in seen.trace.tokens[tower.name]]
    for layer in range(len(tower.blocks)):
        wanted = schedule(layer, len(tower.blocks), nominal, initial)
        r = reducer.feasible(wanted, nominal, grid) if wanted > 0 else 0
        if not 0 <= r <= nominal:
            raise Broken(f"feasible({wanted}, {nominal}) says {r}, not 0 to {nominal}")
        if layer >= len(ran):
            break
        nominal -= r
        call = calls.get(layer)
        if (call is not None) != (r > 0):
            raise Broken(f"layer {layer} should lose {r} tokens; the method was not asked so")
        if call is not None:
            nominal = after(call, nominal, reducer.adaptive)
            grid = call.plan.grid
            if ran[layer] != call.plan.keep.shape[1] + made_by(call.plan) - _class(probe, call):
                raise Broken(f"layer {layer} runs on {ran[layer]} tokens, other than planned")
    return f"{probe.subject.tokens} to {ran[-1] if ran else probe.subject.tokens}"


def _class(probe: Probe, call: Call) -> int:
    """How many class tokens a projector's method sees and the language model does not."""
    goes_on = probe.tower.name != "projector" or probe.method.keeps_class
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
