"""Methods inside a language model: the authors' outputs, plain loops, batches, whole models."""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
import vlm_models as tiny
from sites import close, language_site, rms_norm, span, turned
from torch import Tensor

import bench
from bench.core import BenchError, Plan, Reducer, Site, Unsupported
from bench.core.schedules import as_schedule
from bench.core.site import LanguageSite
from methods.algorithms.language import (
    least_alike,
    rating,
    words_after,
)
from methods.algorithms.set_order import in_set_order
from methods.dart import DART
from methods.fastv import FastV
from methods.pyramiddrop import PyramidDrop
from methods.sparsevlm import SparseVLM
from methods.sparsevlm_plus import SparseVLMPlus

METHODS: dict[str, Reducer] = {
    "fastv": FastV(),
    "pyramiddrop": PyramidDrop(),
    "dart": DART(),
    "dart-image": DART(pivot_image_token=3, pivot_text_token=0),
    "dart-words": DART(pivot_image_token=1, pivot_text_token=9),  # more than there are
    "sparsevlm": SparseVLM(),
    "sparsevlm-more": SparseVLM(recycle_ratio=1.0, cluster_ratio=0.25),
    "sparsevlm-plus": SparseVLMPlus(heads=3),
}


# --- a batch of samples with their images at different places, padded in front --------------------

BEFORE, AFTER, IMAGE, FIRST = (3, 1, 5), (9, 6, 4), 30, 36


def layout(image: int) -> tuple[Tensor, Tensor]:
    """(B,N) the image's tokens, and what is no padding."""
    N = image + max(a + b for a, b in zip(BEFORE, AFTER, strict=True))
    spans = [span(N, N - after - image, image) for after in AFTER]
    pads = [N - image - a - b for a, b in zip(BEFORE, AFTER, strict=True)]
    return torch.cat(spans), torch.arange(N) >= torch.tensor(pads)[:, None]


def random_site(seed: int = 0) -> LanguageSite:
    """Three samples; grouped queries; padding whose rows of attention are empty."""
    torch.manual_seed(seed)
    image, real = layout(IMAGE)
    B, N = image.shape
    centres = torch.randn(B, 6, 24)[:, torch.randint(0, 6, (N,))]
    x = centres + 0.6 * torch.randn(B, N, 24)
    q, q2, k, k2 = torch.randn(B, 4, N, 8), *torch.randn(3, B, 4, N, 8).unbind(0)
    seen = real[:, None, None] & real[:, None, :, None] & torch.ones(N, N).tril().bool()
    bias = torch.zeros(B, 1, N, N).masked_fill(~seen, -torch.inf)
    weight, at = torch.rand(24) + 0.5, (real.long().cumsum(1) - 1).clamp(min=0)
    first, first_real = layout(FIRST)
    start = language_site(
        0.5 * torch.randn(*first.shape, 24), first, size=first_real.float()[..., None]
    )
    return language_site(
        x, image, 1.5 * q, k[:, ::2], size=real.float()[..., None], bias=bias, start=start,
        ahead=lambda: (1.5 * q2, k2[:, ::2]), norm=lambda x: rms_norm(x.float(), weight),
        turned=partial(turned, position=at),
    )  # fmt: skip


def alone(s: LanguageSite, b: int) -> LanguageSite:
    """One sample without its padding."""
    pad = int((s.size[b] == 0).sum())
    at, q_k = slice(b, b + 1), s.ahead()
    x, size, protect = (getattr(s, f)[at, pad:] for f in ("x", "size", "protect"))
    q, k, v = (getattr(s, f)[at, :, pad:] for f in ("q", "k", "v"))
    return replace(
        s, x=x, q=q, k=k, v=v, size=size, protect=protect, bias=None, causal=True,
        n_protected=int(protect.sum()), anchor=torch.tensor([x.shape[1] - 1]),
        start=None if s.start is None else alone(s.start, b),
        ahead=lambda: (q_k[0][at, :, pad:], q_k[1][at, :, pad:]),
        turned=partial(turned, position=torch.arange(x.shape[1])[None]),
    )  # fmt: skip


