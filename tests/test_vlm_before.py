"""Methods ahead of a language model: the authors' outputs, plain loops, batches, whole models."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import vlm_models as tiny
from sites import close, heads, language_site, projector_site
from torch import Tensor

import bench
from bench.core import BenchError, Plan, Reducer, Site
from bench.core.kinds import is_adaptive
from bench.core.schedules import as_schedule
from methods.algorithms.prumerge import (
    full_width_attention,
    listed_by_ratio,
)
from methods.divprune import DivPrune, far_apart
from methods.fastervlm import FasterVLM
from methods.prumerge import PruMerge
from methods.visionzip import VisionZip
from methods.vispruner import VisPruner

METHODS: dict[str, Reducer] = {
    "visionzip": VisionZip(),
    "visionzip-counts": VisionZip(dominant=6, contextual=4),
    "visionzip-dominant": VisionZip(contextual_share=0.0),
    "fastervlm": FasterVLM(),
    "vispruner": VisPruner(),
    "vispruner-diverse": VisPruner(important_ratio=0.0),
    "prumerge": PruMerge(),
    "prumerge-plus": PruMerge(plus=True),
    "prumerge-fixed": PruMerge(adaptive=False),
    "prumerge-plus-fixed": PruMerge(plus=True, adaptive=False),
    "divprune": DivPrune(),
}


def random_site(name: str, n: int = 41, B: int = 3, seed: int = 0) -> Site:
    """Tokens around a few centres; of different attention, so that some stand out."""
    torch.manual_seed(seed)
    x = torch.randn(B, 6, 24)[:, torch.randint(0, 6, (n,))] + 0.6 * torch.randn(B, n, 24)
    if name.startswith("divprune"):
        image = torch.zeros(B, n, dtype=torch.bool)
        for b in range(B):  # at different places in each sample
            image[b, 3 + b : n - 5 + b] = True
        return language_site(x, image)
    q, k = torch.randn(2, B, n, 24).unbind(0)
    return projector_site(x, heads(1.5 * q, 3), heads(k, 3))


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()))


def by_score(score: Any) -> list[int]:
    """Positions by descending score, the lower position first."""
    return sorted(range(len(score)), key=lambda i: (-float(score[i]), i))


# --- plain loops ------------------------------------------------------------------------------


def loop_attention(s: Site, b: int) -> list[float]:
    """Class attention, mean over heads, of all tokens."""
    total = torch.zeros(s.x.shape[1])
    for q, k in zip(s.q[b], s.k[b], strict=True):
        total += torch.stack([q[0] @ one / math.sqrt(len(one)) for one in k]).softmax(0)
    return (total / s.q.shape[1]).tolist()


@pytest.mark.parametrize("left", [1, 7, 39])
def test_fastervlm_is_its_loop(left: int) -> None:
    s = random_site("fastervlm")
    plan = FasterVLM().plan(s, 40 - left)
    for b in range(3):
        best = by_score(loop_attention(s, b)[1:])[:left]
        assert plan.keep[b].tolist() == [0, *sorted(i + 1 for i in best)]


@pytest.mark.parametrize("n", [40, 41])
@pytest.mark.parametrize(("ratio", "left"), [(0.5, 12), (0.34, 9), (0.0, 3), (0.9, 2), (0.5, 35)])
def test_vispruner_is_its_loop(n: int, ratio: float, left: int) -> None:
    """Also where the authors' code crashes: odd lists, and fewer left than a round drops."""
    s = random_site("vispruner", n + 1, seed=n)
    plan = VisPruner(ratio, per_iteration=5).plan(s, n - left)
    for b in range(3):
        order = [i + 1 for i in by_score(loop_attention(s, b)[1:])]
        kept, others = order[: int(left * ratio)], order[int(left * ratio) :]
        while len(others) > left - len(kept):
            drop = min(5, len(others) - left + len(kept), len(others) // 2)
            odd = others[1::2]
            alike = {i: max(cosine(s.x[b, i], s.x[b, j]) for j in odd) for i in others[::2]}
            others = sorted(alike, key=lambda i: -alike[i])[drop:] + odd
        assert plan.keep[b].tolist() == [0, *sorted(kept + others)]


@pytest.mark.parametrize(("dominant", "contextual"), [(8, 5), (1, 3), (4, 1), (9, 30), (20, 0)])
def test_visionzip_is_its_loop(dominant: int, contextual: int) -> None:
    s = random_site("visionzip")
    x, size = VisionZip(dominant, contextual).plan(s, 41 - dominant - contextual).apply(s.x, s.size)
    for b in range(3):
        order = [0] + [i + 1 for i in by_score(loop_attention(s, b)[1:])]
        kept, rest = sorted(order[:dominant]), sorted(order[dominant:])
        step = max(1, len(rest) // max(contextual, 1))
        into: dict[int, list[int]] = {i: [] for i in rest[::step][:contextual]}
        key = s.k[b].mean(0)
        for i in rest if contextual else []:
            if i not in into:
                into[max(into, key=lambda j: cosine(key[i], key[j]))].append(i)
        expected = [s.x[b, i] for i in kept]
        for i, others in into.items():
            mean = s.x[b, others].mean(0) if others else torch.zeros_like(s.x[b, i])
            expected.append(s.x[b, i] + mean)
        close(x[b], torch.stack(expected))
        assert size[b, dominant:, 0].tolist() == [1 + len(others) for others in into.values()]


def loop_prumerge(
    s: Site, b: int, plus: bool, adaptive: bool, most: int, k: int
) -> tuple[list[Tensor], list[int]]:
    """The tokens of one image, and which patches they were made around."""
    x, n = s.x[b, 1:], s.x.shape[1] - 1
    q, key = (t[b].transpose(0, 1).flatten(1) for t in (s.q, s.k))
    a = torch.stack([q[0] @ one / math.sqrt(len(one)) for one in key]).softmax(0)[1:].tolist()
    key, order = key[1:], by_score(a)
    if adaptive:
        ranks = sorted(a)

        def quartile(share: float) -> float:
            at = share * (n - 1)
            low = ranks[int(at)]
            return low + (ranks[min(int(at) + 1, n - 1)] - low) * (at - int(at))

        fence = quartile(0.75) + 1.5 * (quartile(0.75) - quartile(0.25))
        ratio = sum(v > fence for v in a) / n
        listed = order[: max(int(n * ratio), 1)]
        if plus:
            step = max(int(1 / max(ratio, 1 / n)) // 3, 1)
            listed += [i for i in range(0, n - 1, step) if i not in listed]
        listed = listed[: most - 1]
    else:
        spaced = (most - 1) // 2 if plus else 0
        listed = order[: most - 1 - spaced]
        step = n // max(spaced, 1)
        listed += [step // 2 + i * step for i in range(spaced)]
    lost = len(listed) - len(set(listed))
    rest = [i for i in range(n) if i not in listed][lost:]
    tokens = []
    for at, i in enumerate(listed):
        others = listed[:at] + listed[at + 1 :] + rest
        near = sorted(others, key=lambda j: -cosine(key[i], key[j]))[:k]
        tokens.append(x[i] + sum(a[j] * x[j] for j in near))
    return [*tokens, sum(a[j] * x[j] for j in rest)], listed  # type: ignore[list-item]


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("plus", [True, False], ids=["plus", "plain"])
@pytest.mark.parametrize(("most", "k"), [(30, 8), (11, 8), (2, 3), (12, 99), (3, 1)])
def test_prumerge_is_its_loop(plus: bool, adaptive: bool, most: int, k: int) -> None:
    s = random_site("prumerge", seed=most)
    plan = PruMerge(plus, adaptive, k).plan(s, 40 - most)
    x, size = plan.apply(s.x, s.size)
    counts = []
    for b in range(3):
        expected, listed = loop_prumerge(s, b, plus, adaptive, most, k)
        filled = size[b, :, 0] > 0
        counts.append(int(filled.sum()))
        assert counts[-1] == len(expected) + 1 <= most + 1
        close(x[b, filled][1:], torch.stack(expected))
        assert (x[b, ~filled] == 0).all() and size[b].sum() == 41
        assert filled[: counts[-1]].all()  # empty slots are last
        if len(set(listed)) == len(listed):
            slots = plan.slots(41)[b, 1:][torch.tensor(listed)]
            assert slots.tolist() == list(range(1, len(listed) + 1))
    assert x.shape[1] == max(counts) and (adaptive or set(counts) == {most + 1})


def test_prumerge_counts_differ_and_are_cut() -> None:
    s = random_site("prumerge", 101, seed=5)
    _, size = PruMerge().plan(s, 1).apply(s.x, s.size)
    counts = (size[..., 0] > 0).sum(1)
    assert len(set(counts.tolist())) > 1 and counts.max() == size.shape[1]
    cut = int(counts.max()) - 1
    _, fewer = PruMerge().plan(s, 100 - (cut - 1)).apply(s.x, s.size)
    assert torch.equal((fewer[..., 0] > 0).sum(1), counts.clamp(max=cut))
    flat = replace(s, q=torch.zeros_like(s.q))  # nothing stands out
    assert PruMerge().plan(flat, 1).apply(s.x, s.size)[0].shape[1] == 3
    for ratio in (0.0, 0.34, 0.6, 1.0):
        attention = full_width_attention(*(t.transpose(1, 2).flatten(2) for t in (s.q, s.k)))
        given = torch.full((3,), ratio, dtype=torch.float64)
        order, count = listed_by_ratio(attention[:, 1:], given, plus=True)
        assert order.sort(1).values.equal(torch.arange(100).expand(3, -1)) and (count >= 1).all()


@pytest.mark.parametrize("left", [1, 2, 9, 32])
def test_divprune_is_its_loop(left: int) -> None:
    s = random_site("divprune")
    keep = DivPrune().plan(s, 33 - left).keep
    for b in range(3):
        image = (~s.protect[b]).nonzero().flatten().tolist()
        apart = {(i, j): 1 - cosine(s.x[b, i], s.x[b, j]) for i in image for j in image}
        chosen = [max(image, key=lambda i: min(apart[j, i] for j in image if j != i))]
        while len(chosen) < left:
            free = [i for i in image if i not in chosen]
            chosen.append(max(free, key=lambda i: min(apart[j, i] for j in chosen)))
        words = s.protect[b].nonzero().flatten().tolist()
        assert keep[b].tolist() == sorted(words + chosen)


def test_divprune_never_selects_twice() -> None:
    x = torch.randn(2, 3, 8)[:, [0, 0, 1, 1, 2, 2, 0]]
    for count in range(1, 8):
        chosen = far_apart(x, count)
        assert all(len(set(row)) == count for row in chosen.tolist())
    assert far_apart(torch.ones(1, 4, 8), 4).tolist() == [[0, 1, 2, 3]]
    assert far_apart(torch.randn(2, 1, 8), 1).tolist() == [[0], [0]]


# --- properties -------------------------------------------------------------------------------


def alone(s: Site, b: int) -> Site:
    at = slice(b, b + 1)
    anchor = None if s.anchor is None else s.anchor[at]
    return replace(
        s, x=s.x[at], q=s.q[at], k=s.k[at], v=s.v[at], size=s.size[at], protect=s.protect[at],
        anchor=anchor,
    )  # fmt: skip


def filled(plan: Plan, s: Site) -> Tensor:
    """(M,C) the tokens that are left of a single sample."""
    x, size = plan.apply(s.x, s.size)
    return x[0, size[0, :, 0] > 0]


@pytest.mark.parametrize("r", [4, 31])
@pytest.mark.parametrize("name", METHODS)
def test_a_sample_is_reduced_alone_as_in_a_batch(name: str, r: int) -> None:
    s, method = random_site(name), METHODS[name]
    x, size = method.plan(s, r).apply(s.x, s.size)
    assert torch.isfinite(x).all() and x.shape[1] == size.shape[1]
    for b in range(3):
        one = alone(s, b)
        torch.testing.assert_close(x[b, size[b, :, 0] > 0], filled(method.plan(one, r), one))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_decides_as_float32_of_the_same_numbers(
    name: str, dtype: torch.dtype
) -> None:
    s = random_site(name)
    half = replace(s, x=s.x.to(dtype), q=s.q.to(dtype), k=s.k.to(dtype), v=s.v.to(dtype))
    same = replace(half, x=half.x.float(), q=half.q.float(), k=half.k.float(), v=half.v.float())
    a, b = (METHODS[name].plan(site, 25) for site in (half, same))
    assert torch.equal(a.keep, b.keep)
    x, size = a.apply(half.x, half.size)
    assert x.dtype == dtype and torch.isfinite(x).all()
    assert torch.equal(size, b.apply(same.x, same.size)[1])
    torch.testing.assert_close(x.float(), b.apply(same.x, same.size)[0], atol=0.1, rtol=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_equal_tokens_are_kept_from_the_front(name: str) -> None:
    s = random_site(name)
    tied = replace(s, **{t: torch.ones_like(getattr(s, t)) for t in ("x", "q", "k", "v")})
    plan = METHODS[name].plan(tied, 25)
    assert torch.isfinite(plan.apply(tied.x, tied.size)[0]).all()
    if name in ("fastervlm", "visionzip-dominant"):
        assert plan.keep.tolist() == [list(range(16))] * 3
    if name == "divprune":
        free = [row[fixed].tolist() for row, fixed in zip(plan.keep, plan.keep >= 0, strict=True)]
        for b, row in enumerate(free):
            assert [i for i in row if not s.protect[b, i]] == list(range(3 + b, 11 + b))


def test_prumerge_keeps_no_empty_slot_and_attends_to_none() -> None:
    s = random_site("prumerge")
    gone = torch.zeros_like(s.protect)
    gone[:, 30:] = True
    size, x = s.size.masked_fill(gone[..., None], 0), s.x.masked_fill(gone[..., None], 0)
    for key in (s.k, s.k.masked_fill(gone[:, None, :, None], 7.0)):
        empty = replace(s, x=x, k=key, size=size)
        attention = full_width_attention(
            *(t.transpose(1, 2).flatten(2) for t in (s.q, key)), size[..., 0] > 0
        )
        assert (attention[:, 30:] == 0).all()
        close(attention.sum(1), torch.ones(3))
        tokens, new = PruMerge(adaptive=False).plan(empty, 30).apply(x, size)
        assert torch.isfinite(tokens).all() and (new > 0).all() and new.sum() == 3 * 30


@pytest.mark.parametrize("name", METHODS)
def test_runs_on_the_meta_device(name: str) -> None:
    s = random_site(name)
    meta = {f: getattr(s, f).to("meta") for f in ("x", "q", "k", "v", "size", "protect")}
    anchor = None if s.anchor is None else s.anchor.to("meta")
    plan = METHODS[name].plan(replace(s, **meta, anchor=anchor), 25)
    x, _ = plan.apply(meta["x"], meta["size"])
    most = METHODS[name].plan(s, 25).apply(s.x, s.size)[0].shape[1]
    assert x.shape[1] == most or (name.startswith("prumerge") and x.shape[1] == 16)


@pytest.mark.parametrize("name", [n for n in METHODS if not is_adaptive(METHODS[n])])
def test_compiles_as_one_graph(name: str) -> None:
    s = random_site(name)

    def reduce(x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        site = replace(s, x=x, q=q, k=k)
        return METHODS[name].plan(site, 25).apply(x, s.size)[0]

    torch._dynamo.reset()
    compiled = torch.compile(reduce, fullgraph=True, backend="aot_eager")
    close(compiled(s.x, s.q, s.k), reduce(s.x, s.q, s.k))


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_tokens(name: str) -> None:
    s = random_site(name)
    x = s.x.clone().requires_grad_()
    METHODS[name].plan(replace(s, x=x), 20).apply(x, s.size)[0].square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and (x.grad != 0).any()


# --- counts and guards ------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rate", [0.02, 0.25, 0.9])
def test_as_many_tokens_are_left_as_the_budget_says(name: str, rate: float) -> None:
    s, method = random_site(name), METHODS[name]
    keeps_class = isinstance(method, VisionZip)
    free = s.x.shape[1] - s.n_protected
    wanted = as_schedule(method, keep_rate=rate, layers=[0])(0, 1, free, free)
    r = method.feasible(wanted, free, None)
    kept = method.plan(s, r).apply(s.x, s.size)[0].shape[1] - s.n_protected * (not keeps_class)
    rounded = round(rate * free) if name == "divprune" else math.ceil(rate * free)
    if isinstance(method, PruMerge) and not method.adaptive:
        kinds = 1 + method.plus
        rounded = kinds * math.floor(rate / kinds * free) + 1
    expected = max(rounded, method.least + keeps_class)
    if name == "visionzip-counts":
        assert kept == 10
    elif is_adaptive(method):
        assert 2 <= kept <= expected
    else:
        assert kept == expected


def test_the_authors_budgets() -> None:
    def left(method: Reducer, patches: int) -> int:
        wanted = as_schedule(method, keep_rate=method.budget["keep_rate"])(0, 1, patches, patches)
        r = method.feasible(wanted, patches, None)
        return patches + isinstance(method, VisionZip) - r

    assert left(VisionZip(), 576) == 64 == left(VisionZip(54, 10), 576)
    assert round(64 * VisionZip().contextual_share) == 10
    assert left(DivPrune(), 576) == 56 and DivPrune().budget["layers"] == (0,)
    assert left(PruMerge(adaptive=False), 576) == 72 + 1
    assert left(PruMerge(adaptive=False, plus=True), 576) == 2 * 72 + 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VisionZip(dominant=54), "give both dominant= and contextual="),
        (lambda: VisionZip(0, 10), "dominant must be at least 1"),
        (lambda: VisionZip(5, -1), "contextual at least 0"),
        (lambda: VisionZip(contextual_share=1.0), r"share in \[0, 1\)"),
        (lambda: VisionZip(54, 10).feasible(3, 36, None), "contextual <= 36, not 64"),
        (lambda: VisPruner(1.5), r"share in \[0, 1\]"),
        (lambda: VisPruner(per_iteration=0), "per_iteration must be at least 1"),
        (lambda: PruMerge(k_neighbours=0), "k_neighbours must be at least 1"),
    ],
)
def test_wrong_parameters_are_named(make: Any, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        make()


# --- whole models -----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT", "Qwen3-VL"])
def test_whole_models(family: str, name: str) -> None:
    make, batch_of = tiny.MODELS[family]
    model, batch = make(), batch_of(3)
    if family == "Qwen3-VL" and METHODS[name].needs_anchor:
        with pytest.raises(BenchError, match="class token, and this model's image encoder has non"):
            bench.reduced(model, METHODS[name]).__enter__()
        return
    plain = model(**batch).logits
    with bench.reduced(model, METHODS[name]):
        reduced = model(**batch).logits
        together = tiny.answers(model, batch, 4)
        each = torch.cat([tiny.answers(model, tiny.alone(batch, i), 4) for i in range(3)])
        if family == "LLaVA":
            tower = METHODS[name].towers[0]
            seen = bench.trace(model, **tiny.alone(batch, 0)).tokens[tower]
    assert torch.isfinite(reduced).all() and not torch.equal(reduced, plain)
    assert torch.equal(together, each)
    assert torch.equal(model(**batch).logits, plain)
    if family == "LLaVA" and name == "visionzip":
        assert seen[0][1] == 4
    if family == "LLaVA" and name == "visionzip-counts":
        assert seen[0][1] == 10
    if family == "LLaVA" and name in ("fastervlm", "vispruner"):
        assert seen[0][1] == 9
    if family == "LLaVA" and name == "divprune":
        assert seen[0] == (8 + 4, 8 + 4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fastervlm", "visionzip", "vispruner"])
def test_new_lines_go_where_the_authors_emit_none(name: str) -> None:
    """A LLaVA-NeXT puts crops together to rows of patches, each with a token behind it."""
    model, batch = tiny.llava_next(), tiny.llava_next_batch(3)
    line, embeds = model.model.image_newline, []
    first = model.model.language_model.layers[0]
    hook = first.register_forward_pre_hook(
        lambda _, args, kw: embeds.append(args[0] if args else kw["hidden_states"]),
        with_kwargs=True,
    )
    for i, rows in enumerate((6, 12, 12)):
        one = tiny.alone(batch, i)
        model(**one)
        with bench.reduced(model, METHODS[name]):
            model(**one)
        plain, shorter = ((x == line).all(-1).sum() for x in embeds[-2:])
        assert plain == rows and shorter == (rows if name == "vispruner" else 0)
        with bench.reduced(model, METHODS[name], r=lambda *_: 0):
            model(**one)
        assert torch.equal(embeds[-1], embeds[-3])
    hook.remove()
