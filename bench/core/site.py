"""What a method may look at: one block of one tower.

Shape suffixes: B batch, N tokens in, M tokens kept, C channels, H heads, D channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.core.errors import Unsupported

_WITH_CLASS = ("vision", "projector")


@dataclass(frozen=True)
class Site:
    """What a method may look at: one block of one tower, after attention, before the MLP.

    Methods with `before` look at a block's input instead; q, k and v are then the block before's
    (without channels ahead of the first block).

    Attributes:
        x: (B,N,C) residual stream, the attention's output already added.
        q: (B,H,N,D) queries of this block's attention (k and v alike).
        size: (B,N,1) how many input tokens each token stands for; 0 marks an empty slot.
        protect: (B,N) bool, tokens that must survive and must not receive others.
        n_protected: how many tokens a sample protects (the same for all samples).
        layer: 0-based block index; `depth` the number of blocks.
        tower: "vision", "text", "projector" or "language".
        scale: factor on the attention logits.
        bias: what was added to the logits, broadcastable to (B,H,N,N), or None.
        anchor: (B,) position of the token that is read out (class, end of text), or None.
        prefix: leading tokens that are not patches (class, distillation, registers).
        grid: (rows, columns) of the patches while they still form one, else None.
        whole: no token of this sequence was dropped or merged so far.
        draw: number of the batch in an accuracy pass, 0 elsewhere: random methods draw by it.
        window: (B,N) the window in which each token attends, -1 for one that all windows see; None
            where all tokens meet. Most blocks of Qwen2.5-VL's image encoder have windows.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    size: Tensor
    protect: Tensor
    layer: int
    depth: int
    n_protected: int = 1
    tower: str = "vision"
    scale: float | None = None
    bias: Tensor | None = None
    anchor: Tensor | None = None
    prefix: int = 1
    grid: tuple[int, int] | None = None
    whole: bool = True
    draw: int = 0
    window: Tensor | None = None

    @property
    def class_first(self) -> bool:
        """Whether the anchor is a class token, which is the first token of every sample."""
        return self.anchor is not None and self.prefix > 0 and self.tower in _WITH_CLASS

    @property
    def only_prefix(self) -> bool:
        """Whether no token behind the prefix is protected."""
        return self.n_protected <= self.prefix

    def attention(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Attention probabilities of some query rows, computed on demand.

        Args:
            rows: a slice of the N queries, or (B,) one query a sample.

        Returns:
            (B,H,rows,N), softmax over all N keys, with the bias that the block itself used.

        Raises:
            Unsupported: there is no attention to look at (q has no channels).
        """
        if not self.q.shape[-1]:
            raise Unsupported(f"no attention can be read here: {self._blind()}")
        scale = self.q.shape[-1] ** -0.5 if self.scale is None else self.scale
        if isinstance(rows, slice):
            q = self.q[:, :, rows]
        else:
            q = self.q[torch.arange(len(rows), device=rows.device), :, rows][:, :, None]
        k = self.k
        if k.shape[1] != q.shape[1]:  # grouped queries
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        logits = (q * scale) @ k.transpose(-2, -1)
        for bias in self._biases(rows):
            logits = logits + bias
        return logits.softmax(-1)

    def _blind(self) -> str:
        """Why q, k and v have no channels."""
        return f"no block of the {self.tower} tower ran ahead of block {self.layer}"

    def _biases(self, rows: slice | Tensor) -> Iterator[Tensor]:
        """What is added to the logits of these rows, one after the other."""
        bias = self.bias
        if bias is not None and bias.shape[-2] > 1 and isinstance(rows, slice):
            bias = bias[:, :, rows]
        elif bias is not None and bias.shape[-2] > 1:
            at = torch.arange(len(rows), device=bias.device)  # type: ignore[arg-type]
            bias = bias.expand(len(at), -1, -1, -1)[at, :, rows][:, :, None]
        if bias is not None:
            yield bias
        if self.window is not None:
            apart = self._apart(self.window, rows)
            yield torch.zeros_like(apart, dtype=self.q.dtype).masked_fill(apart, -torch.inf)

    def _apart(self, window: Tensor, rows: slice | Tensor) -> Tensor:
        """(B,1,rows,N) whether a query and a key lie in different windows."""
        row = window[:, rows] if isinstance(rows, slice) else window.gather(1, rows[:, None])
        row, column = row[:, None, :, None], window[:, None, None]
        return (row != column) & (row >= 0) & (column >= 0)

    def anchor_attention(self) -> Tensor:
        """(B,N) attention that the anchor (class or end-of-text token) pays, mean over heads.

        Raises:
            ValueError: the tower has no such token (methods that need one set `needs_anchor`).
        """
        if self.anchor is None:
            raise ValueError("this tower has no class or end-of-text token")
        rows = slice(0, 1) if self.class_first else self.anchor  # a slice launches nothing
        return self.attention(rows).mean(1)[:, 0]

    def received(self) -> Tensor:
        """(B,N) attention that each token receives, mean over heads and over all queries."""
        return self.attention().mean((1, 2))

    def split(self) -> tuple[Tensor, Tensor]:
        """(B,P) positions of the protected tokens, (B,N-P) of the others, each in their order."""
        order = (~self.protect).to(torch.int8).argsort(dim=1, stable=True)
        return order[:, : self.n_protected], order[:, self.n_protected :]

    def keys(self) -> Tensor:
        """(B,N,H*D) keys over the whole width, heads side by side (a view where layout permits)."""
        return self.k.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class EncoderSite(Site):
    """A block of an image encoder whose tokens go on to a language model."""


@dataclass(frozen=True, kw_only=True)
class ProjectorSite(Site):
    """The tokens between an image encoder and a language model, ahead of the projector or behind.

    Ahead of it x are the features, with their class token in front, protected, where the encoder
    has one. Behind it (methods without `before`) x are the projected tokens; a class token that
    goes no further is then a row of zeros, so that x and q have the same tokens.

    q, k and v are those of the block that made the features, or of the one that the method
    `reads`. They have no channels where the encoder's tokens were merged since, nor behind a
    Q-Former.

    Attributes:
        further: the same tokens with q, k and v of the other blocks that the method
            `also_reads`, in the order in which it names them.
        joins: patches that a token is made of, side by side (Qwen2-VL: 4) or as their mean
            (Gemma 3: 16); q, k and v are then those of the patches, `joins` after each other for
            each token.
        image_embeds: (B,N,E) the tokens in the joint space of the CLIP that the encoder came from,
            not normalised; None for a method without `reads_words`.
        text_embeds: (B,M,E) likewise the question that each image belongs to, in M segments of the
            length that CLIP reads; rows of zeros stand where it has fewer.
        frames: the tokens are so many equal consecutive parts, one a frame of a video, of which
            `grid` is that of each; 1 for an image, and once a video's frames are unequal.
    """

    further: tuple[ProjectorSite, ...] = ()
    joins: int = 1
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    frames: int = 1

    def received(self) -> Tensor:
        """(B,N) attention that each token receives, mean over heads, queries and its patches.

        Of a video the queries are those of the token's frame.
        """
        patches = super(ProjectorSite, self._apart_in_time()).received()
        return patches.reshape(len(self.x), -1, self.joins).mean(2)

    def _apart_in_time(self) -> ProjectorSite:
        """What attention needs, with each frame as a sample of its own."""
        if self.frames == 1:
            return self
        parts = (self.frames, -1)
        q, k = (t.unflatten(2, parts).transpose(1, 2).flatten(0, 1) for t in (self.q, self.k))
        window = None if self.window is None else self.window.unflatten(1, parts).flatten(0, 1)
        return replace(self, q=q, k=k, window=window, frames=1)

    def _blind(self) -> str:
        return "the tokens are not those of one of the image encoder's blocks"


@dataclass(frozen=True, kw_only=True)
class GradualSite(Site):
    """A block ahead of which a method may remove some of the tokens that are still to go.

    Attributes:
        running: (B,N) the method's running score, with that of the block before in it.
        remaining: how many blocks away the last removal of the schedule is; 0 at the last.
    """

    running: Tensor
    remaining: int


@dataclass(frozen=True, kw_only=True)
class LanguageSite(Site):
    """A block of a language model, ahead of which image tokens can be taken out of a prompt.

    The unprotected tokens are the image's; the others are words, or padding (size 0).

    Attributes:
        ahead: () -> (q, k) of this block, while `q` and `k` are the block before's; it computes the
            two projections once more.
        unrotated: () -> (q, k), as `ahead`, and without the rotation by positions.
        norm: the model's final norm.
        causal: the block attends under a causal mask that `bias` does not hold.
        start: the site at the model's input (x: embeddings; q, k, v without channels), for methods
            that compare the image's tokens with the words before any block ran; None there.
        turned: vectors (B,H,N,D), or of one sample for all, with this model's rotary embedding of
            the tokens' positions; None in a model without one.
        frames: the image's tokens are so many equal consecutive parts, one a frame of a video, with
            words in between or not; 1 for images, several videos, and behind a removal.
    """

    ahead: Callable[[], tuple[Tensor, Tensor]]
    unrotated: Callable[[], tuple[Tensor, Tensor]]
    norm: Callable[[Tensor], Tensor]
    causal: bool = False
    start: LanguageSite | None = None
    turned: Callable[[Tensor], Tensor] | None = None
    frames: int = 1

    def _biases(self, rows: slice | Tensor) -> Iterator[Tensor]:
        yield from super()._biases(rows)
        if self.causal:
            position = torch.arange(self.k.shape[2], device=self.k.device)
            row = position[rows][:, None] if isinstance(rows, slice) else rows[:, None, None, None]
            later = position > row
            yield torch.zeros_like(later, dtype=self.q.dtype).masked_fill(later, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class DecodeSite(Site):
    """A block of a language model, ahead of which keys can be hidden from one new token.

    Here N is the number of keys in the cache, the new token's among them; x (1,1,C) and q (1,H,1,D)
    are the new token's alone. The unprotected keys are the image's.

    Attributes:
        memory: what the method noted at the answer's earlier tokens, empty at its first; a method
            writes here what it wants to know at the next.
    """

    memory: MutableMapping[str, Tensor]
