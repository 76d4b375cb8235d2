"""A method as a class: its parameters, what it is, and how it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from bench.core.plan import Plan
from bench.core.site import Site


class Reducer:
    """A token-reduction method: a frozen dataclass whose fields are its parameters.

    The class attributes say what it is; `@register` fills `name`, `summary`, `source` and `url`.

    Attributes:
        proportional: attention gets `log size` added to its logits after the first merge.
        needs_anchor: ranks tokens by the class / end-of-text token, so the tower must have one.
        max_share: largest share of the unprotected tokens that one layer can remove.
        least: how many of them always stay (at least one cluster, say).
        budget: what it takes when the user names none, e.g. `{"r": 8}`.
        keeps: what a keep rate is a share of: the "current" tokens (ceil, as EViT), or the
            "initial" ones, compounding over the layers (floor, as TopK).
        appends: tokens that the method adds at the end of the sequence and that never merge.
        before: it acts on a block's input, ahead of its attention.
        adaptive: how many tokens it keeps depends on the sample: `r` is then what the schedule
            would have gone by now less what has, so that `tokens - r` is the schedule's count.
        towers: where it can act, first where it acts when the user names no tower: "vision",
            "text", "projector" (between an image tower and a language model), "language".
        visits: towers whose first token of a prompt it refreshes, removing none (if `appends`).
        reads: in the projector: whose q, k, v it sees, counted from the block that makes the
            features (1: the block after).
        keeps_class: in the projector: the class token goes to the language model too.
        renumbers: in a language model: positions count on without gaps after a removal.
        learns: the parameter that takes what training learned: tensors by name, or a safetensors
            file with them under `LEARNS.NAME`.
        seeds: accuracy is the mean over so many values of its parameter `seed`: more than one where
            chance decides which tokens go.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    url: ClassVar[str] = ""
    acts: ClassVar[str] = "every layer, after attention"
    trained: ClassVar[bool] = False
    proportional: ClassVar[bool] = False
    needs_anchor: ClassVar[bool] = False
    max_share: ClassVar[float] = 0.5
    least: ClassVar[int] = 0
    budget: ClassVar[dict[str, Any]] = {"r": 8}
    keeps: ClassVar[str] = "current"
    appends: ClassVar[int] = 0
    before: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    learns: ClassVar[str] = ""
    towers: ClassVar[tuple[str, ...]] = ("vision", "text")
    visits: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[int] = 0
    keeps_class: ClassVar[bool] = False
    renumbers: ClassVar[bool] = False
    seeds: ClassVar[int] = 1

    @property
    def learned(self) -> Mapping[str, Tensor]:
        """The tensors that it brings with it, by name."""
        return {}

    @property
    def parts(self) -> Sequence[tuple[str, Mapping[str, Any]]] | None:
        """Methods, each with its arguments for `reduced()`, that are run in place of this one."""
        return None

    def plan(self, site: Site, r: int) -> Plan:
        """Decide which `r` >= 1 unprotected tokens of `site` go, and where."""
        raise NotImplementedError

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """The removal nearest to `r` that this method can make of `tokens` removable ones."""
        return max(min(r, int(tokens * self.max_share), tokens - self.least), 0)

    def append(self, x: Tensor, anchor: Tensor | None, tower: str) -> Tensor:
        """(B,N,C) -> (B,appends,C): tokens to add before the first block (if `appends`)."""
        raise NotImplementedError

    def refresh(self, x: Tensor, anchor: Tensor | None, layer: int, tower: str) -> Tensor:
        """(B,N,C) -> (B,N,C): the sequence as this layer shall see it (if `appends`)."""
        return x

    def resize(
        self, keep_rate: float, height: int, width: int, patch: tuple[int, int]
    ) -> tuple[int, int]:
        """The image size to run at, in pixels, for methods that act on the input."""
        return height, width

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """Get ready to be trained in towers of these (depth, width); return what is to be learned.

        The parameters go on being used by this instance, so that gradients reach them.
        """
        return {}

    def loss(self, model: Any, own: Tensor | None = None) -> Tensor | None:
        """The method's own loss after a forward pass of `model` in training; None without one.

        `own` (B,) is the row of each image's text, where texts and images are not paired by row.
        """
        return None
