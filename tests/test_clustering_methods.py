"""Clustering, sampling and learned merging: authors' outputs, plain loops, whole models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sites import close, image_site
from tiny import MODELS, clip, inputs, run, siglip, timm_vit
from torch import Tensor, nn

import bench
from bench.core.errors import BenchError, Unsupported
from bench.core.schedules import as_schedule
from methods.algorithms.clustering import k_medoids
from methods.algorithms.queries import new_queries
from methods.algorithms.sampling import sample_positional, sample_sorted
from methods.ats import ATS, significance
from methods.dpc_knn import DPCKNN
from methods.kmedoids import KMedoids
from methods.patchmerger import PatchMerger

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpc-knn": ("dpc-knn", {}),
    "kmedoids": ("kmedoids", {}),
    "kmedoids-equal": ("kmedoids", {"equal_weight": True}),
    "ats": ("ats", {}),
    "ats-all-slots": ("ats", {"drop_tokens": False}),
    "ats-positional": ("ats", {"variant": "positional"}),
    "patchmerger": ("patchmerger", {"queries": "random"}),
}


# --- plain loops ---------------------------------------------------------------------------------


def test_steps_that_rounding_makes_one_more_of() -> None:
    score = torch.rand(1, 40)
    longer = [k for k in range(8, 60) if sample_positional(score, k)[1].shape[1] == k]
    assert longer == [12, 14, 19, 27, 34, 35, 36, 39, 42, 47, 48, 51, 55, 56, 58]


def distances(x: Tensor) -> list[list[float]]:
    return [[math.dist(a, b) for b in x.tolist()] for a in x.tolist()]


def least(values: list[float]) -> int:
    return min(range(len(values)), key=lambda i: (values[i], i))


def test_dpc_knn_in_plain_loops() -> None:
    torch.manual_seed(3)
    x, K, k = torch.randn(2, 31, 8), 9, 4
    s = image_site(torch.cat([torch.randn(2, 1, 8), x], 1))
    plan = DPCKNN(k=k).plan(s, 31 - K)
    out, size = plan.apply(s.x, s.size)
    for b in range(2):
        d = [[v / 8**0.5 for v in row] for row in distances(x[b])]
        rho = [math.exp(-sum(v * v for v in sorted(row)[:k]) / k) for row in d]
        largest = max(max(row) for row in d)
        delta = [
            min([d[i][j] for j in range(31) if rho[j] > rho[i]], default=largest) for i in range(31)
        ]
        centres = sorted(range(31), key=lambda i: -rho[i] * delta[i])[:K]
        members: list[list[int]] = [[c] for c in centres]
        for i in set(range(31)) - set(centres):
            members[least([d[i][c] for c in centres])].append(i)
        assert (plan.keep[b] - 1).tolist() == [-1, *centres]
        for slot, own in enumerate(members, 1):
            close(out[b, slot], x[b, own].mean(0))
            assert size[b, slot] == len(own)


@pytest.mark.parametrize("equal", [False, True])
def test_kmedoids_in_plain_loops(equal: bool) -> None:
    torch.manual_seed(4)
    x, K = torch.randn(2, 33, 6), 7
    weight = None if equal else torch.rand(2, 33) + 0.5
    medoid, cluster = k_medoids(x, K, 2, weight, first=5)
    for b in range(2):
        d = distances(x[b])
        w = [1.0] * 33 if weight is None else weight[b].tolist()
        if equal:
            m = [5]
            while len(m) < K:
                m.append(
                    max(
                        (i for i in range(33) if i not in m),
                        key=lambda i: max(d[i][j] for j in m),  # noqa: B023
                    )
                )
        else:
            m = sorted(range(33), key=lambda i: -w[i])[:K]
        for _ in range(2):
            to = [least([d[i][c] for c in m]) for i in range(33)]
            m = [
                min((i for i in range(33) if to[i] == c), key=lambda i: w[i] * sum(d[i]))  # noqa: B023
                for c in range(K)
            ]
        assert medoid[b].tolist() == m
        assert cluster[b].tolist() == [least([d[i][c] for c in m]) for i in range(33)]


def test_tokens_that_coincide_leave_no_cluster_empty() -> None:
    x = torch.randn(1, 30, 4)
    x[:, 10:20] = x[:, 10:11]
    weight = torch.ones(1, 30)
    weight[:, 10:20] = 2.0  # the first choice falls on all the equal ones
    medoid, cluster = k_medoids(x, 10, 3, weight)
    assert medoid.unique().numel() == 10
    assert cluster.unique().numel() == 10


@pytest.mark.parametrize("points", [7, 20, 60])
def test_sorted_sampling_in_plain_loops(points: int) -> None:
    torch.manual_seed(points)
    score = torch.rand(2, 25) ** 3
    order, rank = sample_sorted(score, points)
    for b in range(2):
        s = score[b].double()
        up = sorted(range(25), key=lambda i: s[i].item())
        assert order[b].tolist() == up
        heaped = [sum(s[i].item() for i in up[: n + 1]) for n in range(25)]
        curve = [(h - heaped[0]) / (heaped[-1] - heaped[0]) for h in heaped]
        start = min(c for c in curve if c > 0)
        listed = curve[-points:] if points <= 25 else [0.0] * (points - 25) + curve
        for i in range(points):
            y = start + (1 - start) * i / (points - 1)
            expected = least([abs(y - c) for c in listed]) + 25 - len(listed)
            assert rank[b, i] == expected
    assert rank.min() > 0


def test_positional_sampling_in_plain_loops() -> None:
    score = torch.rand(2, 25)
    empty = (torch.arange(25) - 4).abs() < torch.tensor([[0], [5]])  # the second's first nine
    score = score.masked_fill(empty, 0.0)
    _, rank = sample_positional(score, 20, empty)
    for b in range(2):
        s, total = score[b].tolist(), score[b].sum().item() + 1e-6
        curve = [sum(s[: n + 1]) / total + 0.1 * bool(empty[b, n]) for n in range(25)]
        for i in range(19):
            assert rank[b, i] == least([abs((i + 0.5) / 20 - c) for c in curve])


def test_significance_in_plain_loops() -> None:
    attention, v = torch.rand(2, 3, 9), torch.randn(2, 3, 9, 4)
    joint, per_head = significance(attention, v), significance(attention, v, per_head=True)
    for b in range(2):
        for n in range(9):
            close(joint[b, n], attention[b, :, n].sum() * v[b, :, n].flatten().norm())
            close(per_head[b, n], sum(attention[b, h, n] * v[b, h, n].norm() for h in range(3)))


def test_patchmerger_in_plain_loops() -> None:
    torch.manual_seed(5)
    x, table = torch.randn(2, 12, 8), torch.randn(3, 8)
    s = image_site(x, size=torch.randint(1, 5, (2, 12, 1)).float())
    plan = PatchMerger(queries={"vision.3": table}).plan(s, 8)
    out, size = plan.apply(x, s.size)
    for b in range(2):
        assert torch.equal(out[b, 0], x[b, 0])
        assert size[b, 0] == s.size[b, 0]
        normal = [(t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt() for t in x[b, 1:]]
        raw = [[math.exp(float(q @ t)) for t in normal] for q in table]
        weight = [[v / sum(row) for v in row] for row in raw]
        for m in range(3):
            close(out[b, m + 1], sum(w * t for w, t in zip(weight[m], x[b, 1:], strict=True)))
            share = [w / sum(r[n] for r in weight) for n, w in enumerate(weight[m])]
            mass = sum(w * float(n) for w, n in zip(share, s.size[b, 1:, 0], strict=True))
            close(size[b, m + 1, 0], torch.tensor(mass))
    close(size.sum(1), s.size.sum(1))


# --- whole models --------------------------------------------------------------------------------


def traced(model: Any, kw: dict[str, Tensor]) -> Any:
    is_timm = "timm" in type(model).__module__
    return bench.trace(model, kw["pixel_values"]) if is_timm else bench.trace(model, **kw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["timm", "timm-distilled", "clip", "siglip"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_whole_models(variant: str, family: str, dtype: torch.dtype) -> None:
    name, params = VARIANTS[variant]
    model = MODELS[family]().to(dtype)
    kw = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs(model, 3).items()}
    if family == "siglip" and name == "ats":
        with pytest.raises(Unsupported, match="class token"):
            bench.reduced(model, name, **params).__enter__()
        return
    with torch.no_grad(), bench.reduced(model, name, keep_rate=0.5, **params):
        assert run(model, kw).isfinite().all()
        seen = traced(model, kw)
    prefix = bench.adapter_for(model).towers(model)["vision"].prefix
    n = 64 + prefix
    sizes = dict(seen.sizes["vision"])
    assert list(sizes) == [1, 2, 3]
    if name == "ats":
        for layer, points in ((1, 32), (2, 16), (3, 8)):
            count = (sizes[layer][..., 0] > 0).sum(1)
            assert (count > prefix).all() and (count <= prefix + points + 1).all()
            every = prefix + points
            slots = int(count.max()) if params.get("drop_tokens", True) else every
            assert seen.tokens["vision"][layer][1] == slots
    else:
        counts = [prefix + k for k in (32, 16, 8)]
        assert seen.tokens["vision"] == [(n, n), *((c, c) for c in counts)]
        mass = [size.sum(1) for size in sizes.values()]
        keeps_mass = name != "kmedoids"
        for total, c in zip(mass, counts, strict=True):
            close(total, torch.full_like(total, n if keeps_mass else c))
    position = seen.position()
    assert torch.equal(position[:, :prefix], torch.arange(prefix).expand(3, -1))


@pytest.mark.parametrize("build", [timm_vit, clip])
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_to_remove_is_the_model_itself(variant: str, build: Any) -> None:
    name, params = VARIANTS[variant]
    model = build()
    kw = inputs(model)
    with torch.no_grad():
        plain = run(model, kw)
        for budget in ({"keep_rate": 1.0}, {"r": 0}, {"r": lambda *_: 0}):
            with bench.reduced(model, name, **budget, **params):
                assert torch.equal(run(model, kw), plain)


@pytest.mark.parametrize("build", [timm_vit, clip])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_does_not_depend_on_its_batch(variant: str, build: Any) -> None:
    name, params = VARIANTS[variant]
    model = build()
    _sharpen(model)
    kw = inputs(model, 4)
    kw["pixel_values"] = kw["pixel_values"] * torch.tensor([0.2, 1, 3, 6])[:, None, None, None]
    with torch.no_grad(), bench.reduced(model, name, keep_rate=0.6, **params):
        together, seen = run(model, kw), traced(model, kw)
        one = [{k: v[i : i + 1] for k, v in kw.items()} for i in range(4)]
        alone, own = torch.cat([run(model, k) for k in one]), [traced(model, k) for k in one]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    for (_, size), *singles in zip(
        seen.sizes["vision"], *(o.sizes["vision"] for o in own), strict=True
    ):
        count = (size > 0).sum(1).flatten().tolist()
        assert count == [int((single > 0).sum()) for _, single in singles]
        if name == "ats":
            assert len(set(count)) > 1  # it is a test only where the counts differ


def _sharpen(model: nn.Module) -> None:
    """Attention that differs between images, which a model fresh from its init has not.

    Any sharper, and neighbours on the curve that ATS samples along are equal but for rounding.
    """
    torch.manual_seed(4)
    for name, weight in model.named_parameters():
        if any(part in name for part in ("qkv.weight", "q_proj.weight", "k_proj.weight")):
            nn.init.normal_(weight, std=0.25)


@pytest.mark.parametrize("build", [clip, siglip])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "patchmerger"])
def test_on_text(variant: str, build: Any) -> None:
    name, params = VARIANTS[variant]
    model = build()
    kw = inputs(model, 3)
    ids = kw["input_ids"]
    call = {"keep_rate": {"text": 0.7}, "layers": (1, 2), **params}
    with torch.no_grad(), bench.reduced(model, name, **call):
        seen = bench.trace(model, **kw)
        out = model.text_model(ids)
    assert out.pooler_output.isfinite().all()
    assert seen.tokens["text"][-1][1] <= 10
    at = (ids == 99).int().argmax(1) if build is clip else torch.full((3,), 13)
    position = seen.position("text")
    assert (position[:, 0] == 0).all()
    assert (position.gather(1, at[:, None]) >= 0).all()
    if build is clip:  # read where the end of text went
        assert torch.equal(out.last_hidden_state[torch.arange(3), at], out.pooler_output)


# what a method says of 14 patches must not depend on five empty slots after them; ATS counts those
# that it leaves itself
@pytest.mark.parametrize(
    "variant", ["score", *(v for v in VARIANTS if v not in ("kmedoids-equal", "ats-all-slots"))]
)
def test_empty_slots_say_nothing(variant: str) -> None:
    torch.manual_seed(6)
    table = {"vision.3.weight": torch.randn(1, 12), "vision.3.bias": torch.randn(1)}
    name, params = VARIANTS.get(variant, ("dpc-knn", {"score": table}))
    method: Any = bench.core.registry.method(name)(**params)
    x, (q, k, v) = torch.randn(2, 20, 12), torch.randn(3, 2, 3, 20, 4).unbind(0)
    x[:, 15:] = x[:, 5:10] + 0.01 * torch.randn(2, 5, 12)  # tempting neighbours
    size = (torch.arange(20) < 15).float().expand(2, -1)[..., None]
    padded = replace(image_site(x, q, k, v, size), whole=False)
    alone = replace(image_site(x[:, :15], *(t[:, :, :15] for t in (q, k, v))), whole=False)
    a, b = method.plan(padded, 12), method.plan(alone, 7)
    m = min(a.keep.shape[1], b.keep.shape[1])
    assert torch.equal(a.keep[:, :m], b.keep[:, :m])
    out, mass = a.apply(x, size)
    own, own_mass = b.apply(x[:, :15], alone.size)
    m = own.shape[1]
    close(out[:, :m], own)
    close(mass[:, :m], own_mass)
    assert (mass[:, m:] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_empty_slots_are_no_medoids(weighted: bool) -> None:
    torch.manual_seed(8)
    x = torch.randn(2, 30, 12)
    x[:, 14:] = 2 * x[:, 14:15]  # the farthest of all, and many on one side
    weight = torch.rand(2, 30) if weighted else None
    empty = (torch.arange(30) >= 14).expand(2, -1)
    medoid, cluster = k_medoids(x, 3, 3, weight, 3, empty)
    own_weight = None if weight is None else weight[:, :14]
    own, own_cluster = k_medoids(x[:, :14], 3, 3, own_weight, 3)
    assert torch.equal(medoid, own)
    assert torch.equal(cluster[:, :14], own_cluster)


# --- one method each -----------------------------------------------------------------------------


def test_ats_passes_over_empty_slots() -> None:
    score = torch.rand(1, 20)
    padded, empty = torch.cat([score, torch.zeros(1, 3)], 1), (torch.arange(23) >= 20)[None]
    for points in (7, 15, 40):
        order, rank = sample_sorted(padded, points, empty)
        own_order, own_rank = sample_sorted(score, points)
        assert torch.equal(order.gather(1, rank), own_order.gather(1, own_rank))
    order, rank = sample_sorted(padded, 40)  # in the authors' code they come before the least one
    assert not torch.equal(order.gather(1, rank), own_order.gather(1, own_rank))
    for alive in (1, 2):  # and one token is always left
        order, rank = sample_sorted(padded[:, 20 - alive :], 7, empty[:, 20 - alive :])
        assert order.gather(1, rank).unique().tolist() == [int(padded[0, 20 - alive : 20].argmax())]


def test_ats_never_goes_below_seven_sample_points() -> None:
    ats = ATS()
    assert ats.feasible(60, 64, None) == 57
    assert ats.feasible(10, 64, None) == 10
    assert ats.feasible(1, 7, None) == 0


@pytest.mark.parametrize("variant", ["ats", "ats-positional", "dpc-knn", "kmedoids", "patchmerger"])
def test_compiles_and_counts_without_data(variant: str) -> None:
    name, params = VARIANTS[variant]
    model = timm_vit(depth=3)
    x = inputs(model, 3)["pixel_values"]
    torch._dynamo.reset()
    with torch.no_grad(), bench.reduced(model, name, keep_rate=0.5, layers=(1, 2), **params):
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(compiled, expected, atol=1e-5, rtol=1e-4)
        ran = bench.trace(model, x).tokens["vision"]
        model.to("meta")
        counted = bench.trace(model, x.to("meta")).tokens["vision"]
    if name == "ats":  # as many slots as sample points
        assert counted == [(65, 65), (65, 33), (33, 17)]
        assert all(b <= a for (_, a), (_, b) in zip(counted, ran, strict=True))
    else:
        assert counted == ran


def test_kmedoids_needs_a_block_before() -> None:
    model = timm_vit()
    x = inputs(model)["pixel_values"]
    call: dict[str, Any] = {"keep_rate": 0.5, "layers": (0,)}
    with torch.no_grad():
        with (
            bench.reduced(model, "kmedoids", **call),
            pytest.raises(Unsupported, match="equal_weight=True"),
        ):
            model(x)
        outs = []
        for seed in (0, 0, 1):
            with bench.reduced(model, "kmedoids", equal_weight=True, seed=seed, **call):
                outs.append(model(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_keeps_are_floored_shares_of_the_initial_tokens() -> None:
    for method in (DPCKNN(), KMedoids(), ATS(), PatchMerger(queries="random")):
        schedule = as_schedule(method, keep_rate=0.7)
        assert [196 - schedule(i, 12, 196, 196) for i in (3, 6, 9)] == [137, 96, 67]


def test_a_score_of_zero_weighs_equally_and_learns(tmp_path: Path) -> None:
    model = timm_vit()
    x = inputs(model)["pixel_values"]
    method = DPCKNN()
    learned = method.learn({"vision": (4, 32)})
    assert set(learned) == {f"vision.{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")}
    with torch.no_grad(), bench.reduced(model, "dpc-knn", keep_rate=0.5):
        expected = model(x)
    with bench.reduced(model, method, keep_rate=0.5):
        out = model(x)
        assert torch.equal(out, expected)
        out.square().sum().backward()
    assert all(learned[f"vision.{i}.weight"].grad.abs().sum() > 0 for i in (1, 2, 3))
    with torch.no_grad():
        for value in learned.values():
            value.add_(0.5 * torch.randn_like(value))
        path = tmp_path / "dpc-knn.safetensors"
        save_file({f"score.{k}": v.detach() for k, v in learned.items()}, path)
        with bench.reduced(model, method, keep_rate=0.5):
            weighted = model(x)
        with bench.reduced(model, "dpc-knn", score=path, keep_rate=0.5):
            assert torch.equal(model(x), weighted)
        with bench.reduced(model, "dpc-knn", score=path, equal_weight=True, keep_rate=0.5):
            assert torch.equal(model(x), expected)
        assert not torch.equal(weighted, expected)
        partial = {k: v for k, v in learned.items() if k.startswith("vision.1")}
        with (
            bench.reduced(model, "dpc-knn", score=partial, keep_rate=0.5),
            pytest.raises(BenchError, match=r"only for vision\.1, not for vision\.2"),
        ):
            model(x)
    assert DPCKNN(equal_weight=True).learn({"vision": (4, 32)}) == {}


def test_patchmerger_learns_its_queries_and_keeps_them(tmp_path: Path) -> None:
    model = timm_vit()
    x = inputs(model)["pixel_values"]
    method = PatchMerger(tokens=5)
    learned = method.learn({"vision": (4, 32), "text": (3, 32)})
    assert {k: tuple(v.shape) for k, v in learned.items()} == {"vision.2": (5, 32)}
    with bench.reduced(model, method):  # its own budget: the middle layer, five tokens
        out = model(x)
        assert bench.trace(model, x).tokens["vision"] == [(65, 65), (65, 65), (6, 6), (6, 6)]
    out.square().sum().backward()
    grad = learned["vision.2"].grad
    assert grad is not None and grad.isfinite().all() and (grad.abs().sum(1) > 0).all()
    path = tmp_path / "patchmerger.safetensors"
    save_file({f"queries.{k}": v.detach() for k, v in learned.items()}, path)
    with torch.no_grad():
        for budget in ({}, {"r": 59, "layers": (2,)}):
            with bench.reduced(model, "patchmerger", queries=path, **budget):
                torch.testing.assert_close(model(x), out)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({}, "queries for no layer, not for vision.2: train some"),
        ({"queries": {"vision.1": torch.ones(8, 32)}, "r": 56, "layers": (2,)}, "only for"),
        ({"queries": {"vision.2": torch.ones(8, 32)}, "r": 50, "layers": (2,)}, "leaves 14 tokens"),
        ({"queries": {"vision.2": torch.ones(8, 16)}}, "of width 16 .* of width 32"),
        ({"queries": {"vision": torch.ones(8, 32)}}, "no table"),
        ({"queries": "missing.safetensors"}, "no file"),
        ({"queries": "random", "tokens": 0}, "at least 1"),
    ],
)
def test_patchmerger_never_guesses(call: dict[str, Any], says: str) -> None:
    model = timm_vit()
    with pytest.raises(BenchError, match=says), bench.reduced(model, "patchmerger", **call):
        model(inputs(model)["pixel_values"])


def test_patchmerger_takes_no_text() -> None:
    model = clip()
    kw = inputs(model)
    call: dict[str, Any] = {"queries": "random", "r": {"text": 4}}
    with (
        torch.no_grad(),
        bench.reduced(model, "patchmerger", **call),
        pytest.raises(Unsupported, match="text"),
    ):
        model(**kw)


def test_random_queries_are_seeded_and_of_unit_logits() -> None:
    a, b = new_queries(16, 64, 0), new_queries(16, 64, 1)
    assert torch.equal(a, new_queries(16, 64, 0))
    assert not torch.equal(a, b)
    logits = a @ torch.nn.functional.layer_norm(torch.randn(64, 500), (500,))
    assert 0.8 < logits.std() < 1.25
    assert torch.linalg.matrix_rank(a) == 16
