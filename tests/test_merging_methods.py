"""ToFu, PiToMe, vid-TLDR and DiffRate: the authors' outputs, plain loops, and whole models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sites import close, image_site
from torch import Tensor, nn

import bench
from bench.core import BenchError, Plan, Reducer, Site, Unsupported
from bench.core.schedules import as_schedule
from bench.records.published import PublishedCost
from methods.algorithms.ranking import ranked_by_anchor
from methods.algorithms.rates import published_rates
from methods.diffrate import DiffRate, prune_then_merge
from methods.pitome import PiToMe
from methods.tofu import ToFu
from methods.vid_tldr import VidTLDR, objectness
from tests import tiny

NAMES = ("tofu", "pitome", "vid-tldr", "diffrate")


def random_site(n: int = 23, seed: int = 0, **kw: Any) -> Site:
    """Tokens around few centres, so that similarities differ, with sizes 1 to 5."""
    torch.manual_seed(seed)
    centre = torch.randn(2, 5, 12)[:, torch.randint(0, 5, (n,))]
    x = centre + 0.7 * torch.randn(2, n, 12)
    q, k = torch.randn(2, 2, 3, n, 4).unbind(0)
    size = torch.randint(1, 6, (2, n, 1)).float()
    size[:, 0] = 1
    return image_site(x, q, 0.5 * k + x.view(2, n, 3, 4).transpose(1, 2), size=size, **kw)


# --- plain loops ------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def by_position(metric: Tensor, r: int, protect: Tensor) -> tuple[list[int], dict[int, int]]:
    """ToMe's matching of one sample: kept positions in order, and source -> destination."""
    n = len(metric)
    odd = list(range(1, n, 2))
    best: dict[int, tuple[float, int]] = {}
    for i in range(0, n, 2):
        if not protect[i]:
            best[i] = max((cosine(metric[i], metric[j]), -j) for j in odd if not protect[j])
    sources = sorted(best, key=lambda i: (-best[i][0], i))[:r]
    into = {i: -best[i][1] for i in sources}
    return [i for i in range(0, n, 2) if i not in into] + odd, into


def groups(kept: list[int], into: dict[int, int]) -> list[list[int]]:
    """The tokens of each output slot, the destination first."""
    return [[d, *(i for i, to in into.items() if to == d)] for d in kept]


@pytest.mark.parametrize("metric", ["keys", "x"])
@pytest.mark.parametrize("strategy", ["prune", "mean", "tofu", "mlerp"])
def test_tofu_is_its_loop(strategy: str, metric: str) -> None:
    s, r = random_site(), 7
    mended = strategy == "mlerp"
    plan = ToFu("tofu" if mended else strategy, mended, metric).plan(s, r)
    out = plan.apply(s.x, s.size)[0]
    for b in range(2):
        kept, into = by_position(s.x[b] if metric == "x" else s.k[b].mean(0), r, s.protect[b])
        x = s.x[b]
        for slot, members in enumerate(groups(kept, into)):
            expected = torch.stack([x[i] for i in members]).mean(0)
            largest = max(float(x[i].norm()) for i in members)
            if strategy == "prune":
                expected = x[members[0]]
            elif strategy == "tofu":
                expected = expected * largest / x[members[0]].norm()
            elif mended:
                expected = expected * largest / expected.norm()
                assert float(out[b, slot].norm()) == pytest.approx(largest, rel=1e-4)
            close(out[b, slot], expected)


