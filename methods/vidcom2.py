"""VidCom2: keep the tokens of a video that are least like its mean and their frame's mean.

Source: Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video
Large Language Models", EMNLP 2025 (arXiv:2505.14454); token_compressor/vidcom2/vidcom2.py.
Departures: frames have the model's own number of tokens, where the code counts on 169 or 196; the
share to keep follows from the budget unless `base_scale` gives it, and where rounding adds to the
budget the most ordinary tokens go; scores are float32 in a
half-precision model too; ties are broken stably.
Kept as in the code, and surprising: only the half of the channels that vary least is looked at; the
softmax over frames is so sharp (temperature 0.01) that the most unusual frame gets nearly all of
what is shared out; a frame's count is rounded, a half to the even one, and is at least 1, so that
the total may miss what `base_scale` says by some tokens.
Shapes: B videos, F frames, P tokens of a frame, N = F * P, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import BenchError, Plan, register
from bench.core.kinds import Adaptive, VideoReducer
from bench.core.site import ProjectorSite
from methods.algorithms.video import by_frame

_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the Gaussian kernels, 2^-3 to 2^1
_TEMPERATURE = 0.01


def steadiest(x_BFPC: Tensor) -> Tensor:
    """(B,F,P,C/2) the half of the channels that vary least over a video, in their order."""
    variance_BC = x_BFPC.flatten(1, 2).var(1, correction=0)
    half = variance_BC.argsort(dim=1, stable=True)[:, : x_BFPC.shape[-1] // 2].sort(1).values
    return x_BFPC.gather(-1, half[:, None, None].expand(*x_BFPC.shape[:3], -1))


def ordinary(x_BFPC: Tensor) -> tuple[Tensor, Tensor]:
    """(B,F,P) nearness to the video's mean and to the frame's, a sum of Gaussian kernels."""
    z_BFPC = F.normalize(steadiest(x_BFPC), dim=-1)

    def near(centre: Tensor) -> Tensor:
        squared = (z_BFPC - centre).square().sum(-1)
        return sum(torch.exp(-squared / (2 * width)) for width in _WIDTHS)  # type: ignore[return-value]

    return near(z_BFPC.mean((1, 2), keepdim=True)), near(z_BFPC.mean(2, keepdim=True))


def scales(video_BFP: Tensor, base: float) -> Tensor:
    """(B,F) the share of each frame's tokens to keep: more of frames unlike the video's mean."""
    unusual_BF = -video_BFP.mean(2)
    share_BF = ((unusual_BF - unusual_BF.amax(1, keepdim=True)) / _TEMPERATURE).softmax(1)
    return (base * (1 + share_BF - share_BF.mean(1, keepdim=True))).clamp(max=1)


@register("vidcom2", source="Liu et al., EMNLP 2025", url="https://arxiv.org/abs/2505.14454")
@dataclass(frozen=True)
class VidCom2(VideoReducer, Adaptive):
    """Keeps a video's unusual tokens, more of them in the frame that is least like the others.

    `base_scale` is the share of a frame's tokens that stays before frames are compared; without it
    the budget decides.
    """

    base_scale: float | None = None

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.25}

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if self.base_scale is not None and not 0 < self.base_scale <= 1:
            raise BenchError("vidcom2: base_scale must be a share above 0 and at most 1")

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        """Keep each frame's share of least ordinary tokens, in order of time."""
        x_BFPC = by_frame(site)
        n = x_BFPC.shape[1] * x_BFPC.shape[2]
        video_BFP, frame_BFP = ordinary(x_BFPC)
        base = (n - r) / n if self.base_scale is None else self.base_scale
        count_BF = (scales(video_BFP, base) * x_BFPC.shape[2]).round().clamp(min=1)
        rank_BFP = (video_BFP + frame_BFP).argsort(dim=2, stable=True).argsort(2)
        keep_BN = (rank_BFP < count_BF[..., None]).flatten(1)
        if self.base_scale is None:
            score_BN = (video_BFP + frame_BFP).flatten(1).masked_fill(~keep_BN, torch.inf)
            keep_BN &= score_BN.argsort(dim=1, stable=True).argsort(1) < n - r
        return _in_order(keep_BN, site, n - r)


def _in_order(keep_BN: Tensor, site: ProjectorSite, expected: int) -> Plan:
    """Keep those marked of the unprotected tokens, in their order.

    Without values so many as `expected`. Videos of a batch that keep fewer than another get empty
    slots.
    """
    fixed, tokens = site.split()
    number_B1 = keep_BN.sum(1, keepdim=True)
    width = expected if keep_BN.is_meta else int(number_B1.max())
    order = (~keep_BN).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    empty = torch.arange(width, device=order.device) >= number_B1
    keep = tokens.gather(1, order).masked_fill(empty, -1)
    return Plan(torch.cat([fixed, keep], 1), padded=len(keep) > 1)
