"""What operators, blocks and prompts cost, against numbers that a hand gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bench
from bench.measure.closed_form import CountersDisagree, check_counters
from bench.measure.conventions import Decoder, prompt_macs
from bench.measure.macs import count_macs


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def resized(mode: str, **how: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, size=(4, 6), mode=mode, **how)


def sampled(x: Tensor, at: Tensor) -> Tensor:
    return F.grid_sample(x, at, align_corners=False)


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (torch.mv, [(3, 4), (4,)], 3 * 4),
        (torch.dot, [(7,), (7,)], 7),
        (torch.addmm, [(5,), (3, 4), (4, 5)], 3 * 4 * 5),
        # The addend is one row, spread over the three: what it is added to costs, it does not.
        (torch.baddbmm, [(2, 1, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (torch.addmv, [(3,), (3, 4), (4,)], 3 * 4),
        # 3 channels of 4 x 6: taps of 1, 2 x 2 and 4 x 4 pixels.
        (resized("nearest"), [(1, 3, 2, 2)], 72),
        (resized("bilinear"), [(1, 3, 2, 2)], 72 * 4),
        (resized("bilinear", antialias=True), [(1, 3, 2, 2)], 72 * 4),
        (resized("bicubic"), [(1, 3, 2, 2)], 72 * 16),
        (resized("bicubic", antialias=True), [(1, 3, 2, 2)], 72 * 16),
        (sampled, [(1, 3, 2, 2), (1, 5, 4, 2)], 3 * 5 * 4 * 4),
        (lambda x: F.adaptive_avg_pool2d(x, (2, 2)), [(1, 3, 4, 4)], 3 * 4 * 4),
        (lambda x: F.layer_norm(x, (4,)), [(3, 4)], 12 * 4),
        (lambda x, scale: F.layer_norm(x, (4,), scale), [(3, 4), (4,)], 12 * 5),
    ],
)  # fmt: skip
def test_operators_cost_what_a_hand_gets(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]], macs: int
) -> None:
    assert count_macs(Call(function), *(torch.zeros(shape) for shape in shapes)).total == macs


@pytest.mark.parametrize(("by", "agrees"), [(1.004, True), (1.006, False), (0.994, False)])
def test_counters_may_differ_by_half_a_percent(by: float, agrees: bool) -> None:
    model, x = tiny.timm_vit(), tiny.images(1)
    count, trace = count_macs(model, x), bench.trace(model, x)
    block = count.by_module["blocks.0"]
    other = replace(
        count,
        total=count.total + round((by - 1) * block),
        by_module={**count.by_module, "blocks.0": round(by * block)},
    )
    if agrees:
        assert check_counters(model, trace, other) == count.total
    else:
        with pytest.raises(CountersDisagree, match=r"block 'blocks\.0'"):
            check_counters(model, trace, other)


def test_a_prompt_costs_what_each_convention_says() -> None:
    """Blocks of 3 and 2 tokens, width 2, MLP 5: projections, attention, MLP, block by block."""
    sizes = Decoder(width=2, mlp=5)
    two = (4 * 3 * 4 + 2 * 9 * 2 + 2 * 3 * 2 * 5) + (4 * 2 * 4 + 2 * 4 * 2 + 2 * 2 * 2 * 5)
    assert prompt_macs([3, 2], sizes, "two-product") == two == 232
    assert prompt_macs([3, 2], sizes, "three-product") == 232 + 5 * 2 * 5 == 282
