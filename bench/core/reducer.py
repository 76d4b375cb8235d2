"""A method as a class: its parameters, what it is, and how it decides."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from bench.core.plan import Plan
from bench.core.site import Site


class Reducer:
    """A token-reduction method: a frozen dataclass whose fields are its parameters.

    The class attributes say what it is. What only some methods need (tokens of their own, learned
    tensors, a language model to act in) is in `bench.core.kinds` and `bench.core.learner`.

    Attributes:
        proportional: attention gets `log size` added to its logits after the first merge.
        needs_anchor: ranks tokens by the class / end-of-text token, so the tower must have one.
        max_share: largest share of the unprotected tokens that one layer can remove.
        budget: what it takes when the user names none, e.g. `{"r": 8}`.
        before: it acts on a block's input, ahead of its attention.
        towers: where it can act, first where it acts when the user names no tower: "vision",
            "text", "projector" (between an image tower and a language model), "language".
        name, summary, source, url, acts: filled by `@register`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    url: ClassVar[str] = ""
    acts: ClassVar[str] = ""

    proportional: ClassVar[bool] = False
    needs_anchor: ClassVar[bool] = False
    max_share: ClassVar[float] = 0.5
    budget: ClassVar[dict[str, Any]] = {"r": 8}
    before: ClassVar[bool] = False
    towers: ClassVar[tuple[str, ...]] = ("vision", "text")

    def plan(self, site: Site, r: int) -> Plan:
        """Decide which `r` >= 1 unprotected tokens of `site` go, and where."""
        raise NotImplementedError

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """The removal nearest to `r` that this method can make of `tokens` removable ones."""
        return max(min(r, int(tokens * self.max_share)), 0)

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """How many of `tokens` removable ones stay at a keep rate, beside `fixed` that always do.

        Rounded up, as in the EViT code; a method whose authors round otherwise overrides it.
        """
        return math.ceil(rate * tokens)
