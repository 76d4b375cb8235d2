"""Gemma's decoders, which look both ways at the image in a PaliGemma or a Gemma 3.

A PaliGemma sees its whole prompt from everywhere, and a Gemma 3 each image as a whole; otherwise
tokens see what is before them. The model makes such a mask for the prompt as it was asked, and a
token that remains behind a removal sees what it saw before, as far as that remains.

Some of Gemma 3's blocks see a window of the latest tokens alone. Removed tokens would let others
slip into it, so that a prompt and its answer have to fit into the window.

Shape suffixes: B batch, N tokens of the prompt, M tokens that remain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families.decoder import LanguagePass
from bench.engine.families.hf import Family
from bench.engine.families.language import LanguageTower, image_token_id
from bench.engine.families.prompt import Removal
from bench.engine.masks import visible, weighted


class PrefixPass(LanguagePass):
    """The state of a decoder whose mask is made ahead of it.

    Attributes:
        pattern: (B,1,N,N) which tokens of what the first block sees each may see; None under a
            causal mask.
        asked: the tokens of the prompt as it was asked.
        behind: the latest removal and (B,1,M,M) the mask behind it.
        rotaries: `rotary` by kind of block, where kinds differ.
    """

    tower: PrefixTower
    _incoming: Tensor | None = None

    def _clear(self) -> None:
        super()._clear()
        self.pattern, self._incoming = self._incoming, None
        self.behind: tuple[Removal, Tensor] | None = None
        self.rotaries: dict[str, dict[str, Any]] = {}

    def forward(self, plain: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """The language model without its head; of a mask it is told in which places are filled."""
        given, x = kw.get("attention_mask"), kw.get("inputs_embeds")
        mask = given["full_attention"] if isinstance(given, dict) else given
        n = 0 if x is None else x.shape[1]
        if mask is None or mask.dim() < 4:
            kw["attention_mask"] = mask
        elif mask.shape[-2:] == (n, n):
            self._incoming = mask if mask.dtype == torch.bool else mask == 0
            kw["attention_mask"] = visible(mask).long()
        if n > 1:
            self.asked, plain = n, partial(self._masked, plain, given)
        return super().forward(plain, *args, **kw)

    def _masked(self, plain: Callable[..., Any], given: Any, *args: Any, **kw: Any) -> Any:
        """The language model with the mask that it was given, for what is left of the prompt."""
        if self.cut is None:
            return plain(*args, **{**kw, "attention_mask": given})
        self._check_window()
        if self.pattern is None:
            return plain(*args, **kw)
        self.pattern = self._seen(self.cut.place, self.cut.filled)
        mask: Any = self.tower.mask(self.pattern, self.cut.x)
        if isinstance(given, dict):
            mask = dict.fromkeys(given, mask)
        return plain(*args, **{**kw, "attention_mask": mask})

    def _next(self, kw: dict[str, Any]) -> dict[str, Any]:
        if self.cut is not None or self.removals:
            self._check_window()
        return super()._next(kw)

    def _seen(self, place: Tensor, filled: Tensor) -> Tensor:
        """(B,1,M,M) whom each token at `place` (B,M) may see; an empty slot sees itself."""
        assert self.pattern is not None
        rows, columns = place[:, None, :, None], place[:, None, None]
        pattern = self.pattern.expand(len(place), -1, -1, -1)
        pattern = pattern.take_along_dim(rows, 2).take_along_dim(columns, 3)
        itself = torch.eye(place.shape[1], dtype=torch.bool, device=place.device)
        return (pattern & filled[:, None, None]) | itself

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        removal = self._latest(self.layer)
        if removal is not None:
            self._check_window()
        if removal is None or self.decoding or self.pattern is None:
            return super()._mask(mask, x)
        if self.behind is None or self.behind[0] is not removal:
            seen = self.tower.mask(self._seen(removal.place, removal.filled), x)
            mask = weighted(seen, removal.weight, x.dtype)
            assert mask is not None
            self.behind = removal, mask
        return self.behind[1]

    def _check_window(self) -> None:
        """Raise Unsupported where a block would see a part of what it is asked about."""
        decoded = 0 if self.entered is None else max(self.past + 1 - self.entered.shape[1], 0)
        if self.tower.window is not None and self.asked + decoded > self.tower.window:
            raise Unsupported(
                f"a prompt and its answer of {self.asked + decoded} tokens are longer than the "
                f"window of {self.tower.window} that some blocks see, which cannot be reduced"
            )

    def _arguments(self, kw: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """As elsewhere; blocks of one kind share their angles."""
        kind = self.tower.kind(self.module)
        if not self.rotary:
            self.rotaries = {}
        self.rotary = self.rotaries.get(kind, {})
        kw = super()._arguments(kw, x)
        self.rotaries[kind] = self.rotary
        return kw


class PrefixTower(LanguageTower):
    """A decoder that looks both ways at the image.

    Attributes:
        window: tokens that some of its blocks see; None where all see all.
    """

    pass_class = PrefixPass

    def __init__(self, part: Any, family: Family, model: Any, videos: bool = False) -> None:
        """Find its window.

        Raises:
            Unsupported: the model embeds another token in place of an image's, so that the
                decoder cannot tell which are.
        """
        super().__init__(part, family, model, videos)
        self.window = getattr(part.config, "sliding_window", None)
        if image_token_id(model) >= part.config.vocab_size:
            raise Unsupported("the image token of this model is not among the words it embeds")

    def kind(self, block: Any) -> str:
        """Of which kind a block is, if blocks differ."""
        return getattr(getattr(block, self.attn_parts[1]), "layer_type", None) or ""

    def rotary(self, x: Tensor, position: Tensor, block: nn.Module) -> dict[str, Any]:
        """The arguments of a block that depend on positions (B,M)."""
        kind = self.kind(block)
        if not kind:
            return super().rotary(x, position, block)
        angles = self.part.rotary_emb(x, position, kind)
        return {"position_ids": position, "position_embeddings": angles}
