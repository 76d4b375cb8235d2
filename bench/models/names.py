"""Names of models: every kind of name has a source, a file in `bench/models/sources/`.

    source_of("timm:vit_tiny_patch16_224@~/weights.safetensors").fingerprint()

A source takes a name apart once; what can be known of the model without loading it, and the model
itself, are asked of the source. Sources import no heavy library before a model is loaded.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    import torch

    from bench.models.loaded import Loaded

PACKAGE = "bench.models.sources"


@dataclass(frozen=True)
class Source(ABC):
    """Where the model of one name comes from.

    Attributes:
        name: as the user typed it.
        precedence: sources are asked for a name, and listed, from the lowest to the highest. The
            highest takes any name.
    """

    name: str

    precedence: ClassVar[int] = 50

    @classmethod
    @abstractmethod
    def take(cls, name: str) -> Self | None:
        """Return the source of `name`, or None if it is of another kind; may look for folders.

        Raises:
            BenchError: the name is of this kind, and incomplete.
        """

    @classmethod
    @abstractmethod
    def listing(cls) -> Mapping[str, str]:
        """Return what names there are of this kind, or their form, with a line about each."""

    @abstractmethod
    def build(self, random_weights: bool, seed: int) -> Loaded:
        """Return the model, on the CPU or torch's default device.

        Raises:
            BenchError: weights are missing, broken or out of reach.
        """

    def check(self, random_weights: bool = False) -> None:  # noqa: B027  # most have nothing to check
        """Raise BenchError when no model can be meant by the name; looks at no weights."""

    def fingerprint(self) -> str | None:
        """Return the sha256 of the weights without loading them; None if only loading can tell.

        Raises:
            BenchError: a weights file is missing or truncated.
        """
        return None

    def model_type(self) -> str:
        """Return the model type in a Hugging Face configuration, "" where there is none here."""
        return ""

    def learned(self) -> dict[str, Path]:
        """Return the files with what methods learned with this model, by method."""
        return {}

    def load(
        self,
        random_weights: bool = False,
        device: str = "cpu",
        dtype: str | torch.dtype = "float32",
        backend: str = "sdpa",
        seed: int = 0,
    ) -> Loaded:
        """Return the model ready to run; see `bench.models.load`."""
        from bench.models.loading import finish

        self.check(random_weights)
        return finish(self.build(random_weights, seed), device, dtype, backend)


@functools.cache
def sources() -> list[type[Source]]:
    """Return every kind of source, by precedence."""
    for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        importlib.import_module(f"{PACKAGE}.{module.name}")
    return sorted(Source.__subclasses__(), key=lambda source: source.precedence)


def source_of(name: str) -> Source:
    """Return the source of the model called `name`; for a mistake it is the one that takes any.

    Raises:
        BenchError: the name is incomplete.
    """
    return next(filter(None, (source.take(name) for source in sources())))


def folder_named(name: str) -> Path | None:
    """Return the folder that a name means, None if there is none; `hf:` may stand in front."""
    folder = Path(name.removeprefix("hf:")).expanduser()
    return folder if folder.is_dir() else None


def listing() -> dict[str, str]:
    """Return every name, or form of a name, that a model goes by, with a line about each."""
    return {name: text for source in sources() for name, text in source.listing().items()}
