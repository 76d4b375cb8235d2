"""What operators a forward pass runs, with their MACs and the bytes that they move.

Seen as the counter of `macs.py` sees them, on real tensors or on the meta device, but one by one,
and with those that cost no MACs. What merges tokens is here what really runs.

    operators(model, **inputs)[0].bytes
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure import formulas, shapes
from bench.measure.macs import UncountedOperator

# Operators that move nothing, though they are no views by their schema.
_IDLE = frozenset(
    [
        "empty",
        "empty_like",
        "empty_strided",
        "empty_permuted",
        "new_empty",
        "new_empty_strided",
        "_unsafe_view",
        "detach",
        "lift",
        "lift_fresh",
        "set",
        "resize",
    ]
)
_GATHERS = frozenset(["gather", "index", "index_select", "embedding", "take", "_unsafe_index"])
_SCATTERS = frozenset(
    [
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "index_add",
        "index_copy",
        "index_put",
        "_index_put_impl",
    ]
)
_COPIES = frozenset(["clone", "_to_copy", "copy", "fill", "zero"])
_PRODUCTS = frozenset(["linear", "addmm", "mm"])
ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Operator:
    """One call of an operator.

    Attributes:
        name: as `bench.measure.formulas` calls it.
        macs: multiply-accumulates.
        bytes: of the tensors that it reads and writes; indexing reads what it gathers.
        pointwise: it maps, copies or views elements, so that a compiler can write it into a
            neighbour.
        product: (n, k, m) of a product (n,k) x (k,m) with weights; None of all other operators.
    """

    name: str
    macs: int
    bytes: int
    pointwise: bool = False
    product: tuple[int, int, int] | None = None

    @property
    def moves(self) -> bool:
        """Whether there is work in it; a view and an empty tensor are a call without."""
        return bool(self.macs or self.bytes)


def operators(model: nn.Module, *args: Any, **kwargs: Any) -> list[Operator]:
    """Run `model(*args, **kwargs)` once, in inference mode; return its operators in their order.

    Views are among them. Works inside `bench.reduced()`; the model is in eval mode.

    Raises:
        UncountedOperator: nobody knows what an operator costs.
    """
    watch = _Watch()
    with torch.inference_mode(), watch:
        model(*args, **kwargs)
    return watch.ran


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Notes each operator."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.ran: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            raise _unknown(func)
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = _laid_out(func, shapes.run(func, args, kwargs))
        self.ran.append(_operator(func, args, kwargs, out))
        return out


def _unknown(func: Any) -> UncountedOperator:
    return UncountedOperator(f"operator {func} has no MAC formula, so nobody knows what it takes")


@functools.cache
def _is_composite(func: Any) -> bool:
    known = formulas.is_counted(func) or func is torch.ops.prim.device.default
    return not known and bool(func._can_decompose())


def _laid_out(func: Any, out: Any) -> Any:
    """Return what an operator gave; without values attention's (B,H,N,D) as real kernels lay it.

    They write a token's heads side by side, so that no copy follows.
    """
    if formulas.name_of(func) != ATTENTION or not out.is_meta:
        return out
    return out.transpose(1, 2).contiguous().transpose(1, 2) if out.dim() == 4 else out


def _operator(func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> Operator:
    """Return what one call costs."""
    name = formulas.name_of(func)
    declared = func._schema.arguments[len(args) :]
    rest = (kwargs.get(argument.name, argument.default_value) for argument in declared)
    macs = formulas.macs_of(func, [*args, *rest], out)
    if macs is None:
        raise _unknown(func)
    written = [*_tensors(out)]
    if func.is_view or name in _IDLE or not written:
        return Operator(name, 0, 0, pointwise=True)
    read = [*_tensors((*args, *kwargs.values()))]
    moved = _traffic(func, name, read, written)
    return Operator(name, macs, moved, _is_pointwise(name), _product(name, macs, written[0]))


def _product(name: str, macs: int, out: Tensor) -> tuple[int, int, int] | None:
    """Return (n, k, m) of a product with weights, from its result (…,m)."""
    if name not in _PRODUCTS or not out.numel():
        return None
    m = int(out.shape[-1])
    return out.numel() // m, macs // out.numel(), m


def _traffic(func: Any, name: str, read: list[Tensor], written: list[Tensor]) -> int:
    """Return the bytes that an operator reads and writes."""
    if name in _GATHERS:
        read = [*read[1:], *written]  # of its source only what it gathers
    elif func._schema.is_mutable and name in _COPIES | _SCATTERS:
        read = read[1:]  # its target is written, not read; a scatter writes as much as it is given
        written = read[-1:] if name in _SCATTERS else written
    return sum(map(_bytes, [*read, *written]))


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory: what is expanded is there once."""
    kept = (n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
    return prod(kept) * tensor.element_size() if tensor.numel() else 0


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


@functools.cache
def _is_pointwise(name: str) -> bool:
    packet = None if "::" in name else getattr(torch.ops.aten, name, None)
    overloads = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    return name in _COPIES or any(torch.Tag.pointwise in o.tags for o in overloads)
