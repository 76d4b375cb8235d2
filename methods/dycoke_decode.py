"""DyCoke's second stage: a new token sees the video's keys that the latest attention went to.

Source: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
CVPR 2025 (arXiv:2411.15024); llava/model/language_model/modeling_qwen2.py
(`PrunableDynamicCache.dycoke_pruning`). Its first stage is `dycoke`.
Departures: attention of the answer before is forgotten, where the code compares the first token of
an answer with the last one of another; each sample of a batch decides by itself, where the code
goes by the first; images are treated as videos are; ties are broken stably. The last of the
image's tokens is always visible: in the code that is the last one of the video and, where there
is one, the new line behind it, which here is the last.
Kept as in the code, and surprising: where attention has hardly changed since the token before, a
new token sees all keys. In the paper it sees those that the token before saw, which is `mended`.
Without values (on the meta device) attention always changes.
Shapes: B samples (1), K keys, I of them the image's but the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, register
from bench.core.kinds import DecodeReducer
from bench.core.site import DecodeSite


@register(
    "dycoke-decode",
    source="Tao et al., CVPR 2025",
    url="https://arxiv.org/abs/2411.15024",
    acts="each new token, from the chosen layer on",
)
@dataclass(frozen=True)
class DyCokeDecode(DecodeReducer):
    """Hides from a new token the image's keys that got least of its attention a block earlier.

    It does so as long as that attention keeps changing: where its cosine with that of the token
    before is `steady` or more, all keys are visible.
    """

    steady: float = 0.9
    mended: bool = False

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.3, "layers": (3,)}

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """How many of the image's keys stay visible: a share rounded down, and the last."""
        return int(rate * (tokens - 1)) + 1

    @torch.no_grad()
    def plan(self, site: DecodeSite, r: int) -> Plan:  # type: ignore[override]
        """Show all but `r` of the image's keys, or all of them, in ascending order."""
        fixed, image = site.split()
        pays_BI = site.attention().mean(1)[:, 0].float().gather(1, image[:, :-1])
        changed = self._changed(pays_BI, site.memory.get("pays"))
        site.memory["pays"] = pays_BI
        if changed:
            order = pays_BI.argsort(dim=1, descending=True, stable=True)
            site.memory["seen"] = order[:, : order.shape[1] - r]
        elif not self.mended:
            return Plan(torch.arange(site.k.shape[2], device=image.device)[None])
        seen = image.gather(1, site.memory["seen"])
        return Plan(torch.cat([fixed, seen, image[:, -1:]], 1).sort(1).values)

    def _changed(self, pays_BI: Tensor, before_BI: Tensor | None) -> bool:
        """Whether attention is another than at the token before; a GPU is waited for."""
        if before_BI is None or pays_BI.is_meta:
            return True
        return bool(F.cosine_similarity(pays_BI, before_BI, dim=1) < self.steady)