@pytest.mark.parametrize("n", [22, 23])
@pytest.mark.parametrize("variant", ["pitome", "bsm-split"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_pitome_is_its_loop(variant: str, n: int, alpha: float) -> None:
    s = random_site(n, seed=1, protected=(0, n - 1))
    r = 6
    plan = PiToMe(variant, margin=0.3, alpha=alpha).plan(s, r)
    x, size = plan.apply(s.x, s.size)
    for b in range(2):
        metric, free = s.k[b].mean(0), range(1, n - 1)
        energy = {}
        for i in free:
            gaps = [cosine(metric[i], metric[j]) - 0.3 for j in free]
            energy[i] = sum(g if g > 0 else alpha * (math.exp(g) - 1) for g in gaps) / len(free)
        rank = sorted(free, key=lambda i: -energy[i])
        among = rank[: 2 * r] if variant == "pitome" else rank
        a, b_side = among[::2], among[1::2]
        best = {i: max((cosine(metric[i], metric[j]), j) for j in b_side) for i in a}
        order = sorted(a, key=lambda i: -best[i][0])
        into = {i: best[i][1] for i in order[:r]}
        kept = [0, n - 1, *rank[len(among) :], *order[r:], *b_side]
        assert plan.keep[b].tolist() == kept
        for slot, members in enumerate(groups(kept, into)):
            total = sum(float(s.size[b, i]) for i in members)
            close(x[b, slot], sum(s.size[b, i] * s.x[b, i] for i in members) / total)
            assert size[b, slot] == total


@pytest.mark.parametrize("protected", [(), (0,)])
def test_vid_tldr_is_its_loop(protected: tuple[int, ...]) -> None:
    s, r = random_site(seed=2, protected=protected), 9
    found = objectness(s)
    x, size = VidTLDR().plan(s, r).apply(s.x, s.size)
    for b in range(2):
        free = [i for i in range(s.x.shape[1]) if i not in protected]
        sharp = {}
        for i in free:
            rows = [
                torch.stack([q[i] @ k[j] / 2 for j in free]).softmax(0)
                for q, k in zip(s.q[b], s.k[b], strict=True)
            ]
            sharp[i] = sum(float(a * a.log()) for a in torch.stack(rows).mean(0))
        low, high = min(sharp.values()), max(sharp.values())
        scaled = {i: (v - low) / (high - low) for i, v in sharp.items()}
        mean = sum(scaled.values()) / len(free)
        top = max(scaled.values()) - mean
        score = {i: max(v - mean, 0) / top for i, v in scaled.items()}
        close(found[b], torch.tensor([score.get(i, 0.0) for i in range(s.x.shape[1])]))
        kept, into = by_position(s.x[b], r, s.protect[b])
        assert any(score[i] == 0 for i in into) and any(score[i] > 0 for i in into)
        for slot, (d, *sources) in enumerate(groups(kept, into)):
            weights = {d: float(s.size[b, d])}
            weights |= {i: score[i] * float(s.size[b, i]) for i in sources}
            total = sum(weights.values())
            close(x[b, slot], sum(w * s.x[b, i] for i, w in weights.items()) / total)
            assert float(size[b, slot]) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kept", [(17, 11), (23, 12), (14, 14), (60, 11), (60, 55), (9, 1)])
def test_diffrate_is_its_loop(kept: tuple[int, int]) -> None:
    s = random_site(seed=3)
    n = s.x.shape[1]
    x, size = prune_then_merge(s, *kept).apply(s.x, s.size)
    for b in range(2):
        score = torch.zeros(n)
        for q, k in zip(s.q[b], s.k[b], strict=True):
            logits = [q[0] @ k[j] / 2 + math.log(float(s.size[b, j])) for j in range(n)]
            score += torch.stack(logits).softmax(0) / s.q.shape[1]
        order = [0, *sorted(range(1, n), key=lambda i: -float(score[i]))][: kept[0]]
        stay, gone = order[: kept[1]], order[kept[1] :]
        joins = (
            {i: max((cosine(s.x[b, i], s.x[b, d]), d) for d in stay[1:]) for i in gone}
            if (len(stay) > 1)
            else {}
        )
        assert x.shape[1] == len(stay)
        for slot, d in enumerate(stay):
            sources = [i for i, (_, to) in joins.items() if to == d]
            close(x[b, slot], torch.stack([s.x[b, i] for i in (d, *sources)]).mean(0))
            grown = sum(joins[i][0] * float(s.size[b, i]) for i in sources)
            assert float(size[b, slot]) == pytest.approx(float(s.size[b, d]) + grown, rel=1e-4)


def test_a_size_never_falls_below_zero() -> None:
    s = random_site()
    x = s.x.abs()
    order = ranked_by_anchor(s)
    x[torch.arange(2)[:, None], order[:, -9:]] *= -1  # the sources point away from all others
    opposed = image_site(x, s.q, s.k, size=s.size)
    _, size = prune_then_merge(opposed, 23, 14).apply(x, s.size)
    assert (size >= 0).all() and (size == 0).any()


# --- which rule acts in which block -----------------------------------------------------------


def same(a: Plan, b: Plan) -> bool:
    if (a.src is None) != (b.src is None) or not torch.equal(a.keep, b.keep):
        return False
    return a.src is None or torch.equal(a.src, b.src)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [4, 5, 12])
def test_rules_by_block(depth: int) -> None:
    for layer in range(depth):
        s = random_site(layer=layer, depth=depth)
        early = "prune" if layer <= depth // 2 else "tofu"
        assert same(ToFu().plan(s, 5), ToFu(early).plan(s, 5))
        assert not same(ToFu().plan(s, 5), ToFu("tofu" if early == "prune" else "prune").plan(s, 5))
        split = layer < math.ceil(depth / 2)
        for variant, used in (("bsm-split", split), ("pitome", not split)):
            assert same(PiToMe().plan(s, 5), PiToMe(variant).plan(s, 5)) is used
        for margin in ((0.75, 0.75), (0.9, 0.9)):
            number = margin[0] - margin[1] * layer / depth
            assert same(PiToMe(margin=margin).plan(s, 5), PiToMe(margin=number).plan(s, 5))
    s = random_site()
    assert not same(PiToMe(margin=-1.0).plan(s, 5), PiToMe(margin=0.6).plan(s, 5))


def test_how_much_of_a_removal_is_pruned() -> None:
    s = random_site()
    for share, pruned in ((0.0, 0), (0.5, 4), (0.3, 2), (1.0, 7)):
        assert int((DiffRate(share).plan(s, 7).slots(23) < 0).sum()) == 2 * pruned
    assert DiffRate(1).plan(s, 7).src is None
    with pytest.raises(BenchError, match="3 entries but the model has 12 blocks"):
        DiffRate([1, 2, 3]).plan(s, 7)
    for name in ("deit-s/2.9", "mae-h/103.4"):
        pruned_at, removed = published_rates(name)
        assert removed[0] == 0 and all(p <= r for p, r in zip(pruned_at, removed, strict=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ToFu("sum"), "tofu has no strategy 'sum'"),
        (lambda: ToFu(metric="key"), "tofu has no metric 'key' — did you mean 'keys'"),
        (lambda: PiToMe("bsm_split"), "did you mean 'bsm-split'"),
        (lambda: PiToMe(metric="key"), "did you mean 'keys'"),
        (lambda: DiffRate(1.5), r"share in \[0, 1\]"),
        (lambda: DiffRate(rates="deit-s/29"), "did you mean 'deit-s/2.9'"),
    ],
)
def test_wrong_parameters_are_named(make: Any, says: str) -> None:
    with pytest.raises(BenchError, match=says):
        make()


