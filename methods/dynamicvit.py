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
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import Plan, Reducer, Site, Unsupported, learned_tensors, take
from bench.registry import register

Weights = Mapping[str, Tensor]
LAYERS = ("in_conv.1", "out_conv.0", "out_conv.2", "out_conv.4")


def keep_scores(x_BNC: Tensor, weights: Weights, policy_BN1: Tensor | None = None) -> Tensor:
    """(B,N,C) tokens -> (B,N,2) log-probabilities of keeping and dropping each.

    Args:
        x_BNC: tokens without the class token.
        weights: of the predictor, under the authors' names.
        policy_BN1: 1 for tokens, 0 for empty slots, which say nothing to the others.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x))

    scale, shift = (weights[f"in_conv.0.{name}"].to(x_BNC) for name in ("weight", "bias"))
    x = F.gelu(linear(F.layer_norm(x_BNC, x_BNC.shape[-1:], scale, shift), LAYERS[0]))
    local, shared = x.chunk(2, -1)
    policy = torch.ones_like(x[..., :1]) if policy_BN1 is None else policy_BN1.to(x)
    mean = (shared * policy).sum(1, keepdim=True) / policy.sum(1, keepdim=True)
    x = torch.cat([local, mean.expand_as(shared)], -1)
    for name in LAYERS[1:-1]:
        x = F.gelu(linear(x, name))
    return linear(x, LAYERS[-1]).log_softmax(-1)


def new_predictor(width: int, seed: int = 0) -> dict[str, Tensor]:
    """An untrained predictor for tokens of `width` channels."""
    rng = torch.Generator().manual_seed(seed)
    widths = [(width, width), (width // 2, width), (width // 4, width // 2), (2, width // 4)]
    found = {"in_conv.0.weight": torch.ones(width), "in_conv.0.bias": torch.zeros(width)}
    for name, (out, into) in zip(LAYERS, widths, strict=True):
        found[f"{name}.weight"] = torch.randn(out, into, generator=rng) * into**-0.5
        found[f"{name}.bias"] = torch.zeros(out)
    return found


@register("dynamicvit", source="Rao et al., NeurIPS 2021", url="https://arxiv.org/abs/2106.02034")
@dataclass(frozen=True)
class DynamicViT(Reducer):
    """Drops the tokens that a learned predictor ahead of the block gives the lowest keep score.

    `predictor` names a safetensors file, or maps `TOWER.LAYER.NAME` to tensors; "random" is enough
    to count costs.
    """

    predictor: Any = field(default=None, compare=False)
    weights: dict[str, Tensor] = field(init=False, compare=False, repr=False)
    off: list[Tensor] = field(init=False, compare=False, repr=False)

    acts: ClassVar[str] = "chosen layers, before the block"
    trained: ClassVar[bool] = True
    before: ClassVar[bool] = True
    # In training nothing is dropped: a token's size is then its policy, which masks it as a key.
    proportional: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    keeps: ClassVar[str] = "initial"
    learns: ClassVar[str] = "predictor"

    def __post_init__(self) -> None:
        """Read the predictors.

        Raises:
            BenchError: the file does not serve.
        """
        given = None if self.predictor == "random" else self.predictor
        object.__setattr__(self, "weights", learned_tensors(given, self.learns))
        object.__setattr__(self, "off", [])

    def plan(self, site: Site, r: int) -> Plan:
        """Keep protected tokens, then the rest by descending keep score.

        Raises:
            Unsupported: there is no predictor for this tower and layer.
        """
        n = site.x.shape[1] - site.n_protected
        order = site.protect.to(torch.int8).argsort(dim=1, stable=True)
        patches, fixed = order[:, :n], order[:, n:]
        weights = self._at(site)
        x, policy = take(site.x, patches), take(site.size, patches)
        score = keep_scores(x, weights, policy)
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights.values()):
            drawn = F.gumbel_softmax(score.float(), hard=True)[..., :1] * policy
            return self._sampled(site, drawn, patches, n - r)
        score = score[..., 0].masked_fill(policy[..., 0] == 0, -1e4)
        best = score.argsort(dim=1, descending=True, stable=True)[:, : n - r]
        return Plan(torch.cat([fixed, patches.gather(1, best)], 1))

    def _sampled(self, site: Site, drawn: Tensor, patches: Tensor, count: int) -> Plan:
        """Training (§3.3): a Gumbel sample keeps or drops; note how far that is from `count`."""
        self.off.append((drawn.sum(1) - count) / patches.shape[1])
        size = site.size.scatter(1, patches[..., None], drawn.clamp_min(1e-6))
        return Plan(
            torch.arange(size.shape[1], device=size.device).expand(len(size), -1), size=size
        )

    def loss(self, model: Any, own: Tensor | None = None) -> Tensor | None:
        """Mean squared distance of the kept shares from the wanted ones, over stages (§3.3)."""
        off = [part.square().mean() for part in self.off]
        self.off.clear()
        return 4 * torch.stack(off).mean() if off else None  # half the loss: authors weigh it 2

    def _at(self, site: Site) -> Weights:
        prefix = f"{site.tower}.{site.layer}."
        found = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}
        if found or self.predictor == "random":
            return found or new_predictor(site.x.shape[-1], seed=site.layer)
        where = f"the {site.tower} tower's layer {site.layer}"
        raise Unsupported(f"dynamicvit has no predictor for {where}: train one with --freeze")

    def learn(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, nn.Parameter]:
        """One predictor a tower for each of the usual layers, new where none was given."""
        for tower, (depth, width) in shapes.items():
            for layer in sorted({depth * i // 4 for i in (1, 2, 3)}):
                for name, value in new_predictor(width, seed=layer).items():
                    self.weights.setdefault(f"{tower}.{layer}.{name}", value)
        learned = {name: nn.Parameter(value.clone()) for name, value in self.weights.items()}
        self.weights.update(learned)
        return learned
