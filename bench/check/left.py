"""What should be left of a prompt at each block, followed token by token from a method's plans.

It shares no line with the harness, and is what the harness is held to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.check.answer import Answer, AnswerProbe
from bench.check.counts import after
from bench.check.multimodal import IMAGE
from bench.check.probe import Broken, Call, made_by
from bench.core.kinds import LanguageReducer, is_adaptive
from bench.core.schedules import as_schedule


@dataclass(frozen=True)
class Row:
    """One sample's tokens that are left, without padding.

    Attributes:
        image: (M,) which are the image's.
        position: (M,) the number at which the model has each, counted from the first.
    """

    image: Tensor
    position: Tensor

    def counted_on(self) -> Row:
        """With positions without gaps."""
        return Row(self.image, torch.arange(len(self.image)))


def left_of(probe: AnswerProbe, given: Answer) -> list[list[Row]]:
    """Block by block, each sample's tokens in the block's attention.

    Raises:
        Broken: the method keeps other numbers than its schedule says.
    """
    rows = _entering(probe, given)
    depth = len(probe.subject.towers["language"].blocks)
    assert given.seen is not None
    if probe.tower.name != "language":
        return [rows] * depth
    reducer, budget = given.seen.reducer, given.seen.budget
    layers = None if "r" in budget else reducer.budget.get("layers")
    schedule = as_schedule(reducer, layers=layers, **{k: v["language"] for k, v in budget.items()})
    blocks, initial = [], [int(row.image.sum()) for row in rows]
    for layer in range(depth):
        now = [int(row.image.sum()) for row in rows]
        wanted = [schedule(layer, depth, n, first) for n, first in zip(now, initial, strict=True)]
        r = [reducer.feasible(w, n, None) if w > 0 else 0 for w, n in zip(wanted, now, strict=True)]
        behind = _behind(probe, given, layer, rows, r)
        blocks.append(behind if reducer.before else rows)
        rows = behind
        if layer == 0 and reducer.before:  # to the model that is a shorter prompt
            initial = [int(row.image.sum()) for row in rows]
    return blocks


def one_axis(probe: AnswerProbe) -> bool:
    """Whether the language model counts tokens, in place of telling rows from columns."""
    tower: Any = probe.subject.towers["language"]
    return bool(tower.renumbers) or not hasattr(tower.part, "rotary_emb")


def _entering(probe: AnswerProbe, given: Answer) -> list[Row]:
    """The prompt without what towers before the language model removed."""
    step, rows = given.steps[0], []
    for ids, x, filled in zip(
        probe.subject.inputs["input_ids"], step.embeds, step.mask, strict=True
    ):
        real = filled & ~x[:, 0].isnan()
        place = real.nonzero()[:, 0]
        row = Row(ids[place] == IMAGE, place - filled.nonzero()[0])
        rows.append(row.counted_on() if one_axis(probe) else row)
    return rows


def _behind(
    probe: AnswerProbe, given: Answer, layer: int, rows: list[Row], r: list[int]
) -> list[Row]:
    """What a layer's decisions leave."""
    calls = [call for call in given.calls if call.site.layer == layer]
    together = len({int(row.image.sum()) for row in rows}) == 1
    asked = [b for b, some in enumerate(r) if some]
    if len(calls) != (min(len(asked), 1) if together else len(asked)):
        raise Broken(f"layer {layer} should lose {r} tokens; the method was not asked so")
    assert given.seen is not None
    reducer, rows = given.seen.reducer, list(rows)
    ahead = layer == 0 and reducer.before
    renumbers = issubclass(probe.method, LanguageReducer) and probe.method.renumbers
    tower: Any = probe.subject.towers["language"]
    for number, b in enumerate(asked):
        call, i = (calls[0], b) if together else (calls[number], 0)
        left = int(rows[b].image.sum()) - r[b]
        after(call, left, is_adaptive(reducer))
        rows[b] = _row(call, i, rows[b])
        if (ahead and one_axis(probe)) or (renumbers and tower.renumbers):
            rows[b] = rows[b].counted_on()
    return rows


def _row(call: Call, i: int, row: Row) -> Row:
    """What one decision leaves of one sample; made tokens stand behind the image's last."""
    filled = call.site.size[i, :, 0] > 0
    keep = call.plan.keep[i].sort().values
    at = (filled.cumsum(0) - 1)[keep[filled[keep]]]
    made = torch.full((made_by(call.plan),), int(row.image.nonzero().max()))
    at = torch.cat([at, made]).sort(stable=True).values
    return Row(row.image[at], row.position[at])
