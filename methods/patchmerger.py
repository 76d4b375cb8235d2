"""PatchMerger: learned queries sum all patches up into a few tokens.

Source: Renggli et al., "Learning to Merge Tokens in Vision Transformers", 2022 (arXiv:2202.12015):
Y = softmax(W^T X^T) X; models/patchmerger.py of Haurum et al., ICCVW 2023 (arXiv:2308.04657).
Departures: the weights see the normalised tokens, as in that code, but what they sum are the tokens
themselves, as in the formula; the normalisation has no scale and shift of its own, which the
queries take over without loss; prefix tokens are kept aside. Sizes share each patch's mass out
among the tokens in proportion to its weights in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import BenchError, Learner, Plan, Site, Unsupported, register, take
from bench.core.kinds import Bounded, Compounding
from methods.algorithms.queries import new_queries, query_weights


@register("patchmerger", source="Renggli et al., 2022", url="https://arxiv.org/abs/2202.12015")
@dataclass(frozen=True)
class PatchMerger(Learner, Bounded, Compounding):
    """Replaces all patches by a few weighted sums of them, one for each learned query.

    `queries` maps `TOWER.LAYER` to a table (M,C), or names a safetensors file; "random" is enough
    to count costs. Without a budget it acts where it has queries, and before it has learned any as
    in the paper: once, ahead of `layer` (the middle one), down to `tokens`. A budget must leave as
    many tokens as there are queries.
    """

    queries: Any = field(default=None, compare=False)
    tokens: int = 8
    layer: int | None = None
    seed: int = 0

    trained: ClassVar[bool] = True
    before: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    learns: ClassVar[str] = "queries"

    def __post_init__(self) -> None:
        """Read the queries; what they were made for is this instance's budget.

        Raises:
            BenchError: the file or the tensors do not serve, or the number of tokens.
        """
        if self.tokens < 1:
            raise BenchError(f"patchmerger: tokens must be at least 1, not {self.tokens}")
        super().__post_init__()
        for key, table in self.tables.items():
            if table.dim() != 2 or not key.rpartition(".")[2].isdigit():
                raise BenchError(f"patchmerger: {key} is no table (M,C) named TOWER.LAYER")
        object.__setattr__(self, "budget", {"r": self.as_learned})

    def as_learned(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """The schedule that the queries were made for."""
        counts = {int(key.rpartition(".")[2]): len(table) for key, table in self.tables.items()}
        counts = counts or {self._where(depth): self.tokens}
        return max(tokens - counts.get(layer, tokens), 0)

    def _where(self, depth: int) -> int:
        return depth // 2 if self.layer is None else self.layer

    def plan(self, site: Site, r: int) -> Plan:
        """Keep protected tokens in front of one sum a query.

        Raises:
            Unsupported: on text, whose order the sums have no place in; there are no queries here,
                or not as many as tokens to be left.
        """
        if site.tower == "text":
            raise Unsupported("method 'patchmerger' makes tokens without a place in a text's order")
        fixed, patches = site.split()
        weight, size = query_weights(site, self._queries(site, patches.shape[1] - r))
        size = torch.cat([take(site.size, fixed), size], 1)
        return Plan(fixed, extra=weight, soft=True, size=size)

    def _queries(self, site: Site, count: int) -> Tensor:
        C = site.x.shape[-1]
        if self.random:
            return new_queries(count, C, self.seed + site.layer, site.x.device)
        table = self.at(site)[""]
        if table.shape != (count, C):
            raise Unsupported(
                f"patchmerger has {table.shape[0]} queries of width {table.shape[1]} here, "
                f"and this budget leaves {count} tokens of width {C}: change r or keep_rate"
            )
        return table

    def untrained(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Tensor]:
        """`tokens` queries for one layer of each image tower that has none."""
        return {
            f"{tower}.{self._where(depth)}": new_queries(self.tokens, width, self.seed)
            for tower, (depth, width) in shapes.items()
            if tower not in {"text", *(key.partition(".")[0] for key in self.tables)}
        }
