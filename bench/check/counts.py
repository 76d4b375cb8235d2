"""Property: as many tokens stay as the schedule says; and which ones are left of a prompt.

Both are followed here decision by decision. This shares no line with the engine, and is what the
engine is held to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.check.answer import Answer, AnswerProbe
from bench.check.multimodal import IMAGE, VIDEO
from bench.check.probe import Broken, Call, Probe, Seen, made_by
from bench.core import Reducer, Schedule
from bench.core.kinds import DecodeReducer, Gradual, InputReducer, ProjectorReducer, is_adaptive
from bench.core.schedules import as_schedule
from bench.engine.tower import Tower

PATCH = 4  # pixels, in all the kit's models


def counts(probe: Probe) -> str:
    """As many tokens stay as the schedule says, which is computed here a second time."""
    if probe.resizes:
        return _image_counts(probe)
    try:
        passes = probe.passes
    except Exception:
        if probe.latest:  # a wrong count is perhaps why the pass broke off
            _counts(probe, probe.latest)
        raise
    return "; ".join(_counts(probe, seen) for seen in passes)


def _image_counts(probe: Probe) -> str:
    seen, subject, tower = probe.default, probe.subject, probe.tower
    assert isinstance(seen.reducer, InputReducer)
    side = int(subject.towers["projector"].joins ** 0.5) if "projector" in subject.towers else 1
    rate, expected = seen.budget["keep_rate"][tower.name], []
    for rows, columns in filter(None, subject.grids):
        size = seen.reducer.resize(rate, rows * PATCH, columns * PATCH, (side * PATCH,) * 2)
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
    last = [
        _last(probe, seen, n, grid, calls, [out for _, out in ran[i::packed]])
        for i, (n, grid) in enumerate(zip(subject.lengths, subject.grids, strict=True))
    ]
    for layer, more in calls.items():
        if more and layer < len(ran) // packed:
            raise Broken(f"layer {layer} should lose 0 tokens; the method was not asked so")
    return _from_to(subject.lengths, last)


def _schedule(reducer: Reducer, budget: Mapping[str, Any], tower: Tower) -> Schedule:
    layers = None if "r" in budget else reducer.budget.get("layers")
    values = {k: v[tower.name] for k, v in budget.items()}
    return as_schedule(reducer, layers=layers, fixed=tower.n_protected, **values)


def _last(
    probe: Probe,
    seen: Seen,
    tokens: int,
    grid: tuple[int, int] | None,
    calls: Mapping[int, list[Call]],
    ran: Sequence[int],
) -> int:
    """How many tokens a sequence ends with; `ran` has those of each layer, `calls` gets shorter."""
    tower, reducer = probe.tower, seen.reducer
    schedule = _schedule(reducer, seen.budget, tower)
    nominal = initial = tokens - tower.n_protected
    for layer, out in enumerate(ran):
        wanted = schedule(layer, len(tower.blocks), nominal, initial)
        r = reducer.feasible(wanted, nominal, grid) if wanted > 0 else 0
        if not 0 <= r <= nominal:
            raise Broken(f"feasible({wanted}, {nominal}) says {r}, not 0 to {nominal}")
        nominal -= r
        if not r and not (calls[layer] and isinstance(reducer, Gradual)):
            continue
        if not calls[layer]:
            raise Broken(f"layer {layer} should lose {r} tokens; the method was not asked so")
        call = calls[layer].pop(0)
        nominal = _after(call, nominal, is_adaptive(reducer))
        grid = call.plan.grid
        # a projector's method sees a class token, which the language model mostly does not
        keeps_class = issubclass(probe.method, ProjectorReducer) and probe.method.keeps_class
        class_stays = tower.name != "projector" or keeps_class
        gone = 0 if class_stays else call.site.prefix
        if out != call.plan.keep.shape[1] + made_by(call.plan) - gone:
            raise Broken(f"layer {layer} runs on {out} tokens, other than planned")
    return ran[-1] if ran else tokens


def _after(call: Call, nominal: int, adaptive: bool) -> int:
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


@dataclass(frozen=True)
class Row:
    """The tokens that are left of one prompt, without padding.

    Attributes:
        image: (M,) which are the image's.
        position: (M,) the number at which the model has each, counted from the first.
    """

    image: Tensor
    position: Tensor

    @property
    def removable(self) -> int:
        """The image's tokens."""
        return int(self.image.sum())

    def renumbered(self) -> Row:
        """With positions without gaps."""
        return Row(self.image, torch.arange(len(self.image)))


