"""What an operator gives on the meta device is known after the first time, as PyTorch says it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure import shapes

aten = torch.ops.aten
META = {"device": "meta"}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_results", {})


class Asked(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts the operators that PyTorch is asked for, those apart that make known results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is not aten.empty_strided.default
        return func(*args, **(kwargs or {}))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls() -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    x, words = meta(2, 5, 8), meta(2, 5, dtype=torch.long)
    yield aten.mul.Tensor, (x, x), {}
    yield aten.mul.Tensor, (meta(2, 8, 5), meta(2, 8, 5)), {}
    yield aten.mul.Tensor, (x.transpose(1, 2), x.transpose(1, 2)), {}  # of the same shape
    yield aten.mul.Tensor, (x.half(), x.half()), {}
    yield aten.mul.Tensor, (words, 2), {}
    yield aten.mul.Tensor, (words, 2.0), {}
    yield aten.mul.Tensor, (words, True), {}
    yield aten.native_layer_norm.default, (x, [8], None, None, 1e-5), {}
    yield aten.native_layer_norm.default, (x, [5, 8], None, None, 1e-5), {}
    yield aten.sort.stable, (x,), {"stable": True, "dim": 1}
    yield aten.cat.default, ([x, x], 1), {}
    yield aten.cat.default, ([x, x, x], 1), {}
    yield aten.arange.default, (4,), META
    yield aten.arange.default, (4.0,), META
    yield aten._to_copy.default, (x,), {"dtype": torch.float64}
    yield aten.sum.dim_IntList, (x, [1]), {}
    yield aten.sum.dim_IntList, (x, [1], True), {}


def told(out: Any) -> list[Any]:
    several = out if isinstance(out, (tuple, list)) else [out]
    return [(one.shape, one.stride(), one.dtype, one.device) for one in several]


def test_what_is_known_is_what_pytorch_says() -> None:
    """Also where calls differ in a dtype, in strides, or in the type of a number alone."""
    for _ in range(2):
        for func, args, kwargs in calls():
            assert told(shapes.run(func, args, kwargs)) == told(func(*args, **kwargs)), func


def test_pytorch_is_asked_once() -> None:
    for func, args, kwargs in calls():
        shapes.run(func, args, kwargs)
    with Asked() as asked:
        for func, args, kwargs in calls():
            before = asked.times
            out = shapes.run(func, args, kwargs)
            assert asked.times == before, func
            assert all(one is not arg for one in [out] for arg in args)


def test_the_default_dtype_is_heeded() -> None:
    words = meta(3, dtype=torch.long)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            assert shapes.run(aten.div.Tensor, (words, 2), {}).dtype == dtype
    finally:
        torch.set_default_dtype(before)


def test_views_and_what_writes_are_no_new_tensors() -> None:
    x = meta(2, 3)
    for _ in range(2):
        assert shapes.run(aten.add_.Tensor, (x, x), {}) is x
        assert shapes.run(aten.t.default, (x,), {})._base is x
    assert not shapes._results


def test_values_are_computed() -> None:
    one, two = torch.ones(2), torch.full((2,), 2.0)
    assert shapes.run(aten.add.Tensor, (one, one), {}).tolist() == [2, 2]
    assert shapes.run(aten.add.Tensor, (one, two), {}).tolist() == [3, 3]
    assert shapes.run(aten.arange.default, (3,), {}).tolist() == [0, 1, 2]
    mixed = shapes.run(aten.mul.Tensor, (meta(2), torch.tensor(2.0)), {})  # a number in a tensor
    assert mixed.is_meta and not shapes._results


def test_what_depends_on_values_says_so_every_time() -> None:
    for _ in range(2):
        with pytest.raises((NotImplementedError, RuntimeError)):
            shapes.run(aten.nonzero.default, (meta(3),), {})


def test_so_many_are_known_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MOST", 3)
    for n in range(10):
        shapes.run(aten.neg.default, (meta(n),), {})
    assert 0 < len(shapes._results) <= 3


def test_a_pass_under_the_mode_gives_the_same_shapes() -> None:
    with torch.device("meta"):
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        x = torch.empty(2, 5, 8)
    with torch.no_grad():
        expected = told(layer(x))
        for _ in range(2):
            with shapes.KnownShapes():  # type: ignore[no-untyped-call, unused-ignore]
                assert told(layer(x)) == expected
    assert shapes._results
