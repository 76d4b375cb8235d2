"""What this machine's CPU reaches, by a micro-benchmark of a few seconds: for estimates on a CPU.

No data sheet says what PyTorch reaches on so many threads. Measured are the matrix products of the
model itself, with weights that no cache holds any more as in a pass through many layers; a copy
larger than the caches; and a Transformer so small that its time is that of starting its operators.
The fastest of several calls counts, as other load only slows.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.measure.blocks import no_garbage_collection
from bench.measure.machine import cpu_name
from bench.measure.operators import Operator, operators
from bench.measure.roofline import Device, Span, spread

NAME = "cpu"
PRODUCTS = 6  # of a model's matrix products, those of most MACs
OUT_OF_CACHE = 1 << 26  # bytes
CALLS = 15
DEPTH, TOKENS, WIDTH = 12, 8, 8  # of a Transformer in which no operator has work
USUAL = (197, 768, 768)  # (n, k, m) where a model has no products


class _Block(nn.Module):
    """A block of a vision Transformer, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(1,N,C) -> (1,N,C)."""
        qkv = self.qkv(self.before(x)).reshape(1, TOKENS, 3, 1, WIDTH).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.between(x))  # type: ignore[no-any-return]


def this_cpu(plain: Sequence[Operator], dtype: str) -> Device:
    """Measure this CPU on PyTorch's present threads; `plain` are the unreduced model's operators.

    Takes about two seconds for a small model.
    """
    kind: torch.dtype = getattr(torch, dtype)
    heaviest = _heaviest(plain)
    with torch.inference_mode(), no_garbage_collection():
        rates = spread(_products(heaviest, kind), _bandwidth(heaviest, kind), _launches(kind))
    source = f"measured here: {cpu_name()}, {torch.get_num_threads()} threads"
    return Device(NAME, dtype, rates, source)


def _heaviest(plain: Sequence[Operator]) -> dict[tuple[int, int, int], int]:
    """Return the MACs of a model's matrix products (n, k, m), of those that have most."""
    macs: Counter[tuple[int, int, int]] = Counter()
    for operator in plain:
        if operator.product is not None:
            macs[operator.product] += operator.macs
    return dict(macs.most_common(PRODUCTS)) or {USUAL: 1}


def _products(heaviest: Mapping[tuple[int, int, int], int], kind: torch.dtype) -> Span:
    """Return the operations a second of the model's matrix products: of all, least, most."""
    rates = {(n, k, m): 2 * n * k * m / _cold(n, k, m, kind) for n, k, m in heaviest}
    taken = sum(macs / rates[shape] for shape, macs in heaviest.items())
    return sum(heaviest.values()) / taken, min(rates.values()), max(rates.values())


def _cold(n: int, k: int, m: int, kind: torch.dtype) -> float:
    """Return the seconds of (n,k) x (k,m), the weights cold."""
    x, weight = torch.randn(n, k).to(kind), torch.randn(m, k).to(kind)
    several = max(2, OUT_OF_CACHE // (weight.numel() * weight.element_size()))
    weights = cycle([weight.clone() for _ in range(several)])
    return min(_times(lambda: F.linear(x, next(weights))))


def _bandwidth(heaviest: Mapping[tuple[int, int, int], int], kind: torch.dtype) -> Span:
    """Return the bytes a second at which one row reads the model's weights; a copy's is the most.

    Weights are most of the bytes of a pass, and no cache holds them.
    """
    source = torch.ones(OUT_OF_CACHE, dtype=torch.uint8)  # pages of zeros may be one and the same
    target = source.clone()
    copy = 2 * OUT_OF_CACHE / min(_times(lambda: target.copy_(source)))
    weights = [kind.itemsize * k * m for _, k, m in heaviest]
    taken = [_cold(1, k, m, kind) for _, k, m in heaviest]
    rates = [size / seconds for size, seconds in zip(weights, taken, strict=True)]
    return sum(weights) / sum(taken), min(copy, *rates), max(copy, *rates)


def _launches(kind: torch.dtype) -> Span:
    """Return the seconds until an operator has begun: of a model's, of one in a loop, usually."""
    model = nn.Sequential(*(_Block() for _ in range(DEPTH))).to(kind).eval()
    x = torch.ones(1, TOKENS, WIDTH, dtype=kind)
    several = len(operators(model, x))
    passes = [taken / several for taken in _times(lambda: model(x))]
    alone = min(_times(lambda: [x + x for _ in range(several)])) / several
    return min(passes), min(alone, *passes), statistics.median(passes)


def _times(run: Callable[[], object]) -> list[float]:
    """Return the seconds of each of several calls, after one that is not timed."""
    run()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times
