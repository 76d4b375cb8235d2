"""PatchMerger: learned queries sum all patches up into a few tokens.

Source: Renggli et al., "Learning to Merge Tokens in Vision Transformers", 2022 (arXiv:2202.12015):
Y = softmax(W^T X^T) X; models/patchmerger.py of Haurum et al., ICCVW 2023 (arXiv:2308.04657).
Departures: the weights see the normalised tokens, as in that code, but what they sum are the tokens
themselves, as in the formula; the normalisation has no scale and shift of its own, which the
queries take over without loss; prefix tokens are kept aside. Sizes share each patch's mass out
among the tokens in proportion to its weights in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import BenchError, Plan, Reducer, Site, Unsupported, learned_tensors, take
from bench.registry import register
from methods.dpc_knn import split


def merging_logits(x_BNC: Tensor, queries_MC: Tensor, leave_out_BN: Tensor) -> Tensor:
    """(B,M,N) logarithms of each query's weights of the tokens, -inf where a token is left out."""
    normed_BNC = F.layer_norm(x_BNC, x_BNC.shape[-1:])
    logits: Tensor = (queries_MC.to(x_BNC) @ normed_BNC.transpose(1, 2)).float()
    return logits.masked_fill(leave_out_BN[:, None], -torch.inf).log_softmax(-1)


def new_queries(count: int, width: int, seed: int, device: torch.device | None = None) -> Tensor:
    """Untrained queries (M,C), whose logits have a deviation of about 1; hashed, so compilable."""
    n = torch.arange(1, count * width + 1, device=device).view(count, width) + seed * 7919
    n = n * 2654435761 % 2**31
    n = (n ^ (n >> 15)) * 1103515245 % 2**31
    return (n / 2**30 - 1) * math.sqrt(3 / width)


@register("patchmerger", source="Renggli et al., 2022", url="https://arxiv.org/abs/2202.12015")
@dataclass(frozen=True)
class PatchMerger(Reducer):
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
    tables: dict[str, Tensor] = field(init=False, compare=False, repr=False)

    acts: ClassVar[str] = "chosen layers, before the block"
    trained: ClassVar[bool] = True
    before: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    keeps: ClassVar[str] = "initial"
    learns: ClassVar[str] = "queries"

    def __post_init__(self) -> None:
        """Read the queries; what they were made for is this instance's budget.

        Raises:
            BenchError: the file or the tensors do not serve, or the number of tokens.
        """
        if self.tokens < 1:
            raise BenchError(f"patchmerger: tokens must be at least 1, not {self.tokens}")
        given = None if self.queries == "random" else self.queries
        tables = learned_tensors(given, self.learns)
        for key, table in tables.items():
            if table.dim() != 2 or not key.rpartition(".")[2].isdigit():
                raise BenchError(f"patchmerger: {key} is no table (M,C) named TOWER.LAYER")
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "budget", {"r": self.as_learned})

    def as_learned(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """The schedule that the queries were made for."""
        counts = {int(key.rpartition(".")[2]): len(table) for key, table in self.tables.items()}
        counts = counts or {self._where(depth): self.tokens}
        return max(tokens - counts.get(layer, tokens), 0)

    def _where(self, depth: int) -> int:
        return depth // 2 if self.layer is None else self.layer

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """At least one token."""
        return max(min(r, tokens - 1), 0)

    def plan(self, site: Site, r: int) -> Plan:
        """Keep protected tokens in front of one sum a query.

        Raises:
            Unsupported: on text, whose order the sums have no place in; there are no queries here,
                or not as many as tokens to be left.
        """
        if site.tower == "text":
            raise Unsupported("method 'patchmerger' makes tokens without a place in a text's order")
        count = site.x.shape[1] - site.n_protected - r
        blocked = site.protect | (site.size[..., 0] == 0)
        log_BMN = merging_logits(site.x, self._queries(site, count), blocked)
        fixed, _ = split(site.protect, site.n_protected)
        mass_BN1 = site.size.masked_fill(blocked[..., None], 0.0)
        share_BMN = log_BMN.detach().clamp_min(-1e4).softmax(1)
        size = torch.cat([take(site.size, fixed), share_BMN.to(mass_BN1) @ mass_BN1], 1)
        return Plan(fixed, extra=log_BMN.exp(), size=size)

    def _queries(self, site: Site, count: int) -> Tensor:
        C, key = site.x.shape[-1], f"{site.tower}.{site.layer}"
        if self.queries == "random" and not self.tables:
            return new_queries(count, C, self.seed + site.layer, site.x.device)
        table = self.tables.get(key)
        if table is None:
            has = f"only for {sorted(self.tables)}" if self.tables else "for no layer"
            raise Unsupported(
                f"patchmerger has queries {has}, not for {key}: train some, choose its layers=, or "
                "give queries='random' to count costs"
            )
        if table.shape != (count, C):
            raise Unsupported(
                f"patchmerger has {table.shape[0]} queries of width {table.shape[1]} for {key}, "
                f"and this budget leaves {count} tokens of width {C}: change r or keep_rate"
            )
        return table

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """`tokens` queries for one layer of each image tower, new where none were given."""
        for tower, (depth, width) in shapes.items():
            key = f"{tower}.{self._where(depth)}"
            if tower != "text" and not any(k.startswith(tower + ".") for k in self.tables):
                self.tables[key] = new_queries(self.tokens, width, self.seed)
        learned = {key: nn.Parameter(table.clone()) for key, table in self.tables.items()}
        self.tables.update(learned)
        return learned
