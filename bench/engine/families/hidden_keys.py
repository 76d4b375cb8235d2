"""Keys of the KV cache that methods hide from a new token: they stay there, and are not attended.

From the block on ahead of which a method acts, attention gets the keys and values that remain
visible, gathered anew in each block and for each token.

Shape suffixes: B batch, H heads, K keys in a block's cache, S visible ones, D channels a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import observe
from bench.core.errors import Unsupported
from bench.core.site import DecodeSite
from bench.engine.masks import additive
from bench.engine.reduction import Reduction

if TYPE_CHECKING:
    from bench.engine.families.decoder import LanguagePass
    from bench.engine.families.language import LanguageTower


@dataclass
class Act:
    """A method that acts on the new tokens after a prompt.

    Attributes:
        image: (B,N) which of the prompt's tokens in the cache are the image's.
        size: (B,N,1) how many tokens each of them stands for.
        counts: how many are the image's, by sample.
        hidden: how many of those the schedule hides, by sample.
        memories: what the method noted at earlier tokens, by sample.
    """

    image: Tensor
    size: Tensor
    counts: list[int]
    hidden: list[int]
    memories: list[dict[str, Tensor]]


@dataclass
class HiddenKeys:
    """What methods hide of the cache from a new token.

    Attributes:
        acting: the methods that act on the latest prompt's answer, by layer.
        shown: (B,S) keys that the present block and those behind attend to, -1 in an empty slot;
            None while they attend to all.
        padded: some slots are empty, since samples see unequally many keys.
    """

    acting: dict[int, Act] = field(default_factory=dict)
    shown: Tensor | None = None
    padded: bool = False

    def step(self, run: LanguagePass, reduction: Reduction, layer: int, x: Tensor) -> None:
        """Ahead of a block: note what a prompt has there; let the method decide for a new token."""
        if run.prompt is not None:
            counts = run.counts
            r = [reduction.count(layer, run.depth, n, n, None) for n in counts]
            if any(r):
                memories: list[dict[str, Tensor]] = [{} for _ in counts]
                self.acting[layer] = Act(run.prompt.image, run.prompt.size, counts, r, memories)
        elif run.decoding and layer in self.acting:
            self._check(run, reduction, layer)
            for observer in observe.OBSERVERS:
                observer.enter("reduction")
            self.shown = self._decided(run, reduction, layer, x)
            for observer in observe.OBSERVERS:
                observer.exit("reduction")

    def _check(self, run: LanguagePass, reduction: Reduction, layer: int) -> None:
        """Raise Unsupported where the attention of the block before is not that of these keys."""
        name, act = reduction.reducer.name, self.acting[layer]
        if layer == 0:
            raise Unsupported(
                f"method '{name}' reads attention, and no block runs ahead of block 0"
            )
        if len(self.acting) > 1 or self.shown is not None:
            raise Unsupported(f"method '{name}' alone can hide keys, and from one block on alone")
        if any(removal.layer >= layer for removal in run.removals):
            raise Unsupported(
                f"method '{name}' reads attention of block {layer - 1}, and image tokens leave the "
                "prompt behind it: let them leave in an earlier block"
            )
        assert run.entered is not None and run.qkv is not None
        expected = act.image.shape[1] + run.past + 1 - run.entered.shape[1]
        if run.qkv[1].shape[2] != expected:
            raise Unsupported(f"method '{name}' needs a cache that holds all tokens in each block")

    def _decided(
        self, run: LanguagePass, reduction: Reduction, layer: int, x: Tensor
    ) -> Tensor | None:
        """(B,S) the keys that stay visible; None for all of them."""
        act = self.acting[layer]
        sites = self._sites(run, act, layer, x)
        shown = [
            reduction.reducer.plan(site, r).keep if r else _all(site)
            for site, r in zip(sites, act.hidden, strict=True)
        ]
        counts = [keys.shape[1] for keys in shown]
        if min(counts) == sites[0].k.shape[2]:
            return None
        self.padded, most = len(set(counts)) > 1, max(counts)
        return torch.cat([F.pad(keys, (0, most - keys.shape[1]), value=-1) for keys in shown])

    def _sites(self, run: LanguagePass, act: Act, layer: int, x: Tensor) -> list[DecodeSite]:
        """What the method looks at, sample by sample."""
        assert run.qkv is not None
        q, k, v = run.qkv
        new = k.shape[2] - act.image.shape[1]
        protect = F.pad(~act.image, (0, new), value=True)
        size = F.pad(act.size, (0, 0, 0, new), value=1.0)
        held: dict[str, Any] = {"x": x, "q": q, "k": k, "v": v, "size": size, "protect": protect}
        bias = additive(run.mask, q.dtype)
        if bias is not None:
            held["bias"] = bias.expand(len(x), -1, -1, -1)
        return [
            DecodeSite(
                **{name: t[b : b + 1] for name, t in held.items()},
                layer=layer,
                depth=run.depth,
                n_protected=k.shape[2] - image,
                tower=run.tower.name,
                scale=run.scale,
                prefix=0,
                draw=run.draw,
                memory=memory,
            )
            for b, (image, memory) in enumerate(zip(act.counts, act.memories, strict=True))
        ]

    def visible(
        self, k: Tensor, v: Tensor, mask: Tensor | None, tower: LanguageTower
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B,H,K,D) and the mask (B,1,1,K) -> those of the S visible keys."""
        assert self.shown is not None
        rows = self.shown.clamp(min=0)
        k, v = (t.take_along_dim(rows[:, None, :, None], 2) for t in (k, v))
        if mask is not None:
            mask = mask.expand(len(rows), -1, -1, -1).take_along_dim(rows[:, None, None], 3)
        if self.padded:
            filled = tower.mask((self.shown >= 0)[:, None, None], k)
            mask = filled if mask is None else _both(mask, filled)
        return k, v, mask


def _all(site: DecodeSite) -> Tensor:
    return torch.arange(site.k.shape[2], device=site.k.device)[None]


def _both(a: Any, b: Any) -> Tensor:
    """What two masks of one kind hide together."""
    return a & b if a.dtype == torch.bool else a + b  # type: ignore[no-any-return]
