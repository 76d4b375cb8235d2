"""Adapters: where the tokens of each model family live. They never know which method runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.core.errors import Unsupported
from bench.engine.families.blip import BlipAdapter
from bench.engine.families.hf import HuggingFaceAdapter
from bench.engine.families.timm_vit import TimmVitAdapter
from bench.engine.families.vilt import ViltAdapter
from bench.engine.families.vlm import MultimodalAdapter

if TYPE_CHECKING:
    from typing import Protocol

    from torch import nn

    from bench.engine.tower import Tower

    class Adapter(Protocol):
        """Finds the towers of the models it knows."""

        @property
        def supports(self) -> tuple[str, ...]:
            """The families, for messages."""

        def matches(self, model: nn.Module) -> bool:
            """Whether this adapter knows the model."""

        def towers(self, model: nn.Module) -> dict[str, Tower]:
            """The towers by name."""


def adapters() -> list[Adapter]:
    """One instance of every adapter."""
    return [
        TimmVitAdapter(),
        MultimodalAdapter(),
        BlipAdapter(),
        ViltAdapter(),
        HuggingFaceAdapter(),
    ]


def supported() -> list[str]:
    """Model families that can be reduced, for messages and listings."""
    return [name for adapter in adapters() for name in adapter.supports]


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter that knows `model`.

    Raises:
        Unsupported: none does; the message lists what is supported.
    """
    for adapter in adapters():
        if adapter.matches(model):
            return adapter
    raise Unsupported(
        f"no adapter for {type(model).__module__}.{type(model).__name__}; supported: "
        + "; ".join(supported())
    )
