"""PACT: drop what is of no importance, and average what is near the same centre.

Source: Dhouib et al., "PACT: Pruning and Clustering-Based Token Reduction for Faster Visual
Language Models", CVPR 2025 (arXiv:2504.08966), §3; transformers/models/qwen2/modeling_qwen2.py and
transformers/PACT/utils.py, parameters by their names in docs/CONFIGDOC.md.
Departures: any number of samples, each reduced by itself; the image's tokens are found by what they
are, and padding may stand in front; of equally dense tokens the lower position counts as the
denser; the logarithm of sizes is float32 (the code rounds sizes and logarithm to float16); where
`int(share * n)` is 0 one token stays (the code then limits nothing); the number of centres never
exceeds the budget, which matters without `token_pruning` alone; a mean weighs tokens by size, where
a method before merged some; quartiles and attention as scores, and mean positions, are left out; it
refuses to act ahead of the first block.
Kept as in the code: how many tokens remain depends on the image; the scores' softmax runs over all
that stands up to the image's last token, words included.
Without values (on the meta device) as many tokens remain as the budget allows.
Shapes: B samples, N tokens, I of the image, P that pass the first step, H heads, D and C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import BenchError, Plan, Site, check_known, register, take
from bench.core.kinds import Adaptive, Compounding, LanguageReducer
from bench.core.site import LanguageSite
from methods.algorithms.clustering import bounded_peaks
from methods.algorithms.language import block_before, words_after

VECTORS = ("current_k_cosine", "current_k", "current_q_cosine", "current_q")
IMPORTANCE = ("query-and-norm", "query", "norm")


@register("pact", source="Dhouib et al., CVPR 2025, §3", url="https://arxiv.org/abs/2504.08966")
@dataclass(frozen=True)
class PACT(LanguageReducer, Adaptive, Compounding):
    """Drops image tokens of low importance, and averages the others around centres that lie apart.

    The budget is the share that passes the first step, and a bound of the centres; `cutoff` is how
    far (1 - cosine) a token may be from its centre. A dropped token within `coef_pruned * cutoff`
    of a centre comes back into its mean. `token_pruning=False` with `include_pruned_in_mean=False`
    is DBDPC, the clustering alone.

    Attributes:
        cutoff, coef_pruned: distances, see above.
        token_pruning: the first step is taken.
        include_pruned_in_mean: dropped tokens near a centre come back.
        take_mean: a centre becomes the mean of its tokens; else it stays as it is.
        importance: "query-and-norm", or one of the two: what the mean query (of all up to the
            image's last token) pays a token, and the norm of the token.
        norm_to_use: which norm.
        use_cosine_in_token_pruning: queries and keys of the first step are rotated ones.
        vector_to_use_in_distance_clustering: keys or queries; "cosine" says that they are rotated.
        no_proportional_attention: logits do not get the logarithm of sizes.
        change_position_ids: positions count on without gaps.
    """

    cutoff: float = 0.21
    coef_pruned: float = 1.5
    token_pruning: bool = True
    include_pruned_in_mean: bool = True
    take_mean: bool = True
    importance: str = "query-and-norm"
    norm_to_use: float = 2
    use_cosine_in_token_pruning: bool = False
    vector_to_use_in_distance_clustering: str = "current_k_cosine"
    no_proportional_attention: bool = False
    change_position_ids: bool = False

    proportional: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.55, "layers": (4,)}

    def __post_init__(self) -> None:
        """Check the parameters, and tell the harness what follows from them."""
        check_known("pact: no importance is named", self.importance, IMPORTANCE)
        vector = self.vector_to_use_in_distance_clustering
        check_known("pact: no vector is named", vector, VECTORS)
        if self.cutoff < 0 or self.coef_pruned < 0:
            raise BenchError("pact: cutoff and coef_pruned are distances, 0 or more")
        object.__setattr__(self, "proportional", not self.no_proportional_attention)
        object.__setattr__(self, "renumbers", self.change_position_ids)

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep words and centres in ascending order; members of a cluster merge into its centre.

        One sample; on the meta device any number.
        """
        inside = block_before(site, self.name)
        fixed, image_BI = site.split()
        most = image_BI.shape[1] - r
        score_BI = self.scores(inside).gather(1, image_BI)
        passing = most if self.token_pruning else image_BI.shape[1]
        order = score_BI.argsort(dim=1, descending=True, stable=True)
        passed_BP = order[:, :passing].sort(1).values
        far_BIP = self.distances(inside, image_BI, passed_BP)
        if site.x.is_meta:  # as many as the budget allows, and all others in their means
            members = image_BI[:, 1:]
            return Plan(torch.cat([fixed, image_BI[:, :most]], 1), members, members)
        near_PP = take(far_BIP, passed_BP).clamp_min(0)
        near_PP.diagonal(dim1=1, dim2=2).zero_()
        centre_P = bounded_peaks(near_PP, self.cutoff, most)[0]
        reach_I, nearest_I = far_BIP[0].masked_fill(~centre_P, torch.inf).min(-1)
        return self._merged(site, image_BI[0], passed_BP[0], centre_P, nearest_I, reach_I)

    def scores(self, site: LanguageSite) -> Tensor:
        """(B,N) importance, in float32; that of the words means nothing."""
        size = torch.linalg.vector_norm(site.x.float(), self.norm_to_use, dim=-1)
        if self.importance == "norm":
            return size
        q, k = site.ahead() if self.use_cosine_in_token_pruning else site.unrotated()
        span_BN = (site.size[..., 0] > 0) & ~words_after(site.protect, site.size)
        in_span = span_BN[:, None, :, None]
        mean_BH1D = (q.float() * in_span).sum(2, keepdim=True) / in_span.sum(2, keepdim=True)
        k = k.float().repeat_interleave(q.shape[1] // k.shape[1], 1)
        logits_BHN = (mean_BH1D @ k.transpose(-2, -1))[:, :, 0] / q.shape[-1] ** 0.5
        paid_BN = logits_BHN.masked_fill(~span_BN[:, None], -torch.inf).softmax(-1).mean(1)
        return paid_BN * size if self.importance == "query-and-norm" else paid_BN

    def distances(self, site: LanguageSite, image_BI: Tensor, passed_BP: Tensor) -> Tensor:
        """(B,I,P) 1 - cosine between tokens of the image and those that passed."""
        _, vector, *rotated = self.vector_to_use_in_distance_clustering.split("_")
        both = site.ahead() if rotated else site.unrotated()
        wide_BNC = both["qk".index(vector)].transpose(1, 2).flatten(2).float()
        x_BIC = F.normalize(take(wide_BNC, image_BI), dim=-1)
        return 1 - x_BIC @ take(x_BIC, passed_BP).transpose(1, 2)

    def _merged(
        self,
        site: Site,
        image_I: Tensor,
        passed_P: Tensor,
        centre_P: Tensor,
        nearest_I: Tensor,
        reach_I: Tensor,
    ) -> Plan:
        """The plan of one sample from its centres and the nearest one of each token."""
        joins_I = torch.zeros_like(nearest_I, dtype=torch.bool)
        if self.include_pruned_in_mean:
            joins_I = reach_I <= self.coef_pruned * self.cutoff
        joins_I = joins_I.scatter(0, passed_P, True).scatter(0, passed_P[centre_P], False)
        stays_N = site.protect[0].scatter(0, image_I[passed_P[centre_P]], True)
        slot_N = stays_N.cumsum(0) - 1
        into_I = slot_N[image_I[passed_P[nearest_I]]]
        keep, src, dst = stays_N.nonzero().T, image_I[joins_I][None], into_I[joins_I][None]
        mix = None
        if not self.take_mean:
            mix = (torch.ones_like(keep, dtype=torch.float), torch.zeros_like(src).float())
        return Plan(keep, src, dst, mix=mix)
