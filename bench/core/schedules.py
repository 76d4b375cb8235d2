"""How many tokens go at each layer: a constant, a list, a keep rate at given layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.core.errors import BenchError
from bench.core.kinds import Compounding
from bench.core.reducer import Reducer


class Schedule(Protocol):
    """How many tokens to remove at a layer."""

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """Removable tokens to take away at `layer`, of `tokens` now and `initial` at the start."""
        ...


def default_layers(depth: int) -> tuple[int, ...]:
    """Blocks 3, 6, 9 (0-based) of 12, and in proportion elsewhere."""
    return tuple(sorted({depth * i // 4 for i in (1, 2, 3)}))


@dataclass(frozen=True)
class Constant:
    """Remove `r` tokens at every layer (as many as there are, at the end)."""

    r: int

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """`r`, whatever the layer."""
        return self.r


@dataclass(frozen=True)
class PerLayer:
    """Remove `counts[layer]` tokens at each layer."""

    counts: tuple[int, ...]

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """The layer's entry; the list must have one for each block."""
        if len(self.counts) != depth:
            raise BenchError(f"r has {len(self.counts)} entries but the model has {depth} blocks")
        return self.counts[layer]


def blocks_of(layers: Sequence[float], depth: int) -> tuple[int, ...]:
    """Block numbers; a fraction between 0 and 1 is a share of the depth, -1 is the last block."""
    return tuple(int(i * depth) if 0 < i < 1 else int(i) + depth * (i < 0) for i in layers)


def _blocks(layers: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(i) if 0 < i < 1 else int(i) for i in layers)


@dataclass(frozen=True)
class KeepRate:
    """Keep a share of the current removable tokens at each of `layers`.

    Double arithmetic with its artefacts, as in the EViT code: 0.55 * 100 keeps 56.

    Attributes:
        method: rounds, by its `kept`.
        fixed: tokens that are never removed, which some authors count in.
    """

    rate: float | tuple[float, ...]
    layers: tuple[float, ...] | None = None
    method: Reducer = Reducer()  # noqa: RUF009
    fixed: int = 0

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """Tokens to remove; 0 at the other layers."""
        rate, _ = self.at(layer, depth)
        return 0 if rate is None else tokens - self.method.kept(rate, tokens, self.fixed)

    def at(self, layer: int, depth: int) -> tuple[float | None, int]:
        """The keep rate of this layer (None: no reduction) and its position in the list."""
        layers = default_layers(depth) if self.layers is None else blocks_of(self.layers, depth)
        outside = [i for i in layers if not 0 <= i < depth]
        if outside:
            raise BenchError(f"layers {outside} are outside this model's blocks 0 to {depth - 1}")
        if layer not in layers:
            return None, -1
        i = layers.index(layer)
        if isinstance(self.rate, tuple):
            if len(self.rate) != len(layers):
                raise BenchError(f"{len(self.rate)} keep rates for {len(layers)} layers {layers}")
            return self.rate[i], i
        return self.rate, i


@dataclass(frozen=True)
class KeepOfInitial(KeepRate):
    """Keep `floor(rate**(i+1) * initial)` tokens at the i-th of `layers`.

    A fraction of the tokens that the model started with, as in the TopK and DynamicViT codes.
    """

    method: Reducer = Compounding()  # noqa: RUF009

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """Tokens to remove; 0 at the other layers."""
        rate, i = self.at(layer, depth)
        if rate is None:
            return 0
        rate = rate if isinstance(self.rate, tuple) else rate ** (i + 1)
        return max(tokens - self.method.kept(rate, initial, self.fixed), 0)


def as_schedule(
    method: Reducer, r: Any = None, keep_rate: Any = None, layers: Any = None, fixed: int = 0
) -> Schedule:
    """The schedule that `r` or `keep_rate` (with `layers`) names.

    `fixed` is how many tokens the tower never removes.

    Raises:
        BenchError: both or neither are given, a value is out of range, or `layers` lacks a rate.
    """
    if (r is None) == (keep_rate is None):
        raise BenchError("give either r= (tokens a layer) or keep_rate= (share kept at layers=)")
    if keep_rate is not None:
        rate = _rates(keep_rate, empties=getattr(method, "least", 1) == 0)
        at = None if layers is None else _blocks(layers)
        share = KeepOfInitial if isinstance(method, Compounding) else KeepRate
        return share(rate, at, method, fixed)
    if layers is not None and not callable(r):
        return AtLayers(as_schedule(method, r), _blocks(layers))
    if isinstance(r, bool) or (not isinstance(r, int | Sequence) and not callable(r)):
        raise BenchError(f"r must be an int, a list with one int a layer, or a schedule, not {r!r}")
    if callable(r):
        return r  # type: ignore[no-any-return]
    if isinstance(r, int):
        if r < 0:
            raise BenchError(f"r must not be negative, got {r}")
        return Constant(r)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in r):
        raise BenchError(f"r must list one non-negative int a layer, got {list(r)}")
    return PerLayer(tuple(r))


@dataclass(frozen=True)
class AtLayers:
    """Another schedule, at the given layers only."""

    inner: Schedule
    layers: tuple[float, ...]

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """What the inner schedule says, or 0."""
        here = layer in blocks_of(self.layers, depth)
        return self.inner(layer, depth, tokens, initial) if here else 0


def _rates(keep_rate: Any, empties: bool) -> float | tuple[float, ...]:
    """One rate or several; 0 is one where the method can remove all tokens."""
    many = isinstance(keep_rate, Sequence)
    rates = tuple(keep_rate) if many else (keep_rate,)
    for rate in rates:
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not number or not 0 <= rate <= 1 or (rate == 0 and not empties):
            raise BenchError(f"keep_rate must be in {'[' if empties else '('}0, 1], got {rate!r}")
    return tuple(float(v) for v in rates) if many else float(keep_rate)


def removes_nothing(schedule: Schedule) -> bool:
    """True when the schedule can be seen to remove no token at any layer."""
    if isinstance(schedule, Constant):
        return schedule.r == 0
    if isinstance(schedule, PerLayer):
        return not any(schedule.counts)
    if isinstance(schedule, KeepRate):
        rates = schedule.rate if isinstance(schedule.rate, tuple) else (schedule.rate,)
        return all(rate == 1 for rate in rates)
    return False
