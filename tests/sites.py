"""What methods look at, built by hand: an image's block, a projector, a language model's block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.core import Site
from bench.core.site import LanguageSite, ProjectorSite


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def image_site(
    x: Tensor, q: Any = None, k: Any = None, v: Any = None, size: Any = None,
    protected: tuple[int, ...] = (0,), **more: Any,
) -> Site:  # fmt: skip
    """A block of an image encoder; sizes are added to the logits as logarithms."""
    B, N, _ = x.shape
    q, k = (x[:, None, :, :0] if t is None else t for t in (q, k))
    protect = torch.zeros(B, N, dtype=torch.bool)
    protect[:, list(protected)] = True
    given: dict[str, Any] = {"layer": 3, "depth": 12, "anchor": torch.zeros(B, dtype=torch.long)}
    given |= {"bias": None if size is None else size.log().transpose(1, 2)[:, None]}
    size = torch.ones(B, N, 1) if size is None else size
    return Site(
        x, q, k, k if v is None else v, size, protect, n_protected=len(protected), **given | more
    )


def projector_site(x: Tensor, q: Tensor, k: Tensor, **more: Any) -> ProjectorSite:
    """Features (B,N,C) with their class token, ahead of a projector."""
    B, N, _ = x.shape
    protect = (torch.arange(N) == 0).expand(B, N)
    zeros = torch.zeros(B, dtype=torch.long)
    return ProjectorSite(
        x, q, k, k, torch.ones(B, N, 1), protect, 0, 1, tower="projector", anchor=zeros, **more
    )


def classless(x: Tensor, q: Tensor, k: Tensor, **more: Any) -> ProjectorSite:
    """What a method sees where the encoder has no class token."""
    B, N, _ = x.shape
    protect = torch.zeros(B, N, dtype=torch.bool)
    return ProjectorSite(
        x, q, k, k, torch.ones(B, N, 1), protect, 0, 1, n_protected=0, prefix=0,
        tower="projector", **more,
    )  # fmt: skip


def received_as(mean_one: Tensor, joins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and (q, k) of one channel by which token i receives `mean_one[i]`, in sum."""
    k = mean_one.log().repeat_interleave(joins)[None, None, :, None]
    x = torch.randn(1, len(mean_one), 8, generator=torch.Generator().manual_seed(0))
    return x, torch.ones_like(k), k


def language_site(
    x: Tensor, image: Tensor, q: Any = None, k: Any = None, **more: Any
) -> LanguageSite:
    """What a method sees ahead of a block; `image` (B,N) are the image's tokens."""
    none = x[:, None, :, :0]
    q, k, v = (none if t is None else t for t in (q, k, more.pop("v", k)))
    B, N, _ = x.shape
    words = int((~image).sum(1)[0])
    given: dict[str, Any] = {"size": torch.ones(B, N, 1), "anchor": torch.full((B,), N - 1)}
    given |= {"ahead": lambda: (q, k), "unrotated": lambda: (q, k), "norm": lambda x: x}
    return LanguageSite(
        x, q, k, v, protect=~image, layer=2, depth=4, n_protected=words, tower="language",
        prefix=0, causal="bias" not in more, **{**given, **more},
    )  # fmt: skip


def heads(x: Tensor, number: int) -> Tensor:
    """(B,N,C) -> (B,H,N,C/H)."""
    return x.unflatten(2, (number, -1)).transpose(1, 2)


def span(n: int, first: int, count: int) -> Tensor:
    """(1,N) True at `count` places."""
    at = torch.arange(n)
    return ((at >= first) & (at < first + count))[None]


def turned(x: Tensor, position: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary embedding of (B,H,N,D), halves paired."""
    half = x.shape[-1] // 2
    angle = position[:, None, :, None] * base ** (-torch.arange(half, device=x.device) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
