"""What positions and masks mean where an encoder reads the prompt: it looks both ways."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.check.answer import Answer, AnswerProbe
from bench.check.counts import Row, left_of
from bench.check.probe import Broken


def positions(probe: AnswerProbe) -> str:
    """Pairs of tokens that are left have the bias of their own positions, or of later ones."""
    (of_all,) = probe.plain.steps[0].pairs[0]  # by positions counted from a prompt's first token
    for one in probe.answers:
        for layer, b, row, at in _visible(probe, one):
            pairs = one.steps[0].pairs[layer]
            number = row.position
            got = pairs[b % len(pairs)][:, at[:, None], at]
            far = (got - of_all[:, number[:, None], number]).abs().amax((0, 1))
            if (far >= 1e-5).any():
                j = int((far >= 1e-5).nonzero()[0])
                raise Broken(
                    f"block {layer} has token {j} of sample {b} elsewhere than at its "
                    f"position {int(number[j])}"
                )
    return "renumbered" if probe.renumbers else ""


def seen(probe: AnswerProbe) -> str:
    """Every token sees all that is left, ahead of it and behind, and no padding or empty slot."""
    for one in probe.answers:
        for _ in _visible(probe, one):
            pass
    return "both ways"


def _visible(probe: AnswerProbe, one: Answer) -> Iterator[tuple[int, int, Row, Tensor]]:
    """Block by block and sample by sample: what should be left, and the slots that are seen.

    Raises:
        Broken: it is not the same to all tokens, or other slots than the filled ones.
    """
    step = one.steps[0]
    for layer, rows in enumerate(left_of(probe, one)):
        keys, mask = step.widths[layer], step.masks[layer]
        visible = torch.ones(1, 1, keys, dtype=torch.bool)
        if mask is not None:
            visible = (mask if mask.dtype == torch.bool else mask >= 0)[:, 0]
        for b, row in enumerate(rows):
            slots = visible[b % len(visible)]
            if not (slots == slots[:1]).all():
                raise Broken(f"block {layer} shows not all tokens of sample {b} the same")
            if int(slots[0].sum()) != len(row.image):
                raise Broken(
                    f"block {layer} should show {len(row.image)} tokens of sample {b}, "
                    f"and shows {int(slots[0].sum())}"
                )
            yield layer, b, row, slots[0].nonzero()[:, 0]
