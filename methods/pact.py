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
from methods.algorithms.clustering import around_centres, settled
from methods.algorithms.language import block_before, highest, mean_query_attention

VECTORS = ("current_k_cosine", "current_k", "current_q_cosine", "current_q")


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
        check_known("pact has no importance", self.importance, ("query-and-norm", "query", "norm"))
        check_known("pact has no vector", self.vector_to_use_in_distance_clustering, VECTORS)
        if self.cutoff < 0 or self.coef_pruned < 0:
            raise BenchError("pact: cutoff and coef_pruned are distances, 0 or more")
        object.__setattr__(self, "proportional", not self.no_proportional_attention)
        object.__setattr__(self, "renumbers", self.change_position_ids)

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep words and centres in ascending order; members of a cluster merge into its centre.

        One sample; on the meta device any number.
        """
        inside, (fixed, image_BI) = block_before(site, self.name), site.split()
        most = image_BI.shape[1] - r
        passing = most if self.token_pruning else image_BI.shape[1]
        score_BI = self.scores(inside).gather(1, image_BI)
        passed_BP = highest(score_BI, torch.ones_like(image_BI).bool(), passing).sort(1).values
        far_BIP = self.distances(inside, image_BI, passed_BP)
        if site.x.is_meta:  # as many as the budget allows, and all others in their means
            return Plan(torch.cat([fixed, image_BI[:, :most]], 1), *(image_BI[:, 1:],) * 2)
        reach = self.coef_pruned * self.cutoff if self.include_pruned_in_mean else -torch.inf
        sample = site.protect[0], image_BI[0], passed_BP[0], far_BIP[0], reach, self.take_mean
        centres = settled(take(far_BIP, passed_BP), self.cutoff, most)
        return next(filter(None, (around_centres(*sample, *one) for one in centres)))

    def scores(self, site: LanguageSite) -> Tensor:
        """(B,N) importance, in float32; that of the words means nothing."""
        norm_BN: Tensor = torch.linalg.vector_norm(site.x.float(), self.norm_to_use, dim=-1)
        if self.importance == "norm":
            return norm_BN
        q_k = site.ahead() if self.use_cosine_in_token_pruning else site.unrotated()
        paid_BN = mean_query_attention(*q_k, site)
        return paid_BN if self.importance == "query" else paid_BN * norm_BN

    def distances(self, site: LanguageSite, image_BI: Tensor, passed_BP: Tensor) -> Tensor:
        """(B,I,P) 1 - cosine between tokens of the image and those that passed."""
        _, vector, *rotated = self.vector_to_use_in_distance_clustering.split("_")
        both = site.ahead() if rotated else site.unrotated()
        wide_BNC = both["qk".index(vector)].transpose(1, 2).flatten(2).float()
        x_BIC = F.normalize(take(wide_BNC, image_BI), dim=-1)
        return 1 - x_BIC @ take(x_BIC, passed_BP).transpose(1, 2)