# --- whole models -----------------------------------------------------------------------------


def run(model: nn.Module, kw: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    return tiny.run(model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in kw.items()})


FAMILIES = ("timm", "timm-registers", "timm-avg-qknorm-ls", "clip", "siglip")
REFUSED = {("diffrate", "siglip"), ("diffrate", "timm-avg-qknorm-ls")}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_whole_models(name: str, family: str, dtype: torch.dtype) -> None:
    model = tiny.MODELS[family]().to(dtype)
    kw = tiny.inputs(model)
    plain = run(model, kw, dtype)
    if (name, family) in REFUSED:
        with pytest.raises(Unsupported, match="class token"):
            bench.reduced(model, name, r=6).__enter__()
        return
    with bench.reduced(model, name, r=0):
        assert torch.equal(run(model, kw, dtype), plain)
    with bench.reduced(model, name, r=lambda *_: 0):
        assert torch.equal(run(model, kw, dtype), plain)
    images = kw["pixel_values"].to(dtype)
    call = ((images,), {}) if "timm" in family else ((), {**kw, "pixel_values": images})
    with bench.reduced(model, name, r=6):
        out = run(model, kw, dtype)
        seen = bench.trace(model, *call[0], **call[1])
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    n = seen.tokens["vision"][0][0]
    assert [after for _, after in seen.tokens["vision"]] == [n - 6, n - 12, n - 18, n - 24]
    prefix = bench.adapter_for(model).towers(model)["vision"].prefix
    position, size = seen.position(), seen.sizes["vision"][-1][1]
    assert position is not None
    assert torch.equal(position[:, :prefix], torch.arange(prefix).expand(2, -1))
    assert (size > 0).all() and (size[:, :prefix] == 1).all()
    if name == "pitome":
        assert (position >= 0).all() and (size.sum(1) == n).all()
    elif name == "tofu":  # blocks 0 to 2 of 4 prune, the last one merges
        assert ((position < 0).sum(1) == 18).all() and (size.sum(1) == n - 18).all()
    else:  # what is dropped, or unlike what it joins, is not stood for
        assert (size.sum(1) < n).all()
        assert ((position < 0).sum(1) == (12 if name == "diffrate" else 0)).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("build", [tiny.clip, tiny.siglip])
