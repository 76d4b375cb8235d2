"""`reduced()`: exact at r = 0, undone afterwards, honest about sizes and positions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import MODELS, clip, inputs, run, siglip, timm_vit, token_ids
from torch import nn

import bench
from bench.core import Plan, Reducer, Site, default_layers
from bench.core.kinds import Appender
from bench.core.registry import methods
from bench.core.schedules import KeepOfInitial, KeepRate
from bench.engine.families.timm_vit import BiasedTower
from bench.engine.forward import channel_attention

# One of each kind on every model; `run_bench.py check` looks at every method.
CUTS = ["random", "pool", "downsample", "tome", "topk", "evit", "crossget"]
METHODS = ["none", *CUTS]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def nothing(name: str) -> dict[str, Any]:
    return {"keep_rate": 1.0} if "keep_rate" in methods()[name].budget else {"r": 0}


def some(name: str) -> dict[str, Any]:
    return {"keep_rate": 0.7} if "keep_rate" in methods()[name].budget else {"r": 6}


def runs_on(name: str, model: nn.Module) -> bool:
    tower = bench.adapter_for(model).towers(model)["vision"]
    biased = isinstance(tower, BiasedTower)  # by places of one image size
    return (tower.has_anchor or not methods()[name].needs_anchor) and not (
        biased and name == "downsample"
    )


@pytest.mark.parametrize("family", MODELS)
def test_removing_nothing_is_bit_exact(family: str) -> None:
    model = MODELS[family]()
    kw = inputs(model)
    plain = run(model, kw)
    for name in METHODS:
        if runs_on(name, model):
            with bench.reduced(model, name, **nothing(name)):
                assert torch.equal(run(model, kw), plain), name


@pytest.mark.parametrize("family", MODELS)
def test_split_blocks_compute_what_whole_blocks_compute(family: str) -> None:
    """A schedule that removes nothing, but cannot be seen to, runs the split blocks."""
    model = MODELS[family]()
    kw = inputs(model)
    plain = run(model, kw)
    towers = bench.adapter_for(model).towers(model)
    with bench.reduced(model, "tome", r=dict.fromkeys(towers, lambda *_: 0)):
        assert torch.equal(run(model, kw), plain)


@pytest.mark.parametrize("family", MODELS)
def test_every_method_reduces_and_the_model_is_restored(family: str) -> None:
    model = MODELS[family]()
    kw = inputs(model)
    plain, before = run(model, kw), {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {id(m): dict(vars(m)) for m in model.modules()}
    for name in CUTS:
        if not runs_on(name, model):
            with pytest.raises(bench.Unsupported, match="class token|cannot be resized"):
                bench.reduced(model, name, **some(name)).__enter__()
            continue
        with bench.reduced(model, name, **some(name)):
            out = run(model, kw)
            assert torch.isfinite(out).all()
            assert not torch.equal(out, plain), name
            assert set(model.state_dict()) == set(before)
        assert torch.equal(run(model, kw), plain), name
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for module in model.modules():
        now = vars(module)
        assert now.keys() == attributes[id(module)].keys()
        assert all(now[k] is v for k, v in attributes[id(module)].items())


def test_restored_after_an_exception_and_in_a_copy() -> None:
    model = clip()
    kw = inputs(model)
    plain = run(model, kw)
    with pytest.raises(RuntimeError), bench.reduced(model, "crossget", r=4):
        run(model, kw)
        raise RuntimeError
    assert torch.equal(run(model, kw), plain)
    assert torch.equal(run(copy.deepcopy(model), kw), plain)


def test_no_nesting() -> None:
    model = timm_vit()
    with (
        bench.reduced(model, "tome", r=2),
        pytest.raises(bench.BenchError, match="already inside"),
    ):
        bench.reduced(model, "tome", r=2).__enter__()


@pytest.mark.parametrize("name", CUTS)
def test_alone_or_in_a_batch(name: str) -> None:
    model = clip()
    kw = inputs(model, batch=3)
    with bench.reduced(model, name, **some(name)):
        together = run(model, kw)
        alone = torch.cat([run(model, {k: v[i : i + 1] for k, v in kw.items()}) for i in range(3)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "left"), [("siglip", 1), ("clip", 1), ("dinov2", 2), ("timm", 1), ("timm-avg", 2)]
)
def test_patches_may_all_go_where_a_class_token_is_all_that_is_read(family: str, left: int) -> None:
    model = timm_vit(global_pool="avg") if family == "timm-avg" else MODELS[family]()
    kw = inputs(model)
    call = (kw["pixel_values"],) if "timm" in family else ()
    with bench.reduced(model, "random", r={"vision": 1000}):
        seen = bench.trace(model, *call, **({} if call else kw)).tokens["vision"]
        assert seen[-1][1] == left
        assert run(model, kw).isfinite().all()


@pytest.mark.parametrize("family", ["timm-registers", "timm-distilled", "clip", "siglip"])
def test_tokens_and_mass(family: str) -> None:
    model = MODELS[family]()
    kw = inputs(model)
    prefix = bench.adapter_for(model).towers(model)["vision"].prefix
    call = (kw["pixel_values"],) if "timm" in family else ()
    for name in ("tome", "crossget", "pool"):
        with bench.reduced(model, name, **some(name)):
            seen = bench.trace(model, *call, **({} if call else kw))
        extra = int(issubclass(methods()[name], Appender))
        n = seen.tokens["vision"][0][0]
        assert n == 64 + prefix + extra
        position = seen.position()
        assert position is not None
        assert (position >= 0).all()  # a merger drops nothing
        expected = torch.arange(prefix).expand(2, -1)
        assert torch.equal(position[:, :prefix], expected)  # prefix in front, in order
        source, size = seen.source(), seen.sizes["vision"][-1][1]
        assert torch.equal(source.sum(-1, keepdim=True).float(), size)
        assert (size.sum(1) == n).all()
        assert (size[:, :prefix] == 1).all()


def test_constant_r_takes_r_a_layer_and_stops_at_half() -> None:
    model = timm_vit()
    x = inputs(model)["pixel_values"]
    with bench.reduced(model, "tome", r=8):
        assert bench.trace(model, x).tokens["vision"] == [(65, 57), (57, 49), (49, 41), (41, 33)]
    with bench.reduced(model, "tome", r=50):
        assert bench.trace(model, x).tokens["vision"] == [(65, 33), (33, 17), (17, 9), (9, 5)]
    with bench.reduced(model, "random", r=[0, 60, 0, 9]):
        assert bench.trace(model, x).tokens["vision"] == [(65, 65), (65, 5), (5, 5), (5, 1)]


def test_keep_rates() -> None:
    assert default_layers(12) == (3, 6, 9)
    assert default_layers(24) == (6, 12, 18)
    keep = KeepRate(0.7)
    assert [196 - keep(3, 12, 196, 196), keep(4, 12, 138, 196)] == [138, 0]
    assert 100 - KeepRate(0.55)(3, 12, 100, 100) == 56  # double arithmetic, as in the EViT code
    initial = KeepOfInitial(0.7)
    assert 196 - initial(3, 12, 196, 196) == 137
    assert 137 - initial(6, 12, 137, 196) == 96
    assert KeepRate((0.9, 0.5), (1, 2))(2, 4, 10, 20) == 5


def test_pooling_by_two_is_average_pooling() -> None:
    model = timm_vit()
    x = torch.randn(2, 65, 32)
    site = Site(
        x,
        x[:, None],
        x[:, None],
        x[:, None],
        torch.ones(2, 65, 1),
        torch.zeros(2, 65, dtype=torch.bool),
        0,
        4,
        grid=(8, 8),
    )
    plan = methods()["pool"]().plan(site, 48)
    out, size = plan.apply(x, site.size)
    image = x[:, 1:].transpose(1, 2).reshape(2, 32, 8, 8)
    pooled = nn.functional.avg_pool2d(image, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out[:, 1:], pooled)
    assert (size[:, 1:] == 4).all()
    assert plan.grid == (4, 4)
    with bench.reduced(model, "pool", keep_rate=0.25, layers=(0,)):
        tokens = bench.trace(model, inputs(model)["pixel_values"]).tokens["vision"]
    assert tokens == [(65, 17), (17, 17), (17, 17), (17, 17)]


def test_downsample_is_the_model_on_a_smaller_image() -> None:
    model = timm_vit(dynamic_img_size=True)
    x = inputs(model)["pixel_values"]
    small = nn.functional.interpolate(x, (24, 24), mode="bicubic", antialias=True)
    with bench.reduced(model, "downsample", keep_rate=0.5625):
        assert torch.equal(model(x), bench_plain(model, small))


def bench_plain(model: Any, x: torch.Tensor) -> torch.Tensor:
    return timm_vit(dynamic_img_size=True)(x)


def test_average_pooling_is_weighted_by_size() -> None:
    """Merging identical tokens must not change what the model computes."""
    model = timm_vit(global_pool="avg", class_token=False, fc_norm=True, no_embed_class=True)
    nn.init.zeros_(model.pos_embed)
    x = torch.randn(2, 3, 4, 4).repeat(1, 1, 8, 8)  # all patches alike
    half = torch.randn(2, 3, 4, 4).repeat(1, 1, 2, 8)
    x[:, :, :8] = half  # a quarter of the patches alike among themselves
    plain = run(model, {"pixel_values": x})
    with bench.reduced(model, "tome", r=10):
        merged = run(model, {"pixel_values": x})
    torch.testing.assert_close(merged, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [clip, siglip])
def test_text_is_read_where_its_token_went(build: Any) -> None:
    model = build()
    tower = model.text_model
    ids = token_ids(3)
    with bench.reduced(model, "tome", r={"text": 3}):
        seen = bench.trace(model, input_ids=ids, pixel_values=inputs(model, 3)["pixel_values"])
        out = tower(ids)
    assert seen.tokens["text"] == [(14, 11), (11, 8), (8, 5)]
    assert out.last_hidden_state.shape[1] == 14  # readers find the original positions
    at = (ids == 99).int().argmax(1) if build is clip else torch.full((3,), 13)
    assert torch.equal(
        out.last_hidden_state[torch.arange(3), at],
        out.pooler_output if build is clip else out.last_hidden_state[:, -1],
    )
    position = seen.position("text")
    assert position is not None
    order = position.gather(1, at[:, None])
    assert (position[:, 0] == 0).all()
    assert (order >= 0).all()


def test_padding_stands_for_nothing() -> None:
    """With an attention mask, what stands in the padding cannot reach the text feature."""
    model = clip()
    tower = model.text_model
    ids = token_ids(3)
    mask = (torch.arange(14) <= (ids == 99).int().argmax(1, keepdim=True)).long()
    other = torch.where(mask.bool(), ids, 7)
    for name in ("tome", "crossget"):
        with bench.reduced(model, name, r={"text": 2}):
            a = tower(ids, attention_mask=mask).pooler_output
            b = tower(other, attention_mask=mask).pooler_output
        assert torch.isfinite(a).all()
        assert torch.equal(a, b), name


def test_channel_attention_equals_the_mask() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 16).unbind(0)
    bias = torch.randint(1, 9, (2, 1, 1, 9)).float().log()
    masked = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)
    torch.testing.assert_close(channel_attention(q, k, v, bias, 0.3), masked)


@pytest.mark.parametrize("build", [timm_vit, clip])
@pytest.mark.parametrize("name", ["tome", "evit", "crossget"])
def test_compiles_as_one_graph(build: Any, name: str) -> None:
    model = build()
    kw = inputs(model)
    torch._dynamo.reset()
    with bench.reduced(model, name, **some(name)):
        expected = run(model, kw)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        out = compiled(kw["pixel_values"]) if build is timm_vit else compiled(**kw)
        got = out if build is timm_vit else torch.cat([out.image_embeds, out.text_embeds], 1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"method": "tomee", "r": 2}, "did you mean 'tome'"),
        ({"method": "tome", "r": 2, "rate": 1}, "no parameter 'rate'"),
        ({"method": "tome", "r": {"vison": 2}}, "did you mean 'vision'"),
        ({"method": "tome", "r": -1}, "int from 0"),
        ({"method": "tome", "r": 2.5}, "r must be an int"),
        ({"method": "tome", "r": 2, "keep_rate": 0.5}, "give either"),
        ({"method": "evit", "keep_rate": 1.5}, r"in \(0, 1\]"),
        ({"method": "downsample", "r": 4}, "takes keep_rate="),
    ],
)
def test_wrong_calls_say_what_is_wrong(call: dict[str, Any], says: str) -> None:
    with pytest.raises(bench.BenchError, match=says):
        bench.reduced(timm_vit(), **call).__enter__()


def test_wrong_lists_are_found_before_the_first_pass() -> None:
    with pytest.raises(bench.BenchError, match="4 blocks"):
        bench.reduced(timm_vit(), "tome", r=[1, 2]).__enter__()


def test_unsupported_model_lists_what_is_supported() -> None:
    with pytest.raises(bench.BenchError, match="no adapter for .*Linear; supported: timm"):
        bench.adapter_for(nn.Linear(2, 2))


def test_a_reducer_of_ones_own() -> None:
    class Last(Reducer):
        def plan(self, site: Site, r: int) -> Plan:
            n = site.x.shape[1]
            return Plan(torch.arange(n - r).expand(len(site.x), -1))

    model = timm_vit()
    with bench.reduced(model, Last(), r=3):
        tokens = bench.trace(model, inputs(model)["pixel_values"]).tokens["vision"]
    assert tokens[-1][1] == 53
