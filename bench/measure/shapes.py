"""What operators give on the meta device, each shape worked out once.

There PyTorch works out in Python what a result looks like, which takes up to milliseconds an
operator; a Transformer asks for the same operators on the same shapes block after block.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

MOST = 20_000  # results that are known at a time


class _Form(NamedTuple):
    """What a tensor without values is."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class _MoreThanForm(Exception):
    """A tensor has values, or is of a special kind."""


_results: dict[Any, Any] = {}


def run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The operator's result; without values it is made as it is known to be."""
    if not _makes_new(func):
        return func(*args, **kwargs)
    try:
        # numbers become the default dtype beside integers
        call = func, torch.get_default_dtype(), _form(args), _form(tuple(kwargs.items()))
    except _MoreThanForm:
        return func(*args, **kwargs)
    if call not in _results:
        out = func(*args, **kwargs)
        _note(call, out)
        return out
    form = _results[call]
    return _made(form) if isinstance(form, _Form) else tuple(map(_made, form))


@functools.cache
def _makes_new(func: Any) -> bool:
    """Whether nothing is written to and nothing of an argument is in the result."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    return not (func.is_view or func._schema.is_mutable)


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        if not (plain and value.is_meta) or value.is_complex():
            raise _MoreThanForm
        return _Form(value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_form, value))
    return type(value), value  # 1 and 1.0 are equal and make different dtypes


def _note(call: Any, out: Any) -> None:
    """Remember a result that is a tensor, or several, without values."""
    several = isinstance(out, tuple) and all(isinstance(one, Tensor) for one in out)
    if several or isinstance(out, Tensor):
        try:
            form = _form(out)
        except _MoreThanForm:
            return
        if len(_results) >= MOST:
            _results.clear()
        _results[call] = form


def _made(form: _Form) -> Tensor:
    return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")


class KnownShapes(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """A pass on the meta device takes what is known of its operators' results."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, or make the result that is known."""
        return run(func, args, kwargs or {})
