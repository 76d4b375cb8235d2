"""timm's plain vision transformers: places follow tokens, sizes reach every reader, costs agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import timm
import torch
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from tiny import TIMM, eva, images, timm_vit
from torch import Tensor, nn

import bench
from bench.check.cases import CASES
from bench.check.kit import check
from bench.core import Plan, Reducer, Site, Unsupported
from bench.engine.families.placed import PlacedPass
from bench.engine.tower import override
from bench.measure.closed_form import check_counters

PLACED = ("eva", "eva02", "eva-mixed", "eva-pe", "eva-grouped", "beit", "beit-shared")
RELATIVE = ("relpos", "relpos-class")
BLOCK = 1  # ahead of which the methods below act


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Merge(Reducer):
    """Ahead of a block patches 9 and 30 are merged into patch 4, and patch 17 is dropped."""

    before: ClassVar[bool] = True
    proportional: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"r": 3}

    def plan(self, site: Site, r: int) -> Plan:
        B, N, _ = site.x.shape
        keep, src, dst = (torch.tensor(t) for t in merged(site.prefix, N))
        return Plan(keep.expand(B, -1), src.expand(B, -1), dst.expand(B, -1))


def merged(prefix: int, n: int) -> tuple[list[int], list[int], list[int]]:
    """Positions that stay, positions that go into others, and where among those that stay."""
    gone = [prefix + patch for patch in (9, 30, 17)]
    keep = [i for i in range(n) if i not in gone]
    return keep, gone[:2], [keep.index(prefix + 4)] * 2


def entering(model: Any, x: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The sequence (B,N,C) ahead of `BLOCK`, and the arguments of the blocks from there on."""
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kw: seen.append((args[0], kw)), with_kwargs=True
        )
        for block in model.blocks
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen[BLOCK][0], [kw for _, kw in seen[BLOCK:]]


def by_hand(model: Any, x: Tensor) -> Tensor:
    """What the last block answers after the merge, with the model's own blocks: (B,M,C)."""
    tokens, arguments = entering(model, x)
    prefix, n = model.num_prefix_tokens, tokens.shape[1]
    keep, src, dst = merged(prefix, n)
    size = torch.ones(len(keep))
    y = tokens[:, keep].clone()
    for i, j in zip(src, dst, strict=True):
        y[:, j] += tokens[:, i]
        size[j] += 1
    y = y / size[:, None]
    weight = size.log()[None, None, None]
    rows = [i - prefix for i in keep[prefix:]]
    for block, kw in zip(model.blocks[BLOCK:], arguments, strict=True):
        rope = kw.get("rope")
        if rope is not None:
            y = block(y, rope=rope[..., rows, :], attn_mask=weight)
        else:
            y = biased(block, kw)(y, keep, weight)
    return y


def biased(block: Any, kw: Any) -> Callable[..., Tensor]:
    """A block whose biases are cut to the tokens that stay, with the sizes added."""
    attn, (name, shared) = block.attn, next(iter(kw.items()))
    holder, get = (
        (attn.rel_pos, "get_bias") if hasattr(attn, "rel_pos") else (attn, "_get_rel_pos_bias")
    )

    def run(y: Tensor, keep: list[int], weight: Tensor) -> Tensor:
        if shared is not None:
            return block(y, **{name: shared[..., keep, :][..., keep] + weight})  # type: ignore[no-any-return]
        cut = getattr(holder, get)()[..., keep, :][..., keep] + weight
        with override(holder, get, lambda: cut):
            return block(y)  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize("family", [*PLACED, *RELATIVE])
def test_places_follow_the_tokens(family: str) -> None:
    model, x = TIMM[family](), images(2)
    expected, answers = by_hand(model, x), []
    hook = model.norm.register_forward_pre_hook(lambda _, args: answers.append(args[0]))
    with bench.reduced(model, Merge(), r=3, layers=[BLOCK]):
        model(x)
    hook.remove()
    torch.testing.assert_close(answers[0], expected, atol=1e-5, rtol=1e-4)
    scattered = expected - expected.mean(1, keepdim=True)
    assert scattered.abs().mean() > 0.1  # tokens differ, so that a wrong place would be seen


