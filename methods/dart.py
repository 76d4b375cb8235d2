"""DART: keep a few pivot tokens, and the image tokens that duplicate them least.

Source: Wen et al., "Stop Looking for `Important Tokens' in Multimodal Language Models: Duplication
Matters More", EMNLP 2025 (arXiv:2502.11494); llava/model/language_model/modeling_llama_self.py.
Departures: the image's tokens are found by what they are; each sample of a batch is reduced by
itself; where fewer words follow the image than there are text pivots, all of them are pivots, and
the pivots share what is to be kept, the first ones taking one more each (the code crashes); ties
are broken stably; key norms and cosines are float32 in a half-precision model too.
Kept as in the code, and surprising: budgets are rounded down to the same number a pivot and the
image's pivots come on top, so that 132 tokens stay for 128; pivots take their turns in the order in
which CPython goes through a set of their positions, which the result depends on. Positions are
counted without padding.
Shapes: B samples, N tokens, P pivots, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from bench.core import BenchError, Plan, Site, register, take
from bench.core.kinds import LanguageReducer
from methods.algorithms.language import block_before, highest, least_alike, words_after
from methods.algorithms.set_order import in_set_order


@register("dart", source="Wen et al., EMNLP 2025", url="https://arxiv.org/abs/2502.11494")
@dataclass(frozen=True)
class DART(LanguageReducer):
    """Keeps the image tokens that are least like a few pivots, those of the largest keys.

    Pivots are image tokens, which stay, and words behind the image; the largest keys are those of
    the previous block by L1 norm. Tokens are compared after the model's final norm.
    """

    pivot_image_token: int = 4
    pivot_text_token: int = 4

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 128 / 576, "layers": (2,)}

    def __post_init__(self) -> None:
        """Refuse what leaves no pivot."""
        if self.pivot_image_token < 1 or self.pivot_text_token < 0:
            raise BenchError("dart: give pivot_image_token >= 1 and pivot_text_token >= 0")

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """The share to keep is rounded down, before it is divided among the pivots."""
        return int(rate * tokens)

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """The same number of tokens a pivot, and the image's pivots on top."""
        pivots = self.pivot_image_token + self.pivot_text_token
        kept = self.pivot_image_token + (tokens - r) // pivots * pivots
        return max(tokens - kept, 0) if r > 0 else 0

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the words, the image's pivots and what the pivots take, in ascending order."""
        inside = block_before(site, self.name)
        largest_BN = inside.k.abs().sum((1, 3))
        after_BN = words_after(site.protect, site.size)
        N, kept = site.x.shape[1], site.x.shape[1] - site.n_protected - r
        image_BP = highest(largest_BN, ~site.protect, min(self.pivot_image_token, kept))
        pivot_BP = torch.cat([image_BP, highest(largest_BN, after_BN, self.pivot_text_token)], 1)
        filled_B1 = after_BN.sum(1, keepdim=True).clamp(max=self.pivot_text_token)
        filled_B1 = filled_B1 + image_BP.shape[1]
        number_BN = (site.size[..., 0] > 0).long().cumsum(1)
        order_BP = in_set_order(number_BN.gather(1, pivot_BP) - 1, filled_B1[:, 0])
        place = torch.arange(pivot_BP.shape[1], device=site.x.device)
        to_take = kept - image_BP.shape[1]
        count_BP = to_take // filled_B1 + (place < to_take % filled_B1)
        x_BNC = F.normalize(inside.norm(site.x).float(), dim=-1)
        alike_BPN = take(x_BNC, pivot_BP.gather(1, order_BP)) @ x_BNC.transpose(1, 2)
        taken_BN = site.protect.scatter(1, image_BP, True)
        taken_BN = least_alike(alike_BPN, count_BP * (place < filled_B1), taken_BN)
        return Plan((~taken_BN).to(torch.int8).argsort(dim=1, stable=True)[:, : N - r])