@pytest.mark.parametrize("name", NAMES)
def test_text_towers(name: str, build: Any, dtype: torch.dtype) -> None:
    model = build().to(dtype)
    kw = tiny.inputs(model, 3)
    kw["pixel_values"] = kw["pixel_values"].to(dtype)
    plain = run(model, kw, dtype)
    with bench.reduced(model, name, r={"text": 2}):
        if name == "vid-tldr":
            with pytest.raises(Unsupported, match="none for text"):
                run(model, kw, dtype)
            return
        out = run(model, kw, dtype)
        seen = bench.trace(model, **kw)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert seen.tokens["text"] == [(14, 12), (12, 10), (10, 8)]
    position = seen.position("text")
    assert position is not None
    read = (kw["input_ids"] == tiny.EOS).int().argmax(1)
    read = read if build is tiny.clip else torch.full_like(read, 13)
    at = position.gather(1, read[:, None])[:, 0]
    size = seen.sizes["text"][-1][1]
    assert (position[:, 0] == 0).all() and (at > 0).all()
    assert (size[:, 0] == 1).all() and (size[torch.arange(3), at] == 1).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "params", "left"),
    [
        ("pitome", {"variant": "bsm"}, 65 - 13),
        ("tofu", {}, 65 - 13),
        ("pitome", {"variant": "bsm-split"}, 65 - 12),
        ("tome", {}, 65 - 12),
    ],
)
def test_a_share_is_of_the_tokens_that_its_authors_count(
    name: str, params: dict[str, Any], left: int
) -> None:
    """Of 65 tokens, one of them the class token, or of 64 patches."""
    model = tiny.timm_vit()
    with bench.reduced(model, name, keep_rate=0.8, layers=[1], **params):
        assert bench.trace(model, tiny.images(1)).tokens["vision"][1] == (65, left)


def test_vid_tldr_reduces_in_the_first_blocks_as_its_authors() -> None:
    schedule, tokens, gone = as_schedule(VidTLDR(), **VidTLDR.budget), 2352, []
    for layer in range(12):
        gone.append(schedule(layer, 12, tokens, 2352))
        tokens -= gone[-1]
    assert gone == [600, 200, 100] + [0] * 9
    model = tiny.timm_vit()
    with torch.no_grad(), bench.reduced(model, "vid-tldr"):
        seen = bench.trace(model, tiny.images(1)).tokens["vision"]
    assert [a - b for a, b in seen] == [16, 5, 2, 0]


def test_nearly_even_attention_has_an_objectness_in_all_digits() -> None:
    s = random_site(64, protected=())
    s = replace(s, q=0.1 * s.q, k=0.1 * s.k, bias=None)
    attention = replace(s, q=s.q.double(), k=s.k.double()).attention().mean(1)
    sharp = (attention * attention.log()).sum(-1)  # in float32 this would be 0.01 off
    above = (sharp - sharp.mean(1, keepdim=True)).clamp_min(0)
    exact = (above / above.amax(1, keepdim=True)).float()
    torch.testing.assert_close(objectness(s), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [22, 23])
def test_vid_tldr_stops_at_half(n: int) -> None:
    for protected in ((), (0,)):
        plan = VidTLDR().plan(random_site(n, protected=protected), 20)
        assert plan.keep.shape[1] == n - (n - len(protected)) // 2


@pytest.mark.parametrize(
    "method",
    [ToFu("mean"), ToFu("tofu"), ToFu("tofu", mended=True), PiToMe(weighted=False), DiffRate(0.0)],
    ids=["mean", "tofu", "mlerp", "pitome", "diffrate"],
)
def test_an_empty_slot_weighs_nothing(method: Reducer) -> None:
    s = random_site(31, seed=4)
    empty = torch.zeros_like(s.protect)
    empty[:, 5::3] = True
    size = s.size.masked_fill(empty[..., None], 0)
    s = image_site(s.x.where(~empty[..., None], 3 * s.x + 1), s.q, s.k, size=size)
    plan = method.plan(s, 11)
    x, new = plan.apply(s.x, s.size)
    slots, met = plan.slots(31), set()
    for b in range(2):
        for slot in range(20):
            members = (slots[b] == slot).nonzero().flatten()
            filled = members[~empty[b, members]]
            met.add((len(filled) < len(members), min(len(filled), 2)))
            if len(filled) == 0:
                assert (x[b, slot] == 0).all() and new[b, slot] == 0
            elif len(filled) == 1 and plan.keep[b, slot] == filled[0]:
                close(x[b, slot], s.x[b, filled[0]])
            elif not isinstance(method, ToFu) or method.strategy == "mean":
                close(x[b, slot], s.x[b, filled].mean(0))
            else:
                largest = float(s.x[b, filled].norm(dim=-1).max())
                assert method.mended is False or float(x[b, slot].norm()) == pytest.approx(largest)
    assert {(True, 1), (False, 1)} <= met