@pytest.mark.parametrize("r", [1, 4, 18, 29])
@pytest.mark.parametrize("name", METHODS)
def test_a_sample_is_reduced_alone_as_in_a_batch(name: str, r: int) -> None:
    s, method = random_site(), METHODS[name]
    plan = method.plan(s, r)
    x, size = plan.apply(s.x, s.size)
    assert torch.isfinite(x).all()
    assert (plan.keep[:, 1:] > plan.keep[:, :-1]).all()
    for b in range(3):
        one, pad = alone(s, b), int((s.size[b] == 0).sum())
        single = method.plan(one, r)
        assert plan.keep[b, :pad].tolist() == list(range(pad))
        assert torch.equal(plan.keep[b, pad:] - pad, single.keep[0])
        torch.testing.assert_close(x[b, pad:], single.apply(one.x, one.size)[0][0])
        kept = (~s.protect[b])[plan.keep[b]].sum()
        assert kept == IMAGE - r and s.protect[b].sum() + kept == plan.keep.shape[1]


# --- plain loops ------------------------------------------------------------------------------


def loop_attention(q: Tensor, k: Tensor, row: int, seen: range) -> list[list[float]]:
    """(H, len(seen)) what one query pays, by head; heads share keys in groups."""
    group = len(q) // len(k)
    heads = []
    for h in range(len(q)):
        logits = [math.exp(float(q[h, row] @ k[h // group, j]) / math.sqrt(8)) for j in seen]
        heads.append([v / sum(logits) for v in logits])
    return heads


def best(score: dict[int, float], count: int) -> list[int]:
    return sorted(score, key=lambda i: (-score[i], i))[:count]


def parts(s: LanguageSite, b: int) -> tuple[int, list[int], list[int]]:
    """Padding, the image's tokens, and the words behind it."""
    image = (~s.protect[b]).nonzero().flatten().tolist()
    pad = int((s.size[b] == 0).sum())
    return pad, image, list(range(image[-1] + 1, s.x.shape[1]))


def loop_last_token(s: LanguageSite, q: Tensor, k: Tensor, b: int, left: int) -> list[int]:
    pad, image, _ = parts(s, b)
    N = s.x.shape[1]
    heads = loop_attention(q[b], k[b], N - 1, range(pad, N))
    kept = best({i: sum(head[i - pad] for head in heads) for i in image}, left)
    return sorted({*range(N)} - {*image} | {*kept})


@pytest.mark.parametrize("left", [1, 7, 29])
def test_fastv_and_pyramiddrop_are_their_loop(left: int) -> None:
    s = random_site(left)
    for method, (q, k) in ((FastV(), (s.q, s.k)), (PyramidDrop(), s.ahead())):
        keep = method.plan(s, IMAGE - left).keep
        assert keep.tolist() == [loop_last_token(s, q, k, b, left) for b in range(3)]


@pytest.mark.parametrize("left", [1, 3, 4, 12, 17, 28, 29])
@pytest.mark.parametrize("pivots", [(4, 4), (3, 0), (1, 9), (2, 3)])
def test_dart_is_its_loop(pivots: tuple[int, int], left: int) -> None:
    s = random_site(left)
    keep = DART(*pivots).plan(s, IMAGE - left).keep
    for b in range(3):
        pad, image, words = parts(s, b)
        x = s.norm(s.x[b])
        size = {i: float(s.k[b, :, i].abs().sum()) for i in image + words}
        kept = best({i: size[i] for i in image}, min(pivots[0], left))
        listed = kept + best({i: size[i] for i in words}, pivots[1])
        order = [i + pad for i in set([i - pad for i in listed])]  # noqa: C403
        share, more = divmod(left - len(kept), len(order))
        for turn, pivot in enumerate(order):
            free = [i for i in image if i not in kept]
            alike = {i: -float(torch.cosine_similarity(x[i], x[pivot], dim=0)) for i in free}
            kept += best(alike, share + (turn < more))
        assert keep[b].tolist() == sorted({*range(s.x.shape[1])} - {*image} | {*kept})


@pytest.mark.parametrize("below", [80, 600, 10**6, 2**61 - 1])
@pytest.mark.parametrize("count", [1, 4, 5, 8, 18, 19, 77])  # tables of 8, 32, 128 and 512 slots
def test_numbers_are_in_the_order_of_a_set(count: int, below: int) -> None:
    draw = random.Random(count)
    rows = [draw.sample(range(below), count) for _ in range(20)]
    rows.append([below - 1 - 32 * i if below > 32 * count else i for i in range(count)])  # collide
    filled = [draw.randint(0, count) for _ in rows[1:]] + [count]
    order = in_set_order(torch.tensor(rows), torch.tensor(filled)).tolist()
    for row, n, listed in zip(rows, filled, order, strict=True):
        assert [row[i] for i in listed[:n]] == list(set(row[:n]))
        assert listed[n:] == [*range(n, count)]


def loop_merged(x: Tensor, again: list[int], count: int) -> list[Tensor]:
    """Density peaks of some tokens, and the mean of what is nearest to each."""
    far = {(i, j): math.dist(x[i].tolist(), x[j].tolist()) / math.sqrt(24) for i in again
           for j in again}  # fmt: skip
    density = {}
    for i in again:
        near = sorted(far[i, j] for j in again)[:count]
        density[i] = math.exp(-sum(d * d for d in near) / count)
    rank = {i: (density[i], -again.index(i)) for i in again}
    peak = {}
    for i in again:
        higher = [far[i, j] for j in again if rank[j] > rank[i]]
        peak[i] = min(higher, default=max(far.values())) * density[i]
    centres = sorted(again, key=lambda i: (-peak[i], again.index(i)))[:count]
    into: dict[int, list[int]] = {i: [i] for i in centres}
    for i in again:
        if i not in into:
            into[min(centres, key=lambda j: far[i, j])].append(i)
    return [x[one].sum(0) / (len(one) + 1e-6) for one in into.values()]


def loop_rating(start: LanguageSite, b: int) -> list[int]:
    """The raters, counted from the end: -1 is the last word."""
    _, image, words = parts(start, b)
    share = dict.fromkeys(words, 0.0)
    for i in image:
        logits = {j: math.exp(float(start.x[b, i] @ start.x[b, j])) for j in words}
        for j in words:
            share[j] += logits[j] / sum(logits.values()) / len(image)
    mean = sum(share.values()) / len(words)
    return [j - start.x.shape[1] for j in words if share[j] > mean]


@pytest.mark.parametrize("left", [1, 6, 13, 29])
@pytest.mark.parametrize(("recycle", "cluster"), [(0.3, 0.1), (1.0, 0.25), (0.0, 0.5), (0.7, 0.2)])
def test_sparsevlm_is_its_loop(recycle: float, cluster: float, left: int) -> None:
    s = random_site(left)
    assert s.start is not None
    N = s.x.shape[1]
    plan = SparseVLM(recycle, cluster).plan(s, IMAGE - left)
    x, _ = plan.apply(s.x, s.size)
    for b in range(3):
        pad, image, _ = parts(s, b)
        score = dict.fromkeys(image, 0.0)
        for j in loop_rating(s.start, b):
            for head in loop_attention(s.q[b], s.k[b], N + j, range(pad, N + j + 1)):
                for i in image:
                    score[i] += head[i - pad]
        order = best(score, len(image))
        kept = sorted({*range(N)} - {*image} | {*order[:left]})
        assert plan.keep[b].tolist() == kept
        dropped = order[left:]
        again = dropped[: int(recycle * len(dropped)) + 1]
        merged = loop_merged(s.x[b], again, min(int(cluster * len(again)) + 1, len(again)))
        close(x[b, len(kept) :], torch.stack(merged))


# --- properties -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_decides_as_float32_of_the_same_numbers(
    name: str, dtype: torch.dtype
) -> None:
    s = random_site()
    assert s.start is not None and s.bias is not None
    ahead = s.ahead()

    def cast(to: torch.dtype) -> LanguageSite:
        def turn(x: Tensor) -> Tensor:
            return x.to(dtype).to(to)

        assert s.start is not None and s.bias is not None
        start = replace(s.start, x=turn(s.start.x))
        q, k = map(turn, ahead)
        return replace(
            s, x=turn(s.x), q=turn(s.q), k=turn(s.k), v=turn(s.v), bias=s.bias.to(to),
            start=start, ahead=lambda: (q, k),
        )  # fmt: skip

    half, same = cast(dtype), cast(torch.float32)
    a, b = (METHODS[name].plan(site, 18) for site in (half, same))
    assert torch.equal(a.keep, b.keep)
    x, size = a.apply(half.x, half.size)
    assert x.dtype == dtype and torch.isfinite(x).all()
    assert torch.equal(size, b.apply(same.x, same.size)[1])
    torch.testing.assert_close(x.float(), b.apply(same.x, same.size)[0], atol=0.05, rtol=0.05)


def on_meta(s: LanguageSite) -> LanguageSite:
    fields = ("x", "q", "k", "v", "size", "protect", "bias", "anchor")
    moved = {f: t.to("meta") for f in fields if (t := getattr(s, f)) is not None}
    q_k: Any = tuple(t.to("meta") for t in s.ahead())
    start = None if s.start is None else on_meta(s.start)
    norm = torch.nn.RMSNorm(24, device="meta")
    at = torch.zeros(s.x.shape[:2], device="meta")
    rotary = partial(turned, position=at)
    return replace(s, **moved, start=start, ahead=lambda: q_k, norm=norm, turned=rotary)


@pytest.mark.parametrize("name", METHODS)
def test_runs_on_the_meta_device(name: str) -> None:
    s = random_site()
    meta = on_meta(s)
    x, size = METHODS[name].plan(meta, 18).apply(meta.x, meta.size)
    there = METHODS[name].plan(s, 18).apply(s.x, s.size)
    assert x.is_meta and (x.shape, size.shape) == (there[0].shape, there[1].shape)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sparsevlm-plus"])
def test_equal_tokens_are_kept_from_the_front(name: str) -> None:
    s = random_site()
    assert s.start is not None
    q, k = map(torch.ones_like, s.ahead())
    same = {t: torch.ones_like(getattr(s, t)) for t in ("x", "q", "k", "v")}
    start = replace(s.start, x=torch.ones_like(s.start.x))
    plan = METHODS[name].plan(replace(s, **same, start=start, ahead=lambda: (q, k)), 18)
    for b in range(3):
        kept = [i for i in plan.keep[b].tolist() if not s.protect[b, i]]
        assert kept == list(range(kept[0], kept[0] + 12)) and s.protect[b, kept[0] - 1]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "dart", "sparsevlm", "sparsevlm-plus"])
def test_compiles_as_one_graph(name: str) -> None:
    s = random_site()

    def reduce(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        site = replace(s, x=x, q=q, k=k, ahead=lambda: (q, k))
        return METHODS[name].plan(site, 18).apply(x, s.size)[0]

    torch._dynamo.reset()
    compiled = torch.compile(reduce, fullgraph=True, backend="aot_eager")
    close(compiled(s.x, s.q, s.k), reduce(s.x, s.q, s.k))


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_tokens(name: str) -> None:
    s = random_site()
    x = s.x.clone().requires_grad_()
    METHODS[name].plan(replace(s, x=x), 18).apply(x, s.size)[0].square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and (x.grad != 0).any()


# --- prompts out of the ordinary ----------------------------------------------------------------


def odd_site(before: int, after: int, image: int = 12) -> LanguageSite:
    torch.manual_seed(5)
    n = before + image + after
    x, q, k = torch.randn(2, n, 16), *torch.randn(2, 2, 2, n, 8).unbind(0)
    at = span(n, before, image).expand(2, -1)
    start = language_site(torch.randn(2, n, 16), at)
    rotary = partial(turned, position=torch.arange(n)[None])
    return language_site(
        x, at, q, k, start=start, ahead=lambda: (q, k), norm=lambda x: x, turned=rotary
    )


@pytest.mark.parametrize(("before", "after"), [(4, 0), (0, 0), (0, 1), (2, 1), (0, 2)])
@pytest.mark.parametrize("name", METHODS)
def test_few_words_or_none(name: str, before: int, after: int) -> None:
    s = odd_site(before, after)
    for r in (1, 5, 11):
        plan = METHODS[name].plan(s, r)
        assert plan.keep.shape[1] == s.x.shape[1] - r
        assert torch.isfinite(plan.apply(s.x, s.size)[0]).all()


def test_the_last_token_rates_where_no_word_is_above_the_mean() -> None:
    for before, after in ((2, 1), (3, 0), (0, 0)):
        s = odd_site(before, after)
        assert rating(s, "sparsevlm").nonzero().tolist() == [
            [b, s.x.shape[1] - 1] for b in range(2)
        ]
        close(SparseVLM().rated(s), s.anchor_attention())


def test_raters_are_found_where_a_batch_was_padded_anew() -> None:
    """Others kept more tokens: padding in front that the start had not."""
    s = random_site()
    longer = {
        "x": torch.cat([torch.zeros(3, 2, 24), s.x], 1),
        "size": torch.cat([torch.zeros(3, 2, 1), s.size], 1),
        "protect": torch.cat([torch.ones(3, 2, dtype=torch.bool), s.protect], 1),
    }
    assert s.anchor is not None
    padded = replace(s, **longer, n_protected=s.n_protected + 2, anchor=s.anchor + 2)
    assert torch.equal(rating(padded, "sparsevlm")[:, 2:], rating(s, "sparsevlm"))


def test_words_between_two_images_are_not_behind() -> None:
    protect = torch.tensor([[1, 0, 1, 0, 1, 1]], dtype=torch.bool)
    assert words_after(protect, torch.ones(1, 6, 1)).tolist() == [[0, 0, 0, 0, 1, 1]]


def test_taking_in_turns() -> None:
    alike = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4]]])
    none = torch.zeros(1, 4, dtype=torch.bool)
    assert least_alike(alike, torch.tensor([[2, 1]]), none).tolist() == [[1, 1, 1, 0]]
    assert least_alike(alike, torch.tensor([[0, 1]]), none).tolist() == [[0, 1, 0, 0]]


