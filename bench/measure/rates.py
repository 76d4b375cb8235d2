"""What this machine's CPU reaches, by a micro-benchmark of a few seconds: for estimates on a CPU.

No data sheet says what PyTorch reaches on so many threads, and a CPU's operators are unlike a
GPU's: a product reads its weights from memory, as in a pass through many layers no cache holds
them any more, and computes when it has them; what the operator before wrote is in a cache; and a
view is a call like any other. So measured are the products of the model itself, with all rows and
with few; its attention; what lies between them; and a Transformer so small that its time is that
of calling its operators. The fastest of several calls counts, as other load only slows.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.measure.blocks import no_garbage_collection
from bench.measure.machine import cpu_name
from bench.measure.operators import ATTENTION, Operator, operators
from bench.measure.roofline import Device, Rates, Span, spread

Product = tuple[int, int, int]  # (n, k, m)

NAME = "cpu"
PRODUCTS = 6  # of a model's matrix products, those of most MACs
FEW_ROWS = 32  # of a product, beside all
OUT_OF_CACHE = 1 << 26  # bytes
CALLS = 15
HEAD = 64  # usual width of an attention head
DEPTH, TOKENS, WIDTH = 12, 8, 8  # of a Transformer in which no operator has work
USUAL: Product = (197, 768, 768)  # where a model has no products


@dataclass(frozen=True)
class CpuRates(Rates):
    """What a CPU's operators reach: `flops` and `bandwidth` are those of products.

    Attributes:
        attention: its operations a second.
        cached: bytes a second of what is neither.
    """

    attention: float
    cached: float

    def seconds(self, operator: Operator) -> float:
        """Return how long one operator takes, from when it is called."""
        if operator.product is not None:
            n, k, m = operator.product
            weights = operator.bytes * k * m / (n * k + k * m + n * m)
            return 2 * operator.macs / self.flops + weights / self.bandwidth + self.launch_s
        flops = self.attention if operator.name == ATTENTION else self.flops
        return max(2 * operator.macs / flops, operator.bytes / self.cached) + self.launch_s


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
        flops, bandwidth = _products(heaviest, kind)
        attention, cached = _attention(plain, kind, flops), _between(heaviest, kind)
        rates = spread(CpuRates, flops, bandwidth, _calls(kind), attention, cached)
    source = f"measured here: {cpu_name()}, {torch.get_num_threads()} threads"
    return Device(NAME, dtype, rates, source)


def _heaviest(plain: Sequence[Operator]) -> dict[Product, int]:
    """Return how often a model has its matrix products (n, k, m), of those with most MACs."""
    often = Counter(operator.product for operator in plain if operator.product is not None)
    heaviest = sorted(often, key=lambda shape: -often[shape] * prod(shape))[:PRODUCTS]
    return {shape: often[shape] for shape in heaviest} or {USUAL: 1}


def _products(heaviest: dict[Product, int], kind: torch.dtype) -> tuple[Span, Span]:
    """Return the operations a second of a model's products, and the bytes of their weights.

    Both from their times with all rows and with few; computing takes at least half of a time, and
    weights are read no faster than memory is copied.
    """
    source = torch.ones(OUT_OF_CACHE, dtype=torch.uint8)  # pages of zeros may be one and the same
    target = source.clone()
    copy = 2 * OUT_OF_CACHE / min(_times(lambda: target.copy_(source)))
    work, size, computing, reading = [], [], [], []
    for (n, k, m), often in heaviest.items():
        few = min(FEW_ROWS, max(1, n // 4))
        all_s, few_s = _cold(n, k, m, kind), _cold(few, k, m, kind)
        a_row = max(all_s - few_s, 0.5 * all_s) / max(n - few, 1)
        weights = kind.itemsize * k * m
        work.append(2 * n * k * m * often)
        size.append(weights * often)
        computing.append(n * a_row * often)
        reading.append(max(few_s - few * a_row, weights / copy) * often)
    return _span(work, computing), _span(size, reading)


def _span(amounts: Sequence[float], seconds: Sequence[float]) -> Span:
    """Return the rate of all together, the lowest and the highest of each."""
    each = [amount / taken for amount, taken in zip(amounts, seconds, strict=True)]
    return sum(amounts) / sum(seconds), min(each), max(each)


def _cold(n: int, k: int, m: int, kind: torch.dtype) -> float:
    """Return the seconds of (n,k) x (k,m) + (m,), the weights cold."""
    x, weight, bias = (torch.randn(*shape).to(kind) for shape in ((n, k), (m, k), (m,)))
    several = max(2, OUT_OF_CACHE // (weight.numel() * weight.element_size()))
    weights = cycle([weight.clone() for _ in range(several)])
    return min(_times(lambda: F.linear(x, next(weights), bias)))


def _attention(plain: Sequence[Operator], kind: torch.dtype, flops: Span) -> Span:
    """Return the operations a second of a model's attention, of all its tokens and of a quarter.

    A model without attention gets those of its products.
    """
    sizes = Counter((one.macs, one.bytes) for one in plain if one.name == ATTENTION)
    if not sizes:
        return flops
    macs, moved = max(sizes, key=lambda size: size[0] * sizes[size])
    n = max(1, 2 * kind.itemsize * macs // moved)  # 2 B H N² D of 4 B H N D numbers
    heads = max(1, moved // (4 * kind.itemsize * n * HEAD))

    def reached(tokens: int) -> float:
        q, k, v = (torch.randn(1, heads, tokens, HEAD).to(kind) for _ in range(3))
        seconds = min(_times(lambda: F.scaled_dot_product_attention(q, k, v)))
        return 4 * heads * tokens**2 * HEAD / seconds

    rates = reached(n), reached(max(1, n // 4))
    return rates[0], min(rates), max(rates)


def _between(heaviest: dict[Product, int], kind: torch.dtype) -> Span:
    """Return the bytes a second of sums, norms and GELUs as large as a model's activations."""
    n, narrow, _ = min(heaviest, key=lambda shape: shape[1])
    wide = max(m for _, _, m in heaviest)
    x, hidden = torch.randn(n, narrow).to(kind), torch.randn(n, wide).to(kind)
    weight, bias = torch.ones(2, narrow).to(kind)
    taken = [
        min(_times(run))
        for run in (
            lambda: x + x,
            lambda: F.layer_norm(x, (narrow,), weight, bias),
            lambda: F.gelu(hidden),
        )
    ]
    moved = [kind.itemsize * size for size in (3 * x.numel(), 2 * x.numel(), 2 * hidden.numel())]
    return _span(moved, taken)


def _calls(kind: torch.dtype) -> Span:
    """Return the seconds until an operator has begun: of a model's, of one in a loop, usually."""
    model = nn.Sequential(*(_Block() for _ in range(DEPTH))).to(kind).eval()
    x = torch.ones(1, TOKENS, WIDTH, dtype=kind)
    several = len(operators(model, x))
    passes = [taken / several for taken in _times(lambda: model(x))]
    alone = min(_times(lambda: [x + x for _ in range(several)])) / several
    return min(passes), min(alone, *passes), max(alone, statistics.median(passes))


def _times(run: Callable[[], object]) -> list[float]:
    """Return the seconds of each of several calls, after one that is not timed."""
    run()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times
