"""The order in which CPython goes through a set of numbers, worked out by tensors.

CPython keeps a set in a table and reads it slot by slot. A number below 2**61 - 1 is its own hash,
and goes to the first free slot of those that `_searched` lists. A table that is 3/5 full gives way
to a larger one, into which the numbers go in the order of their slots (Objects/setobject.c, since
Python 3.7).
Shapes: B sets, P numbers, R rounds of a search, D digits of a number, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SMALLEST = 8  # slots of a table
SIDE_BY_SIDE = 10  # slots that a round looks at, unless the table ends before
BITS, DIGITS = 5, 13  # of a number


def in_set_order(number_BP: Tensor, filled_B: Tensor) -> Tensor:
    """(B,P) order in which CPython goes through a set of each row's first `filled` numbers.

    A row's numbers differ, are 0 or more, and enter its set from the left. What is not filled
    stays at the end. No number is asked for, so that nothing waits for a GPU.
    """
    count, filled_B1, before = number_BP.shape[1], filled_B[:, None], 0
    place = torch.arange(count, device=number_BP.device)
    order_BP = entering_BP = place.expand_as(number_BP)
    for slots, full in _tables(count):
        first_BP = entering_BP[:, :full]
        slot_BP = _slots(number_BP.gather(1, first_BP), slots)
        slot_BP = slot_BP.masked_fill(first_BP >= filled_B1, slots)
        first_BP = first_BP.gather(1, slot_BP.argsort(dim=1, stable=True))
        entering_BP = torch.cat([first_BP, entering_BP[:, full:]], 1)
        order_BP = torch.where(filled_B1 >= before, entering_BP, order_BP)
        before = full
    return order_BP


def _tables(count: int) -> Iterator[tuple[int, int]]:
    """Slots of the tables that so many numbers go through, and with how many each is full."""
    slots, full = SMALLEST, 0
    while full <= count:
        if full:
            slots = 1 << (4 * full).bit_length()
        full = -(-3 * (slots - 1) // 5)
        yield slots, full


def _slots(number_BP: Tensor, slots: int) -> Tensor:
    """(B,P) the slot of each number, where they enter an empty table from the left."""
    searched_BPS = _searched(number_BP, slots)
    taken_BPS = torch.zeros_like(searched_BPS)
    entered = []
    for p in range(number_BP.shape[1]):
        free_B1 = taken_BPS[:, p].argmin(1, keepdim=True)
        entered.append(searched_BPS[:, p].gather(1, free_B1))
        taken_BPS = taken_BPS + (searched_BPS == entered[p][..., None])
    return torch.cat(entered, 1)


def _searched(number_BP: Tensor, slots: int) -> Tensor:
    """(B,P,S) slots in the order in which each number looks for a free one.

    Round r begins at slot `5 * that of the round before + 1 + (number >> 5 * r)` modulo the slots,
    which is a sum over the digits below. When all digits are in, the rounds go through all slots,
    so that as many more as there are numbers find a free one.
    """
    P, device = number_BP.shape[1], number_BP.device
    round_R, digit_D = (torch.arange(n, device=device) for n in (DIGITS + P, DIGITS))
    power_R = torch.where(round_R > 0, 5, 1).cumprod(0) % slots
    ago_RD = round_R[:, None] - digit_D
    weight_RD = power_R[ago_RD.clamp_min(0)] * (ago_RD >= 0)
    digit_BPD = (number_BP[..., None] >> BITS * digit_D) % slots
    ones_R = power_R.cumsum(0) - power_R  # what the ones of all rounds have become
    begin_BPR = ((digit_BPD[:, :, None] * weight_RD).sum(-1) + ones_R) % slots
    step = torch.arange(SIDE_BY_SIDE, device=device)
    fits_BPR = begin_BPR + SIDE_BY_SIDE <= slots
    return (begin_BPR[..., None] + step * fits_BPR[..., None]).flatten(2)