# --- budgets and guards -----------------------------------------------------------------------


def left_at(method: Reducer, depth: int, tokens: int, made: bool = False) -> dict[int, int]:
    """How many image tokens each block keeps by the method's own budget."""
    schedule = as_schedule(method, **method.budget)
    now, left = tokens, {}
    for layer in range(depth):
        wanted = schedule(layer, depth, now, tokens)
        if wanted and (r := method.feasible(wanted, now, None)):
            left[layer] = now - r
            again = int(0.3 * r) + 1
            now = now - r + made * (again // 10 + 1)
    return left


def test_the_authors_budgets() -> None:
    assert left_at(FastV(), 32, 576) == {2: 288}
    assert left_at(PyramidDrop(), 32, 576) == {8: 288, 16: 144, 24: 72}
    assert left_at(DART(), 32, 576) == {2: 132}
    by_share = as_schedule(DART(), keep_rate=1 - 0.778, layers=(2,))(2, 32, 576, 576)
    assert 576 - DART().feasible(by_share, 576, None) == 4 + 127 // 8 * 8
    assert left_at(SparseVLM(), 32, 576, made=True) == {3: 300, 7: 200, 16: 110}
    assert left_at(SparseVLMPlus(), 32, 576) == {3: 300, 7: 200, 16: 118}
    for table in ((303, 110, 36), (238, 48, 26), (66, 30, 17)):
        rates = tuple(n / 576 for n in table)
        schedule = as_schedule(SparseVLM(), keep_rate=rates, layers=SparseVLM.budget["layers"])
        assert [600 - schedule(i, 32, 600, 576) for i in (3, 7, 16)] == list(table)


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 36, 40, 575, 576])
def test_dart_keeps_its_pivots_and_as_many_for_each(tokens: int) -> None:
    for r in range(tokens + 1):
        left = tokens - DART().feasible(r, tokens, None)
        assert left == (min(tokens, 4 + (tokens - r) // 8 * 8) if r else tokens)


@pytest.mark.parametrize("name", METHODS)
def test_ahead_of_the_first_block_there_is_nothing_to_go_by(name: str) -> None:
    s = random_site()
    none = s.x[:, None, :, :0]
    for q in (none, s.q[:, :, 1:]):
        with pytest.raises(Unsupported, match=r"ahead of block 2 none has run .* other layers="):
            METHODS[name].plan(replace(s, q=q, k=q, v=q), 3)


def test_a_site_must_bring_what_a_method_reads() -> None:
    with pytest.raises(Unsupported, match="sparsevlm"):
        SparseVLM().plan(replace(random_site(), start=None), 3)
    plain = {f.name: getattr(random_site(), f.name) for f in fields(Site)}
    for method in METHODS.values():
        with pytest.raises(Unsupported, match=f"'{method.name}' looks into a language model"):
            method.plan(Site(**plain), 3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DART(pivot_image_token=0), "pivot_image_token >= 1"),
        (lambda: DART(pivot_text_token=-1), "pivot_text_token >= 0"),
        (lambda: SparseVLMPlus(heads=0), "heads must be at least 1"),
        (lambda: SparseVLM(recycle_ratio=1.5), r"shares in \[0, 1\]"),
        (lambda: SparseVLM(cluster_ratio=-0.1), r"shares in \[0, 1\]"),
    ],
)
def test_wrong_parameters_are_named(make: Any, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        make()


# --- whole models -----------------------------------------------------------------------------


def shallow(method: Reducer) -> dict[str, Any]:
    """Blocks of a model of six, where the method's own would be the first."""
    return {**method.budget, "layers": (1, 3, 4)} if method.name.startswith("sparsevlm") else {}


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT", "BLIP-2", "BLIP-2 T5", "Qwen3-VL"])
def test_whole_models(family: str, name: str) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch, method = make(), batch_of(3), METHODS[name]
    plain = model(**batch).logits
    if (family[:6], name) == ("BLIP-2", "sparsevlm-plus"):
        with (
            bench.reduced(model, method, **shallow(method)),
            pytest.raises(Unsupported, match="with rotary embedding"),
        ):
            model(**batch)
        return
    with bench.reduced(model, method, **shallow(method)):
        reduced = model(**batch).logits
        together = tiny.answers(model, batch, 4)
        each = torch.cat([tiny.answers(model, tiny.alone(batch, i), 4) for i in range(3)])
        if family == "LLaVA":
            seen = bench.trace(model, **tiny.alone(batch, 0)).tokens["language"]
    assert torch.isfinite(reduced).all() and not torch.equal(reduced, plain)
    assert torch.equal(together, each)
    assert torch.equal(model(**batch).logits, plain)
    left = {
        "fastv": [44, 44, 26, 26, 26, 26],
        "pyramiddrop": [44, 26, 26, 17, 12, 12],
        "dart": [44, 44, 20, 20, 20, 20],
    }
    if family == "LLaVA" and name in left:
        assert [n for n, _ in seen] == left[name]


def test_plans_are_of_the_plain_kind() -> None:
    """Pruners keep; only `sparsevlm` makes tokens."""
    for name, method in METHODS.items():
        plan: Plan = method.plan(random_site(), 18)
        makes = name in ("sparsevlm", "sparsevlm-more")
        assert plan.src is None and (plan.extra is not None) == makes


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 3])
def test_sparsevlm_plus_goes_by_the_positions_that_tokens_had_at_first(number: int) -> None:
    model, batch, seen = tiny.llava(), tiny.llava_batch(number), []

    class Watched(SparseVLMPlus):
        def plan(self, site: Site, r: int) -> Plan:
            assert isinstance(site, LanguageSite)
            seen.append((self.by_distance(site), super().plan(site, r).keep))
            return super().plan(site, r)

    with bench.reduced(model, Watched(), **shallow(SparseVLM())):
        model(**batch)
    (whole, keep), (second, again), (third, _) = seen
    N = whole.shape[-1]
    ones = turned(torch.ones(1, 1, N, 8), torch.arange(N)[None])
    close(whole, (ones @ ones.transpose(2, 3) / 8**0.5).expand_as(whole))
    for found, kept in ((second, keep), (third, keep.gather(1, again))):
        for b, at in enumerate(kept):
            close(found[b % len(found), 0], whole[0, 0][at][:, at])


@torch.no_grad()
def test_sparsevlm_plus_in_a_batch_of_unequal_images() -> None:
    """Each sample is then reduced by itself, with its own positions."""
    model, batch = tiny.llava_next(), tiny.llava_next_batch(3)
    method = SparseVLMPlus()
    with bench.reduced(model, method, **shallow(method)):
        logits = model(**batch).logits[:, -1]
        each = [model(**tiny.alone(batch, i)).logits[0, -1] for i in range(3)]
    close(logits, torch.stack(each))
