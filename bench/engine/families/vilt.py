"""Adapter for ViLT: one encoder over the words of a text and, after them, the patches of an image.

Patches are reduced; the words and the image's class token stay. What is read out is the text's
first token. Two images with one text go through the encoder in turn, each in a pass of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.engine.attention import own_projections
from bench.engine.families import Adapter
from bench.engine.forward import Pass
from bench.engine.tower import Run, Tower, original, override, shrink


class ViltAdapter(Adapter):
    """ViLT of transformers, alone or inside a larger model."""

    supports = ("transformers ViLT (vision: the image's tokens)",)

    def matches(self, model: nn.Module) -> bool:
        """Whether the model is a ViLT or holds one as transformers' own do."""
        return type(_encoder(model)).__name__ == "ViltModel"

    def towers(self, model: Any) -> dict[str, Tower]:
        """The one tower."""
        return {"vision": ViltTower(_encoder(model))}


def _encoder(model: Any) -> Any:
    return getattr(model, "vilt", model)


class JointPass(Pass):
    """The pass through an encoder of words and patches, whose blocks answer with tuples."""

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Any:
        """One block: attend, reduce, feed. (B,N,C) -> ((B,M,C),)."""
        return (super().block(layer, block, x, *args, **kw),)


class ViltTower(Tower):
    """Words and patches in one sequence; the prefix is as long as the text of the present pass."""

    name = "vision"
    pass_class = JointPass
    masked = True
    attn_parts = ("layernorm_before", "attention")
    mlp_parts = ("layernorm_after", "intermediate", "output")

    def __init__(self, part: Any) -> None:
        """Find the blocks; each pass sets how long its prefix is and the shape of its image."""
        self.part, self.blocks = part, part.encoder.layer
        self.shape: tuple[int, int] | None = None

    @property
    def has_anchor(self) -> bool:
        """The text's first token, which the pooler reads."""
        return True

    def anchor(self, run: Run, x: Tensor) -> Tensor:
        """Position 0 of every sample."""
        return x.new_zeros(x.shape[0], dtype=torch.long)

    def grid(self, patches: int) -> tuple[int, int] | None:
        """The patches' rows and columns, where every image of the batch fills them."""
        return self.shape if self.shape and self.shape[0] * self.shape[1] == patches else None

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """Norm, attention, its output layer, residual add."""
        y = block.layernorm_before(x)
        y = own_projections(block.attention.attention, y, run, mask)
        return block.attention.output(y, x) + x  # type: ignore[no-any-return]

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Norm, MLP; its last layer adds the residual itself."""
        y = block.intermediate(block.layernorm_after(x))
        return block.output(y, x)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Note the text's length where the sequence is made, and put the patches in their order."""
        embed = self.part.embeddings
        with contextlib.ExitStack() as stack:
            # a smaller image (`resize`) may be made here already: go on to that
            inner = embed.__dict__.get("forward", original(embed))
            stack.enter_context(override(embed, "forward", partial(self._embedded, inner)))
            if "visual_embed" not in embed.__dict__:  # without values they are in order already
                ordered = partial(self._ordered, embed)
                stack.enter_context(override(embed, "visual_embed", ordered))
            yield

    def _embedded(self, inner: Callable[..., Any], input_ids: Any, *args: Any, **kw: Any) -> Any:
        self.shape = None
        x, mask = inner(input_ids, *args, **kw)
        if x.is_meta:  # as `bench.models.joint.on_meta` made it
            rows, columns = args[2].shape[-2:]
            patch = self.part.config.patch_size
            self.shape = rows // patch, columns // patch
        words = args[0].shape[1]  # the text's attention mask
        self.prefix = self.n_protected = words + 1
        return x, mask

    def _ordered(self, embed: Any, *args: Any, **kw: Any) -> Any:
        """Patches from left to right, then downwards; padding last.

        The model draws them in random order, which its attention does not see; methods would.
        """
        x, mask, (index, size) = original(embed, "visual_embed")(*args, **kw)
        place = index[..., 0] * size[1] + index[..., 1]
        place = place.masked_fill(mask[:, 1:] == 0, size[0] * size[1])
        order = place.argsort(dim=1, stable=True)
        complete = order.shape[1] == size[0] * size[1] and bool((mask != 0).all())
        self.shape = size if complete else None
        order = torch.cat([torch.zeros_like(order[:, :1]), order + 1], 1)
        x = x.gather(1, order[..., None].expand_as(x))
        index = index.gather(1, (order[:, 1:, None] - 1).expand_as(index))
        return x, mask.gather(1, order), (index, size)

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Shrink image and pixel mask; the model resamples its position table by itself."""
        embed = self.part.embeddings
        inner = embed.__dict__.get("forward", original(embed))  # on the meta device another
        with override(embed, "forward", partial(_smaller, embed, inner, size)):
            yield


def _smaller(
    embed: Any,
    inner: Callable[..., Any],
    size: Callable[..., Any],
    input_ids: Any,
    attention_mask: Tensor,
    token_type_ids: Any,
    pixel_values: Tensor | None,
    pixel_mask: Tensor,
    *args: Any,
    **kw: Any,
) -> Any:
    if pixel_values is not None:
        patch = embed.patch_embeddings.patch_size
        patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        pixel_values = shrink(pixel_values, size(*pixel_values.shape[-2:], patch))
        small = F.interpolate(pixel_mask[:, None].float(), pixel_values.shape[-2:])
        pixel_mask = small[:, 0].to(pixel_mask.dtype)
    return inner(input_ids, attention_mask, token_type_ids, pixel_values, pixel_mask, *args, **kw)
