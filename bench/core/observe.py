"""Who watches a reduced forward pass, and how batches are numbered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor


class Observer:
    """Something that watches a reduced forward pass: a counter, a timer, a trace.

    It overrides what it wants to know. One with a method `slots` is also told which token went
    where, which is worked out for it alone.
    """

    def enter(self, region: str) -> None:
        """A region begins: "reduction", or within it "merge", where a plan is applied."""

    def exit(self, region: str) -> None:
        """The region ends."""

    def merged(self, macs: int) -> None:
        """A plan was applied; its merge costs so many multiply-accumulates by convention."""

    def block(self, tower: str, layer: int, n_in: int, n_out: int) -> None:
        """A block ran: its attention on `n_in` tokens, its MLP on `n_out`."""

    def windows(self, tower: str, layer: int, pairs: Sequence[tuple[int, int]]) -> None:
        """A block ran whose attention is within windows: queries and keys in each of them."""

    def kept(self, size: Tensor) -> None:
        """A reduction left tokens of these (B,N,1) sizes; one of size 0 is an empty slot."""


OBSERVERS: list[Any] = []


@contextlib.contextmanager
def observing(observer: Any) -> Iterator[Any]:
    """Let `observer` watch every reduced forward pass in the block."""
    OBSERVERS.append(observer)
    try:
        yield observer
    finally:
        OBSERVERS.remove(observer)


DRAWS: list[dict[Any, int]] = []


def draw(key: Any) -> int:
    """The number of the batch that begins in a tower; 0 unless batches are numbered."""
    number = 0
    for counts in DRAWS[-1:]:
        number = counts.get(key, 0)
        counts[key] = number + 1
    return number


@contextlib.contextmanager
def redrawing() -> Iterator[None]:
    """Number the batches in the block from 0, in each tower: `Site.draw`.

    Random methods draw anew in each, so that one pass over a data set averages over their draws.
    """
    counts: dict[Any, int] = {}
    DRAWS.append(counts)
    try:
        yield
    finally:
        DRAWS.pop()