@torch.no_grad()
@pytest.mark.parametrize("name", ["tofu", "pitome", "diffrate"])
@pytest.mark.parametrize("params", [{}, {"late": True}])
def test_padding_stands_for_nothing(name: str, params: dict[str, Any]) -> None:
    late = {"tofu": {"strategy": "tofu"}, "pitome": {"weighted": False}, "diffrate": {"prune": 0.0}}
    method: Reducer = bench.core.registry.method(name)(**(late[name] if params else {}))
    tower = tiny.clip().text_model
    ids = tiny.token_ids(3)
    mask = (torch.arange(14) <= (ids == tiny.EOS).int().argmax(1, keepdim=True)).long()
    with bench.reduced(tower, method, r={"text": 2}):
        a = tower(ids, attention_mask=mask).pooler_output
        b = tower(torch.where(mask.bool(), ids, 7), attention_mask=mask).pooler_output
    assert torch.isfinite(a).all() and torch.equal(a, b)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_text_attention_ends_at_its_token(attention: str) -> None:
    """A causal kernel needs no mask, but what methods see must be what the block did."""
    seen = []

    class Look(Reducer):
        def plan(self, site: Site, r: int) -> Plan:
            assert site.anchor is not None
            later = torch.arange(14) > site.anchor[:, None]
            seen.append(site.anchor_attention()[later])
            return Plan(torch.arange(14).expand(3, -1))

    model = tiny.clip(attention)
    with bench.reduced(model, Look(), r={"text": [1, 0, 0]}):
        run(model, tiny.inputs(model, 3))
    assert len(seen) == 1 and seen[0].numel() > 0 and (seen[0] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("rates", ["deit-s/2.9", "deit-b/11.5", "mae-b/11.5"])
def test_published_rates_are_followed(rates: str, repo: Path) -> None:
    data = json.loads((repo / "bench/assets/data/diffrate.json").read_text(encoding="utf-8"))
    kept = data["rates"][rates]
    model = tiny.timm_vit(img_size=56, depth=12)
    with bench.reduced(model, "diffrate", rates=rates):
        seen = bench.trace(model, tiny.images(1, 56))
    left, dropped = 197, []
    for i, (n_in, n_out) in enumerate(seen.tokens["vision"]):
        assert n_in == left
        left = min(n_in, kept["prune_kept"][i])
        dropped.append(n_in - left)
        left = min(left, kept["merge_kept"][i])
        assert n_out == left
    slots = dict(seen.layer_slots["vision"])
    assert [int((slots[i] < 0).sum()) if i in slots else 0 for i in range(12)] == dropped
    with bench.reduced(model, "diffrate", rates=rates, r=5):  # the user's budget goes first
        assert bench.trace(model, tiny.images(1, 56)).tokens["vision"][0] == (197, 192)


def test_a_row_may_be_held_to_less() -> None:
    row = PublishedCost("figure", "label", "gmacs", "100.0", "source", tolerance="0.005")
    assert row.within(100.4) and not row.within(100.6)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(name: str) -> None:
    model = tiny.timm_vit(depth=2)
    x = tiny.images()
    torch._dynamo.reset()
    with bench.reduced(model, name, r=6):
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tome", "tofu"])
def test_start_and_end_of_text_stay_at_the_cap(name: str) -> None:
    """Wherever the end of text stands, half of the others leave and none of the two does."""
    model = tiny.clip()
    kw = tiny.inputs(model)
    for end in range(3, 14):
        ids = torch.randint(1, 90, (2, 14))
        ids[:, end], ids[:, end + 1 :] = tiny.EOS, 0
        with bench.reduced(model, name, r={"text": 6}):
            seen = bench.trace(model, **{**kw, "input_ids": ids})
        assert seen.tokens["text"][0] == (14, 8)
        _, slot = seen.layer_slots["text"][0]
        for fixed in (0, end):
            others = torch.arange(14) != fixed
            assert (slot[:, fixed] >= 0).all()
            assert (slot[:, others] != slot[:, fixed, None]).all(), (end, fixed)
