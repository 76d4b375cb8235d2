"""What this machine's CPU reaches, by a micro-benchmark of a few seconds: for estimates on a CPU.

No data sheet says what PyTorch reaches on so many threads. Measured are the matrix products of the
model itself, with weights that no cache holds any more as in a pass through many layers, a copy
that is larger than the caches, and operators too small to do any work.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
from torch.nn import functional as F

from bench.measure.blocks import no_garbage_collection
from bench.measure.machine import cpu_name
from bench.measure.operators import Operator
from bench.measure.roofline import Device, Span, spread

NAME = "cpu"
PRODUCTS = 6  # of a model's matrix products, those of most MACs
OUT_OF_CACHE = 1 << 26  # bytes
CALLS = 9
TINY = 8  # rows and columns of what is too small to do any work
LOOP = 100  # calls of a tiny operator that are timed together
USUAL = (197, 768, 768)  # (n, k, m) where a model has no products


def this_cpu(plain: Sequence[Operator], dtype: str) -> Device:
    """Measure this CPU on PyTorch's present threads; `plain` are the unreduced model's operators.

    Takes about two seconds for a small model. The limits of each rate are the slowest and the
    fastest of what was measured.
    """
    kind: torch.dtype = getattr(torch, dtype)
    with torch.inference_mode(), no_garbage_collection():
        rates = spread(_products(plain, kind), _copies(), _launches(kind))
    source = f"measured here: {cpu_name()}, {torch.get_num_threads()} threads"
    return Device(NAME, dtype, rates, source)


def _products(plain: Sequence[Operator], kind: torch.dtype) -> Span:
    """Return the operations a second of the model's matrix products: of all, least, most."""
    macs: Counter[tuple[int, int, int]] = Counter()
    for operator in plain:
        if operator.product is not None:
            macs[operator.product] += operator.macs
    heaviest = macs.most_common(PRODUCTS) or [(USUAL, 1)]
    rates = {shape: _product(*shape, kind) for shape, _ in heaviest}
    total = sum(share for _, share in heaviest)
    taken = sum(share / rates[shape] for shape, share in heaviest)
    return total / taken, min(rates.values()), max(rates.values())


def _product(n: int, k: int, m: int, kind: torch.dtype) -> float:
    """Return the operations a second of (n,k) x (k,m), the weights cold."""
    x = torch.randn(n, k).to(kind)
    weight = torch.randn(m, k).to(kind)
    several = max(2, OUT_OF_CACHE // (weight.numel() * weight.element_size()))
    weights = cycle([weight.clone() for _ in range(several)])
    times = _times(lambda: F.linear(x, next(weights)))
    return 2 * n * k * m / statistics.median(times)


def _copies() -> Span:
    """Return the bytes a second, read and written, of a copy: usual, least, most."""
    source = torch.zeros(OUT_OF_CACHE, dtype=torch.uint8)
    target = torch.zeros_like(source)
    times = _times(lambda: target.copy_(source))
    moved = 2 * OUT_OF_CACHE
    return moved / statistics.median(times), moved / max(times), moved / min(times)


def _launches(kind: torch.dtype) -> Span:
    """Return the seconds of operators that do next to nothing: usual, least, most."""
    x = torch.ones(TINY, TINY, dtype=kind)
    index = torch.zeros(TINY, TINY, dtype=torch.int64)
    tiny: list[Callable[[], object]] = [
        lambda: x + x,
        lambda: x.gather(0, index),
        lambda: x.sort(stable=True),
        lambda: F.layer_norm(x, (TINY,)),
        lambda: F.linear(x, x),
    ]
    each = [statistics.median(_times(one, LOOP)) for one in tiny]
    return statistics.median(each), min(each), max(each)


def _times(run: Callable[[], object], loop: int = 1) -> list[float]:
    """Return the seconds of a call, several times, after one that is not timed."""
    run()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        for _ in range(loop):
            run()
        times.append((time.perf_counter() - start) / loop)
    return times
