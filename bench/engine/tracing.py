"""`trace()`: token counts per block, and which input tokens each output token stands for."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.core import BenchError, Observer, observing
from bench.engine.families import adapter_for

if TYPE_CHECKING:
    from bench.engine.tower import Tower


@dataclass
class Trace(Observer):
    """What happened to the tokens in one forward pass.

    Attributes:
        tokens: per tower, one (n_in, n_out) a block: tokens in its attention and in its MLP,
            appended ones (cross tokens, fused tokens) counted.
        layers: per tower, the block of each of these.
        samples: per tower, how many sequences ran (images, crops of images, texts).
        packed: per tower, how many sequences of their own lengths lie in each of these (images of
            Qwen's models); `tokens` then has so many entries a block.
        reads: per tower, tokens of another sequence that each block's cross-attention reads.
        pairs: per tower, for each block whose attention is within windows, queries and keys in
            each window.
        layer_slots: per tower, for each block that reduced, (layer, (B,n_before) output slot of
            each token, -1 where dropped).
        sizes: per tower, (layer, (B,n_after,1) input tokens represented).
        soft: per tower, whether a token became part of several; `slots` has the heaviest share.
    """

    tokens: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    layers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    samples: dict[str, int] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)
    reads: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    pairs: dict[str, dict[int, list[tuple[int, int]]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    layer_slots: dict[str, list[tuple[int, Tensor]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    sizes: dict[str, list[tuple[int, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    soft: dict[str, bool] = field(default_factory=lambda: defaultdict(bool))

    def block(self, tower: str, layer: int, n_in: int, n_out: int) -> None:
        """Note a block's token counts."""
        self.tokens[tower].append((n_in, n_out))
        self.layers[tower].append(layer)

    def windows(self, tower: str, layer: int, pairs: Sequence[tuple[int, int]]) -> None:
        """Note what a block's attention sees in its windows."""
        self.pairs[tower].setdefault(layer, []).extend(pairs)

    def slots(self, tower: str, layer: int, slots: Tensor, size: Tensor, soft: bool) -> None:
        """Note where a reduction put each token."""
        self.soft[tower] |= soft
        self.layer_slots[tower].append((layer, slots.clone()))
        self.sizes[tower].append((layer, size.clone()))

    def position(self, tower: str = "vision", layer: int | None = None) -> Tensor | None:
        """(B,N) slot of each input token after `layer` (default: the last), -1 where dropped.

        None when nothing was reduced up to there. Patches count from left to right, then downwards.

        Raises:
            BenchError: images of their own sizes ran in one pass.
        """
        if self.packed.get(tower, 1) > 1:
            raise BenchError("several images lie packed in one sequence: trace one at a time")
        at: Tensor | None = None
        for i, slots in self.layer_slots[tower]:
            if layer is not None and i > layer:
                break
            at = slots if at is None else torch.where(at < 0, -1, slots.gather(1, at.clamp(min=0)))
        return at

    def source(self, tower: str = "vision", layer: int | None = None) -> Tensor:
        """(B,M,N) bool: which input tokens each output token stands for."""
        at = self.position(tower, layer)
        if at is None:
            n = self.tokens[tower][0][0]
            return torch.eye(n, dtype=torch.bool)[None]
        last = [s for i, s in self.sizes[tower] if layer is None or i <= layer][-1]
        return torch.arange(last.shape[1], device=at.device)[None, :, None] == at[:, None]


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """Run one forward pass of `model` (inside or outside `reduced()`) and watch its tokens.

    Args:
        model: a model that an adapter knows.
        *args: what its forward takes.
        **kwargs: likewise.
    """
    seen, plain = Trace(), Trace()
    with torch.no_grad(), observing(seen), _block_counts(model, plain):
        model(*args, **kwargs)
    seen.samples, seen.packed, seen.reads = plain.samples, plain.packed, plain.reads
    for name, tokens in plain.tokens.items():
        if name not in seen.tokens:  # a tower without reduction is not observed
            seen.tokens[name], seen.layers[name] = tokens, plain.layers[name]
            seen.pairs[name] = plain.pairs[name]
    return seen


@contextlib.contextmanager
def _block_counts(model: nn.Module, into: Trace) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, tower in adapter_for(model).towers(model).items():
            stack.enter_context(tower.watching())
            for layer, block in enumerate(tower.blocks):
                note = partial(_note, into, name, layer, tower)
                handle = block.register_forward_hook(note, with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _note(
    into: Trace, name: str, layer: int, tower: Tower, _: Any, args: Any, kw: Any, out: Any
) -> None:
    y = out[0] if isinstance(out, tuple) else out
    counts = tower.counts(args[0], y, kw)
    into.packed[name] = len(counts)
    into.samples[name] = 1 if args[0].dim() < 3 else args[0].shape[0]
    for n_in, n_out in counts:
        into.reads[name].append(tower.reads(args[1:], kw))
        into.block(name, layer, n_in, n_out)
    if pairs := tower.windows(layer, kw):
        into.windows(name, layer, pairs)
