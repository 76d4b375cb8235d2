"""What an adapter tells the harness: where the tokens of a model live, and how a block is split.

A `Tower` is one stack of Transformer blocks over one token sequence. It never knows which method
runs. Each block is split in two: `attend` (up to the residual add after attention) and `feed` (the
rest); methods act in between.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.errors import Unsupported
from bench.core.site import Site


@contextlib.contextmanager
def override(target: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on this one instance and put it back exactly as it was."""
    had = name in target.__dict__
    old = target.__dict__.get(name)
    object.__setattr__(target, name, value)
    try:
        yield
    finally:
        if had:
            object.__setattr__(target, name, old)
        else:
            object.__delattr__(target, name)


def original(module: Any, name: str = "forward") -> Callable[..., Any]:
    """The class's own method, bound: what an override calls to get the plain behaviour."""
    return getattr(type(module), name).__get__(module)  # type: ignore[no-any-return]


@contextlib.contextmanager
def without(module: Any, mask: str) -> Iterator[None]:
    """Leave out a mask that hides nothing: whether it does is read from its values."""

    def forward(*args: Any, **kw: Any) -> Any:
        kw.pop(mask, None)
        return original(module)(*args, **kw)

    with override(module, "forward", forward):
        yield


class Run(Protocol):
    """What a tower sees of the reduced pass that goes through it.

    Attributes:
        input_ids: (B,N) token ids that the pass began with, where the tower's embedding saw them.
        size: (B,M,1) how many input tokens each present token stands for.
    """

    input_ids: Tensor | None
    size: Tensor

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        inner: Callable[..., Tensor],
        fused: bool,
    ) -> Tensor:
        """The attention `inner(q, k, v, mask, scale)` with the sizes in its mask. (B,H,M,D)."""

    def size_bias(self, dtype: torch.dtype) -> Tensor | None:
        """(B,1,1,M) to add to the logits of whoever attends to these tokens, or None."""

    def restore(self, x: Tensor) -> Tensor:
        """(B,M,C) -> (B,N,C): at each input position the token that stands for it."""


class Tower(ABC):
    """One stack of blocks over one sequence of tokens.

    Attributes:
        name: "vision", "text", "projector" (between an image encoder and a language model) or
            "language".
        blocks: the blocks, in order.
        pass_class: the reduced pass that goes through it, made of the tower and its `Reduction`s.
        site_class: what methods look at in it.
        prefix: leading tokens that are no patches and are never reduced.
        n_protected: tokens a sample never loses (prefix, end of text).
        causal: the blocks attend under a causal mask, so survivors keep their order.
        masked: its attention mask says which tokens are padding, which then have size 0.
        ordered: survivors keep their order, because a later reader counts on it.
        linked: towers that are installed with this one: its tokens run through them, or it reads
            their attention.
        joins: tokens of the tower ahead that become one here.
        restores: a later reader counts on the original positions (end-of-text look-up, plain mean).
        mappers: parts of the image encoder that belong to a projector.
        averages: the model reads its patches at the end, beside what is protected.
        fixed: why it is never reduced, for a tower that is there to be counted only.
        attn_parts, mlp_parts: names of the submodules that a block applies in turn, on the two
            residual branches (the second counter reads their sizes); of nested ones their paths.
        cross_parts: likewise on a branch between them, which reads another sequence.
    """

    name: str
    pass_class: ClassVar[type[Any]]
    site_class: type[Site] = Site
    blocks: Sequence[nn.Module]
    prefix: int = 1
    n_protected: int = 1
    causal: bool = False
    masked: bool = False
    ordered: bool = False
    linked: tuple[str, ...] = ()
    joins: int = 1
    restores: bool = False
    mappers: Sequence[nn.Module] = ()
    averages: bool = False
    attn_parts: tuple[str, ...] = ()
    mlp_parts: tuple[str, ...] = ()
    cross_parts: tuple[str, ...] = ()
    fixed: str = ""

    @property
    def reads_patches(self) -> bool:
        """Whether the model reads patches at the end, so that one has to stay."""
        return self.averages or not self.n_protected

    @property
    def width(self) -> int:
        """Channels of a token, read off the first norm."""
        return int(getattr(self.blocks[0], self.attn_parts[0]).weight.shape[0])

    def start(self, reductions: Sequence[Any]) -> Any:
        """The pass that runs these methods here."""
        return self.pass_class(self, reductions)

    @abstractmethod
    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """First half of a block: (B,N,C) -> (B,N,C), leaving q, k, v in `run`."""

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """Second half of a block: (B,N,C) -> (B,N,C)."""
        y = x
        for name in self.mlp_parts:
            y = getattr(block, name)(y)
        return x + self.scaled(block, y, 1)

    def scaled(self, block: Any, y: Tensor, branch: int) -> Tensor:
        """What a residual branch adds, of its last part's output: 0 attention, 1 MLP."""
        return y

    def reads(self, args: Sequence[Any], kw: Mapping[str, Any]) -> int:
        """Tokens of another sequence that a block reads, of its arguments after the first."""
        return 0

    def on_places(self, block: Any) -> Mapping[str, int]:
        """Submodules of a block that run on places and not on tokens: on how many rows, by path."""
        return {}

    def counts(self, x: Tensor, y: Tensor, kw: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Tokens into a block (B,N,C) and out of it (B,M,C), of each sequence that it holds."""
        return [(x.shape[1], y.shape[1])]

    def windows(self, layer: int, kw: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Queries and keys in each window of a block's attention; empty where all tokens meet."""
        return []

    def watching(self) -> AbstractContextManager[None]:
        """While a plain pass runs: note what `counts` asks of the tower's input."""
        return contextlib.nullcontext()

    @abstractmethod
    def install(self, run: Run) -> AbstractContextManager[None]:
        """Everything a reduced pass needs besides the blocks: attention tap, read-out."""

    def anchor(self, run: Run, x: Tensor) -> Tensor | None:
        """(B,) position of the token that is read out, at the first block; None without one."""
        return None

    @property
    def has_anchor(self) -> bool:
        """Whether the tower has a class or end-of-text token."""
        return False

    @property
    def lacks_anchor(self) -> str:
        """Why there is none, for messages."""
        where = "image encoder" if "vision" in self.linked else f"{self.name} tower"
        return f"this model's {where} has none"

    def grid(self, patches: int) -> tuple[int, int] | None:
        """(rows, columns) of the patch grid, or None (text; not a grid)."""
        side = int(patches**0.5)
        return (side, side) if self.name == "vision" and side * side == patches else None

    def resize(self, size: Callable[..., Any]) -> AbstractContextManager[None]:
        """Feed the tower smaller images, its position table resampled; `size` maps the shape."""
        raise Unsupported(f"the {self.name} tower takes no images, so its input cannot be resized")


def shrink(image: Tensor, to: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize of (B,3,H,W), in float32: torch has no other on a CPU."""
    if tuple(image.shape[-2:]) == to:
        return image
    small = F.interpolate(image.float(), to, mode="bicubic", align_corners=False, antialias=True)
    return small.to(image.dtype)
