"""CrossGET: cross-guided matching and ensemble of tokens.

Source: Shi et al., "CrossGET: Cross-Guided Ensemble of Tokens for Accelerating Vision-Language
Transformers", ICML 2024 (arXiv:2305.17455), §3, and its CLIP and LLaVA code.
Departures: ties are broken stably (lower position first), which the code leaves to the sort; on a
tower without class token the cross token starts as the mean token; similarities are float32 in a
half-precision model too, since bfloat16 ties tokens that are near.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import Learner, Plan, Site, check_known, register, take
from bench.core.kinds import Appender
from bench.core.site import EncoderSite
from crossget import importance, matching
from crossget.cross_tokens import CrossTokens
from crossget.ensemble import pair_weights
from crossget.loss import loss_in


@register("crossget", source="Shi et al., ICML 2024, §3", url="https://arxiv.org/abs/2305.17455")
@dataclass(frozen=True)
class CrossGET(Learner, Appender):
    """Merges along a complete graph of tokens, guided by what the cross token finds important.

    A cross token rides along last in every tower and never merges; in a language model the first
    token of the prompt is it. `cross_tokens` maps a tower to its learned vectors (L,C), one a
    layer, or names a safetensors file with them; without them they are zeros, and the cross token
    is a copy of the class (text: end-of-text) token. `importance` is by the cross token's "query",
    as in the CLIP code, or by "attention", as in the LLaVA code; "auto" is "attention" in an image
    encoder that a language model reads, and "query" elsewhere. With `handed_on` the cross token of
    an image goes on to the language model, as its last visual token.
    """

    cross_tokens: Any = field(default=None, compare=False)
    importance: str = "auto"
    guided_matching: bool = True
    guided_ensemble: bool = True
    handed_on: bool = True
    tokens: CrossTokens = field(init=False, compare=False, repr=False)

    proportional: ClassVar[bool] = True
    visits: ClassVar[tuple[str, ...]] = ("language",)
    learns: ClassVar[str] = "cross_tokens"

    def __post_init__(self) -> None:
        """Read the cross tokens, unless they come ready-made.

        Raises:
            BenchError: the file or the tensors do not serve, or there is no such importance.
        """
        check_known("crossget has no importance", self.importance, ("auto", "query", "attention"))
        tokens = self.cross_tokens
        if not isinstance(tokens, CrossTokens):
            tokens = CrossTokens(self.read(tokens))
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "tables", tokens.vectors)

    def append(self, x: Tensor, anchor: Tensor | None, tower: str) -> Tensor:
        """A copy of the class or end-of-text token; the mean where there is none."""
        return x.mean(1, keepdim=True) if anchor is None else take(x, anchor[:, None])

    def refresh(self, x: Tensor, anchor: Tensor | None, layer: int, tower: str) -> Tensor:
        """Cross token <- detached running token + this layer's learned vector."""
        return self.tokens.refreshed(x, anchor, layer, tower)

    def untrained(self, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Tensor]:
        """One vector of zeros a layer and tower."""
        return {tower: torch.zeros(shape) for tower, shape in shapes.items()}

    def loss(self, model: Any, text_of: Tensor | None = None) -> Tensor | None:
        """The alignment loss (§3.1); None in a model with no text of its own."""
        return loss_in(model, self.tokens, text_of)

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Match all pairs by key similarity, less importance; weigh pairs by importance.

        No gradient flows through the decision or the weights, as in the authors' code.
        """
        auto = "attention" if isinstance(site, EncoderSite) else "query"
        if (auto if self.importance == "auto" else self.importance) == "attention":
            similarity = matching.cosine_similarity(site.k.mean(1, dtype=torch.float32))
            attention = site.attention().mean(1, dtype=torch.float32)
            matters = importance.importance_from_attention(attention)
        else:
            query = self._query(site)
            similarity, matters = importance.similarity_and_importance(site.keys(), query)
        guide = matters if self.guided_matching else None
        src, dst, stay = matching.complete_graph_soft_matching(similarity, r, site.protect, guide)
        gain = pair_weights(matters, src, dst) if self.guided_ensemble else None
        keep = stay.sort(1).values
        return Plan(keep, src, torch.searchsorted(keep, dst), gain)

    def _query(self, site: Site) -> Tensor:
        """(B,C) query of the cross token; in a text, of the end-of-text token."""
        if site.tower == "text" and site.anchor is not None:
            return importance.query_at(site.q, site.anchor)
        return site.q[:, :, -1].flatten(1)
