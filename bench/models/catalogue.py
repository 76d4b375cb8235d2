"""Models by name: what to type, how it is loaded, and where its weights come from.

Names: `embedded:vit-fashion` (trained here, in the repository), `timm:deit_small_patch16_224`,
`timm:NAME@FILE` (weights from a file), a Hugging Face id such as `openai/clip-vit-base-patch16`
(`hf:` in front is optional), or a folder written by `save_pretrained`. With random weights nothing
is downloaded: cost columns need shapes only.

    bench.models.load("timm:vit_tiny_patch16_224", random_weights=True).model

Every kind of name has a source, a file in `bench/models/sources/`, which is found by scanning. It
takes a name apart once; what can be known of the model without loading it, and the model itself,
are asked of the source. Sources import neither timm nor
transformers before a model is loaded.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from bench.core.names import check_name as check_name_of
from bench.core.scanning import defined_in, modules_of
from bench.models.loading import finish

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
        """Return the model as its library makes it; `load` places it.

        Raises:
            BenchError: weights are missing, broken or out of reach.
        """

    def check(self, random_weights: bool = False) -> None:  # noqa: B027  # most need no check
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

    def family(self) -> str:
        """Return the family whose code measures the model, of `records.sources.FAMILIES`.

        "" where nothing here tells which; it stands for all of them.
        """
        return ""

    def learned(self) -> dict[str, Path]:
        """Return the files with what methods learned with this model, by method."""
        return {}


@functools.cache
def sources() -> list[type[Source]]:
    """Return every kind of source, by precedence."""
    kinds = (cls for module in modules_of(PACKAGE) for cls in defined_in(module, Source))
    return sorted(kinds, key=lambda source: source.precedence)


def source_of(name: str) -> Source:
    """Return the source of the model called `name`; for a mistake it is the one that takes any.

    Raises:
        BenchError: the name is incomplete, or none.
    """
    check_name_of("model", name)
    return next(filter(None, (source.take(name) for source in sources())))


def listing() -> dict[str, str]:
    """Return every name, or form of a name, that a model goes by, with a line about each."""
    return {name: text for source in sources() for name, text in source.listing().items()}


def load(
    name: str,
    *,
    random_weights: bool = False,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    backend: str = "sdpa",
    seed: int = 0,
) -> Loaded:
    """Return the model called `name`, in eval mode.

    Args:
        name: see the module's first lines.
        random_weights: build from the shape alone, with weights drawn from `seed`.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16", "float16" or a torch dtype.
        backend: attention backend, "sdpa" or "eager".
        seed: of random weights.

    Raises:
        BenchError: unknown name, weights that are missing, broken or out of reach, or a model that
            no adapter covers; the message names the fix.
    """
    source = source_of(name)
    source.check(random_weights)
    return finish(source.build(random_weights, seed), device, dtype, backend)


def check_name(name: str, random_weights: bool = False) -> None:
    """Raise BenchError when no model can be meant by `name`; looks at no weights."""
    source_of(name).check(random_weights)


def fingerprint(name: str, *, random_weights: bool = False, seed: int = 0) -> str | None:
    """Return the sha256 of the weights without loading them, or None when only `load` can tell."""
    if random_weights:
        return hashlib.sha256(f"random {name} {seed}".encode()).hexdigest()
    return source_of(name).fingerprint()


def type_of(name: str) -> str:
    """Return the model type in a Hugging Face configuration, "" where there is none here."""
    return source_of(name).model_type()


def family_of(name: str) -> str:
    """Return the family whose code measures the model called `name`, see `Source.family`."""
    return source_of(name).family()


def learned(name: str) -> dict[str, Path]:
    """Return the files with what methods learned with this model (none for most), by method."""
    return source_of(name).learned()
