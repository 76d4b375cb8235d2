"""A smaller input image: the plainest way to have fewer tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.core import register
from bench.core.kinds import InputReducer


@register("downsample", source="standard baseline", acts="input")
@dataclass(frozen=True)
class Downsample(InputReducer):
    """Shrinks the image, and with it the patch grid, before the model sees it.

    `keep_rate` is the share of patches; each side is rounded to whole patches. The position table
    is resampled by the model's own code, and nothing is retrained.
    """

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def resize(
        self, keep_rate: float, height: int, width: int, patch: tuple[int, int]
    ) -> tuple[int, int]:
        """The new height and width in pixels, at least one patch each."""
        share = math.sqrt(keep_rate)
        rows = max(round(height / patch[0] * share), 1)
        columns = max(round(width / patch[1] * share), 1)
        return rows * patch[0], columns * patch[1]