def left_of(probe: AnswerProbe, answer: Answer) -> list[list[Row]]:
    """Block by block, each prompt's tokens in the block's attention.

    Raises:
        Broken: the method keeps other numbers than its schedule says.
    """
    rows = _entering(probe, answer)
    depth = len(probe.subject.towers["language"].blocks)
    assert answer.seen is not None
    if probe.tower.name != "language" or issubclass(probe.method, DecodeReducer):
        return [rows] * depth
    reducer, budget = answer.seen.reducer, answer.seen.budget
    schedule = _schedule(reducer, budget, probe.tower)
    blocks, initial = [], [row.removable for row in rows]
    for layer in range(depth):
        now = [row.removable for row in rows]
        wanted = [schedule(layer, depth, n, first) for n, first in zip(now, initial, strict=True)]
        r = [reducer.feasible(w, n, None) if w > 0 else 0 for w, n in zip(wanted, now, strict=True)]
        behind = _behind(probe, answer, layer, rows, r)
        blocks.append(behind if reducer.before else rows)
        rows = behind
        if layer == 0 and reducer.before:  # to the model that is a shorter prompt
            initial = [row.removable for row in rows]
    return blocks


def _one_axis(probe: AnswerProbe) -> bool:
    """Whether the language model counts tokens, in place of telling rows from columns."""
    tower: Any = probe.subject.towers["language"]
    return bool(tower.renumbers) or not hasattr(tower.part, "rotary_emb")


def _entering(probe: AnswerProbe, answer: Answer) -> list[Row]:
    """The prompts without what towers before the language model removed."""
    step, rows = answer.steps[0], []
    ids = probe.subject.inputs["input_ids"]
    for words, x, filled in zip(ids, step.embeds, step.mask, strict=True):
        place = (filled & ~x[:, 0].isnan()).nonzero()[:, 0]
        row = Row((words[place] == IMAGE) | (words[place] == VIDEO), place - filled.nonzero()[0])
        rows.append(row.renumbered() if _one_axis(probe) else row)
    return rows


def _behind(
    probe: AnswerProbe, answer: Answer, layer: int, rows: list[Row], r: list[int]
) -> list[Row]:
    """What a layer's decisions leave."""
    assert answer.seen is not None
    calls = [call for call in answer.seen.calls if call.site.layer == layer]
    adaptive = is_adaptive(answer.seen.reducer)
    together = len({row.removable for row in rows}) == 1 and not (adaptive and len(rows) > 1)
    asked = [b for b, some in enumerate(r) if some]
    if len(calls) != (min(len(asked), 1) if together else len(asked)):
        raise Broken(f"layer {layer} should lose {r} tokens; the method was not asked so")
    reducer, rows = answer.seen.reducer, list(rows)
    ahead = layer == 0 and reducer.before
    for number, b in enumerate(asked):
        call, i = (calls[0], b) if together else (calls[number], 0)
        _after(call, rows[b].removable - r[b], adaptive)
        rows[b] = _row(call, i, rows[b])
        if (ahead and _one_axis(probe)) or probe.renumbers:
            rows[b] = rows[b].renumbered()
    return rows


def _row(call: Call, i: int, row: Row) -> Row:
    """What one decision leaves of one prompt; made tokens stand behind the image's last."""
    filled = call.site.size[i, :, 0] > 0
    keep = call.plan.keep[i].sort().values
    at = (filled.cumsum(0) - 1)[keep[filled[keep]]]
    made = torch.full((made_by(call.plan),), int(row.image.nonzero().max()))
    at = torch.cat([at, made]).sort(stable=True).values
    return Row(row.image[at], row.position[at])
