"""DynamicViT: a small network, learned with the model, says which tokens to keep.

Source: Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
NeurIPS 2021 (arXiv:2106.02034), §3.2; models/dyvit.py.
Departures: the number of initial tokens is the model's own instead of a fixed 196; no distillation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Learner, Plan, Site, default_layers, register, take
from bench.core.kinds import Adaptive, Compounding
from methods.algorithms.predictor import keep_scores, new_predictor


@register("dynamicvit", source="Rao et al., NeurIPS 2021", url="https://arxiv.org/abs/2106.02034")
@dataclass(frozen=True)
class DynamicViT(Learner, Adaptive, Compounding):
    """Drops the tokens that a learned predictor ahead of the block gives the lowest keep score.

    `predictor` names a safetensors file, or maps `TOWER.LAYER.NAME` to tensors; "random" is enough
    to count costs.
    """

    predictor: Any = field(default=None, compare=False)
    off: list[Tensor] = field(init=False, compare=False, repr=False, default_factory=list)

    trained: ClassVar[bool] = True
    before: ClassVar[bool] = True
    # In training nothing is dropped: a token's size is then its policy, which masks it as a key.
    proportional: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    learns: ClassVar[str] = "predictor"

    def plan(self, site: Site, r: int) -> Plan:
        """Keep protected tokens, then the rest by descending keep score.

        Raises:
            Unsupported: there is no predictor for this tower and layer.
        """
        fixed, patches = site.split()
        count = patches.shape[1] - r
        width = site.x.shape[-1]
        weights = new_predictor(width, site.layer) if self.random else self.at(site)
        x, policy = take(site.x, patches), take(site.size, patches)
        score = keep_scores(x, weights, policy)
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights.values()):
            drawn = F.gumbel_softmax(score.float(), hard=True)[..., :1] * policy
            return self._sampled(site, drawn, patches, count)
        score = score[..., 0].masked_fill(policy[..., 0] == 0, -1e4)
        best = score.argsort(dim=1, descending=True, stable=True)[:, :count]
        return Plan(torch.cat([fixed, patches.gather(1, best)], 1))

    def _sampled(self, site: Site, drawn: Tensor, patches: Tensor, count: int) -> Plan:
        """Training (§3.3): a Gumbel sample keeps or drops; note how far that is from `count`."""
        self.off.append((drawn.sum(1) - count) / patches.shape[1])
        size = site.size.scatter(1, patches[..., None], drawn.clamp_min(1e-6))
        return Plan(
            torch.arange(size.shape[1], device=size.device).expand(len(size), -1), size=size
        )

    def loss(self, model: Any, text_of: Tensor | None = None) -> Tensor | None:
        """Mean squared distance of the kept shares from the wanted ones, over stages (§3.3)."""
        off = [part.square().mean() for part in self.off]
        self.off.clear()
        return 4 * torch.stack(off).mean() if off else None  # half the loss: authors weigh it 2

    def untrained(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Tensor]:
        """One predictor a tower for each of the usual layers."""
        return {
            f"{tower}.{layer}.{name}": value
            for tower, (depth, width) in shapes.items()
            for layer in default_layers(depth)
            for name, value in new_predictor(width, seed=layer).items()
        }
