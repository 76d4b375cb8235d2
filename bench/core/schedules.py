"""How many tokens go at each layer: a constant, a list, a keep rate at given layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Block numbers; a fraction between 0 and 1 is a share of the depth, -1 is the last block.

    Raises:
        BenchError: a block that a model of this depth has not.
    """
    blocks = tuple(int(i * depth) if 0 < i < 1 else int(i) + depth * (i < 0) for i in layers)
    if any(not 0 <= i < depth for i in blocks):
        outside = [i for i, block in zip(layers, blocks, strict=True) if not 0 <= block < depth]
        raise BenchError(f"layers {outside} are outside this model's blocks 0 to {depth - 1}")
    return blocks


def _blocks(layers: Any) -> tuple[float, ...]:
    numbers = tuple(layers) if isinstance(layers, Sequence) else (layers,)
    whole = all(_is_number(i) and (0 < i < 1 or i % 1 == 0) for i in numbers)
    if not whole or not numbers or len(set(numbers)) < len(numbers):
        raise BenchError(f"layers must list block numbers, or shares of the depth, not {layers!r}")
    return tuple(float(i) if 0 < i < 1 else int(i) for i in numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        rate = self.rate
        if isinstance(rate, tuple) and len(rate) != len(layers):
            raise BenchError(
                f"keep_rate has {len(rate)} entries for {len(layers)} layers {[*layers]}"
            )
        if layer not in layers:
            return None, -1
        i = layers.index(layer)
        return rate[i] if isinstance(rate, tuple) else rate, i


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
    method: Reducer,
    r: Any = None,
    keep_rate: Any = None,
    layers: Any = None,
    *,
    depth: int = 0,
    fixed: int = 0,
) -> Schedule:
    """The schedule that `r` or `keep_rate` (with `layers`) names.

    Args:
        method: whose schedule it is.
        r: tokens to remove, an int or one a layer, or a schedule.
        keep_rate: the share to keep, or one at each of `layers`.
        layers: where; None is the usual.
        depth: blocks of the tower; 0 where it is unknown.
        fixed: how many tokens the tower never removes.

    Raises:
        BenchError: both or neither are given, a value is out of range, or it is not for `depth`.
    """
    schedule = _schedule(method, r, keep_rate, layers, fixed)
    if depth and not callable(r):
        schedule(0, depth, 1, 1)
    return schedule


def named_towers(budget: Sequence[Any]) -> list[str]:
    """The towers that the mappings among r, keep_rate and layers name."""
    mappings = [value for value in budget if isinstance(value, Mapping)]
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def for_tower(
    tower: str, method: Reducer, budget: Sequence[Any], depth: int = 0, fixed: int = 0
) -> Schedule:
    """The schedule of one tower, whose part of a mapping counts; see `as_schedule`.

    With neither an r nor a keep rate in `budget` (r, keep_rate, layers), the method's own.
    """
    r, keep_rate, layers = budget
    if r is None and keep_rate is None:
        r, keep_rate = method.budget.get("r"), method.budget.get("keep_rate")
    if layers is None and keep_rate is not None:
        layers = method.budget.get("layers")
    values = (b.get(tower) if isinstance(b, Mapping) else b for b in (r, keep_rate, layers))
    r, keep_rate, layers = values
    return as_schedule(method, r, keep_rate, layers, depth=depth, fixed=fixed)


def _schedule(method: Reducer, r: Any, keep_rate: Any, layers: Any, fixed: int) -> Schedule:
    if (r is None) == (keep_rate is None):
        raise BenchError("give either r= (tokens a layer) or keep_rate= (share kept at layers=)")
    if keep_rate is not None:
        rate = _rates(keep_rate, empties=getattr(method, "least", 1) == 0)
        at = None if layers is None else _blocks(layers)
        share = KeepOfInitial if isinstance(method, Compounding) else KeepRate
        return share(rate, at, method, fixed)
    if layers is not None and not callable(r):
        return AtLayers(_schedule(method, r, None, None, fixed), _blocks(layers))
    if callable(r):
        return r  # type: ignore[no-any-return]
    counts = r if isinstance(r, Sequence) else [r]
    if not counts or not all(_is_number(n) and isinstance(n, int) and n >= 0 for n in counts):
        raise BenchError(f"r must be an int from 0, or a list with one a layer, not {r!r}")
    return PerLayer(tuple(r)) if isinstance(r, Sequence) else Constant(r)


@dataclass(frozen=True)
class AtLayers:
    """Another schedule, at the given layers only."""

    inner: Schedule
    layers: tuple[float, ...]

    def __call__(self, layer: int, depth: int, tokens: int, initial: int) -> int:
        """What the inner schedule says, or 0."""
        count = self.inner(layer, depth, tokens, initial)
        return count if layer in blocks_of(self.layers, depth) else 0


def _rates(keep_rate: Any, empties: bool) -> float | tuple[float, ...]:
    """One rate or several; 0 is one where the method can remove all tokens."""
    many = isinstance(keep_rate, Sequence)
    rates = keep_rate if many else (keep_rate,)
    if (
        not rates
        or not all(_is_number(rate) and 0 <= rate <= 1 for rate in rates)
        or (0 in rates and not empties)
    ):
        edge = "[" if empties else "("
        raise BenchError(f"keep_rate must be in {edge}0, 1], or a list of such, got {keep_rate!r}")
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
