"""Passes through encoders with words: one whose blocks read an image, one of words and patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bench.engine.forward import Pass

if TYPE_CHECKING:
    from bench.engine.families.blip import BlipTextTower


class ReadingPass(Pass):
    """The pass of a text encoder whose blocks read an image between attention and MLP.

    Attributes:
        states: (B,M,C') tokens of the image encoder, while a block runs.
    """

    tower: BlipTextTower
    states: Tensor | None = None

    def block(
        self,
        layer: int,
        block: nn.Module,
        x: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kw: Any,
    ) -> Tensor:
        """One block: attend, reduce, read, feed. (B,N,C) -> (B,M,C)."""
        self.states = encoder_hidden_states
        try:
            return super().block(layer, block, x, **kw)
        finally:
            self.states = None  # an image's tokens are not held beyond the block

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """Read, then the MLP."""
        return self.tower.feed_reading(block, x, self.states)


class JointPass(Pass):
    """The pass through an encoder of words and patches, whose blocks answer with tuples (ViLT)."""

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Any:
        """One block: attend, reduce, feed. (B,N,C) -> ((B,M,C),)."""
        return (super().block(layer, block, x, *args, **kw),)
