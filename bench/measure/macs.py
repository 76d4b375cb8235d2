"""Count a forward pass's multiply-accumulates (MACs) as it runs, operator by operator.

The counter is a dispatch mode: it sees what really ran, on real tensors or on the meta device (a
ViT-H in a second), under `reduced()`, with any attention backend. `closed_form.py` is the second
opinion.

    bench.count_macs(model, images).total
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.core import Observer, observing
from bench.core.errors import BenchError
from bench.measure import formulas, shapes
from bench.measure.counts import MacCount


class UncountedOperator(BenchError):
    """An operator ran that is neither counted nor free by convention: no total can be trusted."""


class _Ledger(Observer):
    """Where the MACs went; as an observer it knows when a method is at work.

    A merge has one price, which the plan says: the operators that do it, with indices or with a
    matrix, are not counted beside that.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[str] = [""]
        self.reducing = self.merging = 0
        self.by_module: Counter[str] = Counter({"": 0})
        self.by_op: Counter[str] = Counter()
        self.reduction: Counter[str] = Counter({"": 0})

    def enter(self, region: str) -> None:
        self.reducing += region == "reduction"
        self.merging += region == "merge"

    def exit(self, region: str) -> None:
        self.reducing -= region == "reduction"
        self.merging -= region == "merge"

    def merged(self, macs: int) -> None:
        if macs:
            self.add("merge", macs)

    def push(self, module: nn.Module, args: Any) -> None:
        # A module of the method, not of the model, counts for the module that called it.
        self.stack.append(self.names.get(id(module), self.stack[-1]))

    def pop(self, module: nn.Module, args: Any, out: Any) -> None:
        self.stack.pop()

    def add(self, op: str, macs: int) -> None:
        self.by_op[op] += macs
        for name in set(self.stack):  # a set: a module that calls itself counts once
            self.by_module[name] += macs
            if self.reducing:
                self.reduction[name] += macs

    def result(self) -> MacCount:
        return MacCount(
            total=self.by_module[""],
            by_module=dict(self.by_module),
            by_op=dict(self.by_op),
            reduction=self.reduction[""],
            reduction_by_module=dict(self.reduction),
        )


class _CountingMode(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Adds up each operator that reaches the dispatcher."""

    supports_higher_order_operators = True

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):  # flex_attention, cond, a Triton kernel
            raise self._unknown(str(func))
        # Under inference mode composite operators arrive whole: take them apart, or a linear layer
        # inside one would be invisible.
        if _is_taken_apart(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = shapes.run(func, args, kwargs)
        macs = formulas.macs_of(func, _positional(func, args, kwargs), out)
        if macs is None:
            raise self._unknown(str(func))
        if macs and not self.ledger.merging:
            self.ledger.add(formulas.name_of(func), macs)
        return out

    def _unknown(self, op: str) -> UncountedOperator:
        where = self.ledger.stack[-1] or "the model itself"
        return UncountedOperator(
            f"operator {op} (in {where}) has no MAC formula; in bench/measure/formulas.py, add one "
            "to COUNTED, or its name to FREE"
        )


@functools.cache
def _is_taken_apart(func: Any) -> bool:
    uncounted = not formulas.is_counted(func) and func is not torch.ops.prim.device.default
    return uncounted and func._can_decompose()


@functools.cache
def _schema(func: Any) -> list[tuple[str, Any]]:
    """Names and defaults of the operator's arguments."""
    return [(argument.name, argument.default_value) for argument in func._schema.arguments]


def _positional(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments in the order of the operator's schema, defaults filled in."""
    named = _schema(func)[len(args) :]
    return [*args, *(kwargs.get(name, default) for name, default in named)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for the body; every module's own flag comes back, also after an exception."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


@contextmanager
def _unfused_transformer() -> Iterator[None]:
    """nn.MultiheadAttention's fast path is one opaque operator: send it the long way round."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _module_hooks(ledger: _Ledger) -> Iterator[None]:
    # Global hooks: the model itself stays untouched, and overridden `forward`s are seen too.
    before: Callable[..., Any] = nn.modules.module.register_module_forward_pre_hook
    after: Callable[..., Any] = nn.modules.module.register_module_forward_hook
    with ExitStack() as stack:
        stack.enter_context(before(ledger.push))
        stack.enter_context(after(ledger.pop, always_call=True))
        yield


def count_macs(model: nn.Module, *args: Any, **kwargs: Any) -> MacCount:
    """Run `model(*args, **kwargs)` once, in eval mode and without gradients, and count its MACs.

    Works inside and outside `bench.reduced()`, on any device including meta; a compiled model is
    counted as the eager one it was made from.

    Raises:
        UncountedOperator: an operator ran that nobody counts (it is named, and where it ran).
    """
    model = getattr(model, "_orig_mod", model)
    ledger = _Ledger(model)
    with (
        _evaluating(model),
        _unfused_transformer(),
        _module_hooks(ledger),
        observing(ledger),
        torch.no_grad(),
        _CountingMode(ledger),
    ):
        model(*args, **kwargs)
    return ledger.result()