@pytest.mark.parametrize("family", TIMM)
def test_fused_and_written_out_attention_agree(family: str) -> None:
    model, x = TIMM[family](), images(2)
    with bench.reduced(model, "tome", r=6):
        fused = model(x)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with bench.reduced(model, "tome", r=lambda *_: 0):
        plain = model(x)
    assert torch.equal(plain, model(x))
    with bench.reduced(model, "tome", r=6):
        torch.testing.assert_close(model(x), fused, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", TIMM)
def test_costs_without_values_are_those_with_values(family: str) -> None:
    model, valueless, x = TIMM[family](), TIMM[family]().to("meta"), images(1)
    totals = []
    for at, pixels in ((model, x), (valueless, x.to("meta"))):
        with bench.reduced(at, "tome", r=6):
            count = bench.count_macs(at, pixels)
            check_counters(at, bench.trace(at, pixels), count)
            totals.append(count.total)
    assert totals[0] == totals[1] < bench.count_macs(model, x).total


def two_kinds() -> Tensor:
    """(1,3,32,32): each patch is one of two, of which one is three times as frequent."""
    kinds = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    which = (torch.arange(64) % 4 == 0).long().view(8, 8)
    return kinds[which].permute(2, 0, 3, 1, 4).reshape(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (VisionTransformer, {"global_pool": "map", "class_token": False}),
        (VisionTransformer, {"global_pool": "map", "reg_tokens": 2}),
        (VisionTransformer, {"global_pool": "avg"}),
        (VisionTransformer, {"global_pool": "avg", "pool_include_prefix": True}),
        (timm.models.eva.Eva, {"global_pool": "map"}),
        (timm.models.eva.Eva, {"global_pool": "avg"}),
        (timm.models.beit.Beit, {"global_pool": "avg"}),
        (timm.models.beit.Beit, {"global_pool": "token"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(map(str, value)),
)
def test_tokens_that_are_alike_may_merge(cls: Any, changes: dict[str, Any]) -> None:
    """Where nothing tells places, so that a merged token only has to count for as many."""
    model, x = (
        timm_vit(cls, **{"head_init_scale": 0} if cls is not VisionTransformer else {}, **changes),
        two_kinds(),
    )
    if model.pos_embed is not None:
        nn.init.zeros_(model.pos_embed)
    plain = model(x)
    with bench.reduced(model, "tome", r=10):
        torch.testing.assert_close(model(x), plain, atol=1e-5, rtol=1e-4)


def test_an_appended_token_is_at_no_place() -> None:
    """It is not turned, and nothing is added to its logits; the others keep their own."""
    tower = bench.adapter_for(eva()).towers(eva())["vision"]
    run = PlacedPass(tower, [])
    run.changed, run.appends = True, 1
    run.place = torch.tensor([[0, 1, 2, 4, 6], [0, 1, 2, 3, 6]])  # three of a prefix, one appended
    table = torch.tensor([[1.0, 4], [2, 5], [3, 6]])
    bias = torch.arange(1.0, 37).view(1, 6, 6)
    turned = run.rows(table, 3, (0.0, 1.0))
    assert turned[:, 0].tolist() == [[[2, 5], [0, 1]], [[1, 4], [0, 1]]]
    assert run.pairs(bias)[1, 0, 3].tolist() == [19, 20, 21, 22, 0]
    assert run.pairs(bias)[0, 0, :, 3].tolist() == [5, 11, 17, 29, 0]
    assert run.pairs(bias > 4)[0, 0, 0].tolist() == [False, False, False, True, True]
    run.changed = False
    assert run.rows(table, 3, (0.0, 1.0)) is table and run.pairs(bias) is bias


class Unknown(vision_transformer.Block):
    """A block of somebody else's."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_fn": Unknown}, "block 0 is a Unknown, which is not split here"),
        ({"attn_layer": "diff"}, "block 0 has DiffAttention, which cannot be tapped here"),
        ({"block_fn": vision_transformer.DiffParallelScalingBlock}, "a DiffParallelScalingBlock"),
        ({"global_pool": "prr"}, "the AttentionPoolPrr of this timm version takes no mask"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], message: str) -> None:
    model = timm_vit(**changes)
    with pytest.raises(Unsupported, match=message):
        bench.reduced(model, "tome", r=2).__enter__()


def test_the_grid_is_that_of_the_present_images() -> None:
    model, grids = timm_vit(dynamic_img_size=True), []

    class Looks(Merge):
        def plan(self, site: Site, r: int) -> Plan:
            grids.append(site.grid)
            return super().plan(site, r)

    with bench.reduced(model, Looks(), r=3, layers=[BLOCK]):
        for shape in ((32, 32), (16, 64), (48, 24)):
            model(torch.randn(1, 3, *shape))
    assert grids == [(8, 8), (4, 16), (12, 6)]


@pytest.mark.parametrize("family", ["eva", "eva02", "eva-mixed"])
def test_angles_of_a_smaller_image(family: str) -> None:
    """A model for smaller images has the same angles, and no position table in the way."""
    build = partial(TIMM[family], use_abs_pos_emb=False)
    model, x = build(), images(2)
    small = build(img_size=24)
    small.load_state_dict(model.state_dict())
    seen: list[Tensor] = []
    model.patch_embed.register_forward_hook(lambda _, args, out: seen.append(out.flatten(1, 2)))
    with bench.reduced(model, "downsample", keep_rate=9 / 16):
        shrunk = model(x)
    with override(small.patch_embed, "forward", lambda image: seen[0]):
        torch.testing.assert_close(shrunk, small(x))


def test_the_order_of_patches_means_something_where_blocks_are_told_of_it() -> None:
    (case,) = [case for case in CASES if case.name == "timm Eva"]
    (finding,) = check("tome", cases=[case], properties=["permutation"])
    assert (finding.status, finding.says) == ("n/a", "blocks are told where each token is")
