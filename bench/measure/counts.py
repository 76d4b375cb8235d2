"""What a count of multiply-accumulates (MACs) answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MacCount:
    """The MACs of one forward pass, as given (a batch of 8 costs 8 times one image).

    Attributes:
        total: all MACs, the reduction's own included.
        by_module: MACs inside each module that ran, by dotted name, children included; "" is all.
        by_op: MACs by operator name; "merge" is what merges cost by convention.
        reduction: MACs that the reduction method itself cost.
        reduction_by_module: the same, by the module it was spent in.
        uncounted: always empty; an uncounted operator raises instead.
    """

    total: int
    by_module: Mapping[str, int]
    by_op: Mapping[str, int]
    reduction: int = 0
    reduction_by_module: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)
