"""Qwen2-VL, 2.5 and 3: plain loops, packed images, windows, DeepStack, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import vlm_models as tiny
from torch import Tensor, nn
from torch.nn import functional as F

import bench
from bench.core import Plan, Reducer
from bench.core.errors import BenchError, Unsupported
from bench.core.kinds import Appender, InputReducer, LanguageReducer, ProjectorReducer, VideoReducer
from bench.core.registry import methods
from bench.engine.families.one_image import OneImage
from bench.engine.families.windows import Partition
from bench.measure.closed_form import check_counters

ENCODER = [name for name, cls in methods().items() if "vision" in cls.towers]
FAMILIES = {"Qwen2-VL": tiny.qwen2_vl, "Qwen2.5-VL": tiny.qwen2_5_vl, "Qwen3-VL": tiny.qwen3_vl}
PROJECTOR = [name for name, cls in methods().items() if "projector" in cls.towers]


families = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)


def images(*grids: tuple[int, int]) -> dict[str, Tensor]:
    """Packed patches of images with so many rows and columns."""
    g = torch.Generator().manual_seed(5)
    n = sum(h * w for h, w in grids)
    values = torch.randn(n, 48, generator=g)
    return {"hidden_states": values, "grid_thw": torch.tensor([(1, *grid) for grid in grids])}


def encode(model: Any, given: dict[str, Tensor]) -> Tensor:
    """(G,D) what the language model gets; a removed token is a row of NaN."""
    with torch.no_grad():
        return model.model.visual(**given).pooler_output  # type: ignore[no-any-return]


def rotated(x: Tensor, place: tuple[int, int]) -> Tensor:
    """(D,) a query or key of one head, turned by its row, then by its column."""
    quarter = len(x) // 4
    out = torch.empty_like(x)
    for i in range(2 * quarter):
        angle = place[i // quarter] / 1e4 ** (2 * (i % quarter) / (2 * quarter))
        a, b = x[i], x[i + 2 * quarter]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + 2 * quarter] = b * math.cos(angle) + a * math.sin(angle)
    return out


def halves(
    block: Any, x: list[Tensor], size: list[int], place: list[Any], window: int
) -> tuple[list[Any], Any]:
    """A block's first half, token by token, and the keys' means over heads.

    Tokens meet that lie in the same window of so many patches a side.
    """
    attn, n = block.attn, len(x)
    q, k, v = zip(*(attn.qkv(block.norm1(t)).view(3, attn.num_heads, -1) for t in x), strict=True)
    out = []
    heads = range(attn.num_heads)
    q, k = ([[rotated(t[h], p) for h in heads] for t, p in zip(of, place, strict=True)]
            for of in (q, k))  # fmt: skip
    windows = [(row // window, column // window) for row, column in place]
    for i in range(n):
        met = [j for j in range(n) if windows[j] == windows[i]]
        sizes, mixed = torch.tensor([size[j] for j in met]), []
        for h in heads:
            logits = [q[i][h] @ k[j][h] / math.sqrt(len(q[i][h])) for j in met]
            weight = torch.stack(logits).add(sizes.log()).softmax(0)
            mixed.append(sum(w * v[j][h] for w, j in zip(weight, met, strict=True)))
        out.append(x[i] + attn.proj(torch.cat(mixed)))
    return out, [sum(key) / len(heads) for key in k]


def learned(visual: Any, grid: tuple[int, int]) -> Tensor:
    """(N,C) the learned positions of Qwen3-VL, resampled to an image's rows and columns."""
    table = visual.pos_embed.weight.T[None].unflatten(2, (visual.num_grid_per_side,) * 2)
    at = nn.functional.interpolate(table, grid, mode="bilinear", align_corners=True)
    return at[0].flatten(1).T


def tome_by_hand(
    visual: Any, pixels: Tensor, grid: tuple[int, int], r: int
) -> tuple[Tensor, list[Tensor]]:
    """(G,D) ToMe with r merges a block, written out for one image; q and k are the rotated ones.

    DeepStack's features (G,D) beside it, of each block that it looks at.
    """
    h, w = grid
    embedded, deep = visual.patch_embed(pixels), []
    where = {}  # (row, column) of each patch -> its index in the sequence, 2x2 after 2x2
    for index in range(h * w):
        group, inside = divmod(index, 4)
        row, column = divmod(group, w // 2)
        where[2 * row + inside // 2, 2 * column + inside % 2] = index
    place = sorted(where)
    if hasattr(visual, "pos_embed"):
        embedded = embedded.clone()
        embedded[[where[p] for p in place]] += learned(visual, grid)
    x, size = [embedded[where[p]] for p in place], [1] * (h * w)
    holds = [[where[p]] for p in place]
    for layer, block in enumerate(visual.blocks):
        whole = layer in getattr(visual, "fullatt_block_indexes", range(4))
        x, key = halves(block, x, size, place, 99 if whole else 4)
        even, odd = list(range(0, len(x), 2)), list(range(1, len(x), 2))
        alike = {i: [float(F.cosine_similarity(key[i], key[j], 0)) for j in odd] for i in even}
        going = sorted(even, key=lambda i: -max(alike[i]))[:r]
        for j in odd:
            to_j = [i for i in going if odd[alike[i].index(max(alike[i]))] == j]
            total = size[j] + sum(size[i] for i in to_j)
            x[j] = (size[j] * x[j] + sum(size[i] * x[i] for i in to_j)) / total
            size[j], holds[j] = total, holds[j] + [m for i in to_j for m in holds[i]]
        order = [i for i in even if i not in going] + odd
        x, size, holds, place = ([of[i] for i in order] for of in (x, size, holds, place))
        x = [t + block.mlp(block.norm2(t)) for t in x]
        shown = {member: t for t, members in zip(x, holds, strict=True) for member in members}
        groups = [torch.stack([shown[g + i] for i in range(4)]) for g in range(0, h * w, 4)]
        if layer in getattr(visual, "deepstack_visual_indexes", ()):
            merger = visual.deepstack_merger_list[len(deep)]
            deep.append(torch.cat([merger(group) for group in groups]))
    return torch.cat([visual.merger(group) for group in groups]), deep


@families
def test_tome_in_the_image_encoder_is_its_loop(make: Any) -> None:
    model, given = make(), images((4, 6))
    with bench.reduced(model, "tome", r=4):
        found, encoded = encode(model, given), model.model.visual(**given)
        tokens = bench.trace(model, **tiny.alone(tiny.qwen_batch(3), 2)).tokens["vision"]
    assert tokens == [(24, 20), (20, 16), (16, 12), (12, 8)]
    with torch.no_grad():
        expected, deep = tome_by_hand(model.model.visual, given["hidden_states"], (4, 6), 4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    found_deep = list(getattr(encoded, "deepstack_features", ()))
    torch.testing.assert_close(found_deep, deep, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, encode(model, given), atol=1e-2)


class Keeps(Reducer):
    """Keeps these patches, counted from left to right, then downwards."""

    budget = {"keep_rate": 0.5}
    max_share = 1.0

    def __init__(self, kept: list[int]) -> None:
        self.kept = kept

    def plan(self, site: Any, r: int) -> Plan:
        assert site.grid == (4, 6)
        return Plan(torch.tensor([self.kept]))


@families
def test_dropped_patches_are_the_mean_of_their_group_and_empty_groups_go(make: Any) -> None:
    model, given = make(), images((4, 6))
    kept = [0, 1, 6, 7, 2, 9, 22]  # all of the first group, two of the second, one of the last
    seen: list[Tensor] = []
    last = model.model.visual.blocks[-1]
    hook = last.register_forward_hook(lambda *call: seen.append(call[-1]))
    with bench.reduced(model, Keeps(kept), r={"vision": [0, 0, 0, 17]}):
        found = encode(model, given)
    hook.remove()
    (x,), C = seen, 32
    assert x.shape == (7, C)
    second, sixth = (x[4] + x[5]) / 2, x[6]
    groups = torch.stack([x[:4].flatten(), torch.cat([x[4], second, second, x[5]]),
                          sixth.repeat(4)])  # fmt: skip
    torch.testing.assert_close(found[[0, 1, 5]], model.model.visual.merger(groups.view(-1, C)))
    assert found[[2, 3, 4]].isnan().all()


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def plain(request: pytest.FixtureRequest) -> tuple[Any, list[tuple[Any, Tensor, Tensor]]]:
    """The model, and what it answers to one prompt and to four."""
    model, said = request.param(), []
    for batch in map(tiny.qwen_batch, (1, 4)):
        with torch.no_grad():
            said.append((batch, tiny.answers(model, batch, 4), model(**batch).logits))
    return model, said


@pytest.mark.parametrize("name", ENCODER)
def test_nothing_removed_is_the_plain_model_bit_for_bit(name: str, plain: Any) -> None:
    (model, said), cls = plain, methods()[name]
    given: dict[str, Any] = {"r": lambda *_: 0}  # at work, and asked for nothing
    if issubclass(cls, Appender):
        given = {"r": 0}
    elif issubclass(cls, InputReducer):
        given = {"keep_rate": 1.0}
    elif cls.needs_anchor:
        with pytest.raises(Unsupported, match="by the class token, and this model's vision tower"):
            bench.reduced(model, name, **given).__enter__()
        return
    with torch.no_grad(), bench.reduced(model, name, **given):
        for batch, tokens, logits in said:
            assert torch.equal(tiny.answers(model, batch, 4), tokens)
            assert torch.equal(model(**batch).logits, logits)


@families
@pytest.mark.parametrize("name", PROJECTOR)
def test_at_the_projector_a_token_is_a_group_of_patches(make: Any, name: str) -> None:
    model, batch = make(), tiny.qwen_batch(4)
    cls = methods()[name]
    worded = issubclass(cls, ProjectorReducer) and cls.reads_words
    if issubclass(cls, VideoReducer):
        with (
            pytest.raises(Unsupported, match=f"'{name}' compares the frames of a video: give it"),
            bench.reduced(model, name, keep_rate={"projector": 0.5}),
        ):
            model(**batch)
        return
    if cls.needs_anchor or worded:
        with pytest.raises(Unsupported) as refusal:
            bench.reduced(model, name).__enter__()
        lacks = "this model has no text tower" if worded else "image encoder has none"
        assert lacks in str(refusal.value) and "\n" not in str(refusal.value)
        return
    with torch.no_grad(), bench.reduced(model, name, keep_rate={"projector": 0.5}):
        seen = bench.trace(model, **batch).tokens
        found = encode(model, {"hidden_states": batch["pixel_values"],
                               "grid_thw": batch["image_grid_thw"]})  # fmt: skip
    if name not in ("none", "compose"):
        before, after = zip(*seen["projector"], strict=True)
        assert before == ((5, 4, 3, 8) if cls.before else (9, 8, 6, 16))
        assert sum(after) == int((~found[:, 0].isnan()).sum()) < 24


@pytest.mark.parametrize("way", ["tome", "crossget", "pool", "random", "kmedoids", "downsample"])
@families
def test_images_do_not_meet_and_both_counters_agree(make: Any, way: str) -> None:
    """Four images of four sizes, packed: each as it is alone."""
    model, grids = make(), [(6, 6), (4, 8), (6, 4), (8, 8)]
    given, batch = images(*grids), tiny.qwen_batch(4)
    sizes = [h * w for h, w in grids]
    pieces = given["hidden_states"].split(sizes)
    budget: dict[str, Any] = {"r": 3} if way in ("tome", "crossget") else {"keep_rate": 0.5}
    with bench.reduced(model, way, **budget):
        together = encode(model, given)
        for i, piece in enumerate(pieces):
            alone = encode(
                model, {"hidden_states": piece, "grid_thw": given["grid_thw"][i : i + 1]}
            )
            mine = together.split([n // 4 for n in sizes])[i]
            torch.testing.assert_close(mine, alone, equal_nan=True, atol=1e-5, rtol=1e-5)
        counted, seen = bench.count_macs(model, **batch), bench.trace(model, **batch)
        check_counters(model, seen, counted)
    if way == "tome":
        assert seen.packed["vision"] == 4
        assert seen.tokens["vision"][4:8] == [(n - 3, n - 6) for n in sizes]
        with pytest.raises(BenchError, match="trace one at a time"):
            seen.position()


@families
def test_sizes_as_channels_of_keys_say_the_same(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does it, also within windows; both counters price it."""
    model, batch = make(), tiny.alone(tiny.qwen_batch(1), 0)
    with torch.no_grad(), bench.reduced(model, "crossget", r=4):
        masked = model(**batch).logits
        plain = bench.count_macs(model, **batch).total
        monkeypatch.setattr(OneImage, "_by_channel", lambda self, q, fused: fused)
        torch.testing.assert_close(model(**batch).logits, masked, atol=1e-4, rtol=1e-4)
        counted, seen = bench.count_macs(model, **batch), bench.trace(model, **batch)
        check_counters(model, seen, counted)
    assert counted.total > plain


def test_an_appended_token_sees_all_windows() -> None:
    """CrossGET's, by hand: its query meets all keys, and each window has its key."""
    model, given, calls = tiny.qwen2_5_vl(), images((4, 6)), []
    within = Partition.attention

    def noted(self: Partition, *args: Any) -> Tensor:
        calls.append((self, *args[:3], within(self, *args)))
        return calls[-1][-1]

    with (
        pytest.MonkeyPatch.context() as patch,
        torch.no_grad(),
        bench.reduced(model, "crossget", r=2),
    ):
        patch.setattr(Partition, "attention", noted)
        encode(model, given)
    partition, q, k, v, out = calls[0]  # two windows, of 16 patches and of 8
    assert partition.pairs == [(16, 17), (8, 9), (1, 25)]
    for rows, keys in (
        (slice(0, 16), [*range(16), 24]),
        (slice(16, 24), range(16, 25)),
        (slice(24, 25), range(25)),
    ):
        met = list(keys)
        weight = (q[:, :, rows] @ k[:, :, met].transpose(2, 3) / 4).softmax(-1)
        torch.testing.assert_close(out[:, :, rows], weight @ v[:, :, met])


class Looks(Reducer):
    """Notes what it sees of an image; the last patches go."""

    budget = {"keep_rate": 0.5}
    max_share = 1.0
    towers = ("vision", "projector")

    def __init__(self) -> None:
        self.sites: list[Any] = []

    def plan(self, site: Any, r: int) -> Plan:
        self.sites.append(site)
        return Plan(torch.arange(site.x.shape[1] - r)[None])


def windows_of(place: list[tuple[int, int]]) -> Tensor:
    """(N,N) whether two patches at these rows and columns share a window of 4x4 patches."""
    window = [(row // 4, column // 4) for row, column in place]
    return torch.tensor([[a == b for b in window] for a in window])


def test_a_method_sees_attention_within_windows() -> None:
    """The first removal is behind a block with windows, the last behind one without."""
    model, given, looks = tiny.qwen2_5_vl(), images((6, 10)), Looks()
    with bench.reduced(model, looks, r={"vision": [8, 0, 8, 8]}):
        encode(model, given)
    place = [(i // 10, i % 10) for i in range(60)]
    for site, n in zip(looks.sites, (60, 52, 44), strict=True):
        attention, same = site.attention(), windows_of(place[:n])
        torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, n))
        if site.layer < 3:
            assert bool((attention > 0).eq(same).all())
            row = torch.tensor([n - 1])
            torch.testing.assert_close(site.attention(row)[:, :, 0], attention[:, :, -1])
        else:
            assert site.window is None and bool((attention > 0).all())


def test_the_projector_reads_a_block_with_windows_group_by_group() -> None:
    class Reads(Looks, ProjectorReducer):
        reads, before, towers = -1, True, ("projector",)

    model, given, looks = tiny.qwen2_5_vl(), images((6, 10)), Reads()
    with bench.reduced(model, looks, keep_rate=0.5):
        encode(model, given)
    (site,) = looks.sites
    at = [(row + i, column + j) for row in range(0, 6, 2) for column in range(0, 10, 2)
          for i in (0, 1) for j in (0, 1)]  # fmt: skip
    assert site.grid == (3, 5) and bool((site.attention() > 0).eq(windows_of(at)).all())
    features = model.model.visual(**given).last_hidden_state.view(1, 15, -1)
    order = [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]  # windows of 2x2 groups
    torch.testing.assert_close(site.x[:, order], features)


class Chosen(LanguageReducer):
    """Removes the second and the third of the image's tokens."""

    budget = {"keep_rate": 0.5}

    def plan(self, site: Any, r: int) -> Plan:
        first = int((~site.protect[0]).int().argmax())
        n = site.x.shape[1]
        return Plan(torch.tensor([[i for i in range(n) if i - first not in (1, 2)]]))


def by_hand(model: Any, batch: dict[str, Tensor], layer: int) -> Tensor:
    """(M,C) what a language model makes of a prompt that loses two tokens ahead of a block."""
    inner, text = model.model, model.model.language_model
    seen = inner.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
    image = batch["input_ids"][0] == tiny.IMAGE
    x = text.embed_tokens(batch["input_ids"])
    x[0, image] = seen.pooler_output
    deep = torch.zeros(len(seen.deepstack_features), *x.shape)
    deep[:, 0, image] = torch.stack(list(seen.deepstack_features))
    position, _ = inner.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], batch["image_grid_thw"]
    )
    first = int(image.int().argmax())
    stay = [i for i in range(x.shape[1]) if i - first not in (1, 2)]
    for i, block in enumerate(text.layers):
        if i == layer:
            x, deep, position = x[:, stay], deep[:, :, stay], position[:, :, stay]
        x = block(x, text.rotary_emb(x, position), attention_mask=None)
        x = x + deep[i] if i < len(deep) else x
    return text.norm(x)[0]


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_what_deepstack_adds_leaves_with_the_tokens(layer: int) -> None:
    """Ahead of the first block, between two that get features, and behind those."""
    model, batch = tiny.qwen3_vl(), tiny.alone(tiny.qwen_batch(3), 2)
    hidden: list[Tensor] = []
    head = model.lm_head.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    r = [0] * 6
    r[layer] = 2
    with torch.no_grad(), head, bench.reduced(model, Chosen(), r={"language": r}):
        model(**batch)
    with torch.no_grad():
        expected = by_hand(model, batch, layer)
    first = int((batch["input_ids"][0] == tiny.IMAGE).int().argmax())
    rows = [i for i in range(hidden[0].shape[1]) if i - first not in (1, 2)]
    torch.testing.assert_close(hidden[0][0, rows], expected, atol=1e-5, rtol=1e-5)


def test_methods_see_normed_queries_and_keys() -> None:
    """Of the block that comes: its own q_norm and k_norm say the same of the tokens that stay."""
    model, batch = tiny.qwen3_vl(), tiny.alone(tiny.qwen_batch(3), 2)
    attn, seen, normed = model.model.language_model.layers[2].self_attn, [], []

    class Asks(Chosen):
        def plan(self, site: Any, r: int) -> Plan:
            plan = super().plan(site, r)
            seen.extend(t[:, :, plan.keep[0]].transpose(1, 2) for t in site.unrotated())
            return plan

    for norm in (attn.q_norm, attn.k_norm):
        nn.init.normal_(norm.weight, 1.0)
        norm.register_forward_hook(lambda *call: normed.append(call[-1]))
    with torch.no_grad(), bench.reduced(model, Asks(), r={"language": [0, 0, 2, 0, 0, 0]}):
        model(**batch)
    torch.testing.assert_close(seen, normed[2:])  # the first two were for the method


class Fuses(Reducer):
    """Merges the second token into the first, and drops the last."""

    budget = {"keep_rate": 0.5}
    max_share = 1.0
    towers = ("projector",)

    def plan(self, site: Any, r: int) -> Plan:
        n = site.x.shape[1]
        keep, one = torch.tensor([[0, *range(2, n - 1)]]), torch.tensor([[1]])
        return Plan(keep, one, torch.zeros_like(one))


def test_at_the_projector_features_are_merged_as_tokens_are() -> None:
    """Twice: the token that stands for two counts twice."""
    model, given = tiny.qwen3_vl(), images((4, 6))
    whole = torch.stack(list(model.model.visual(**given).deepstack_features), 1)
    twice = [(Fuses(), {"r": {"projector": 2}}), (Fuses(), {"r": {"projector": 2}})]
    with torch.no_grad(), bench.reduced(model, twice):
        found = torch.stack(list(model.model.visual(**given).deepstack_features), 1)
    torch.testing.assert_close(found[0], whole[:3].mean(0))
    assert torch.equal(found[3], whole[3]) and found[[1, 2, 4, 5]].isnan().all()


def test_each_image_keeps_a_patch() -> None:
    model, given = tiny.qwen2_vl(), images((4, 6), (2, 4))
    with bench.reduced(model, "random", r={"vision": 1000}):
        left = ~encode(model, given).isnan().all(1)
    assert left[:6].sum() == 1 and left[6:].sum() == 1


@families
def test_patches_are_traced_in_rows(make: Any) -> None:
    model, one = make(), tiny.alone(tiny.qwen_batch(1), 0)
    with bench.reduced(model, "pool", keep_rate=0.25, layers=[0]):
        at = bench.trace(model, **one).position()
    cells = torch.arange(9).view(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert at is not None and torch.equal(at.view(6, 6), cells)


@families
def test_a_smaller_image_keeps_its_tokens_places(make: Any) -> None:
    """An image of one colour a 2x2 group, so that resampling is known inside."""
    model = make()
    g = torch.Generator().manual_seed(0)
    image = torch.randn(3, 8, 8, generator=g)  # 64 groups, of 8 pixels
    image = image.repeat_interleave(16, 1).repeat_interleave(16, 2)  # 256 groups

    def packed(image: Tensor) -> dict[str, Tensor]:
        side = image.shape[1] // 8
        patches = image.view(3, side, 2, 4, side, 2, 4).permute(1, 4, 2, 5, 0, 3, 6)
        grid = torch.tensor([[1, 2 * side, 2 * side]])
        return {"hidden_states": patches.reshape(-1, 48), "grid_thw": grid}

    small = nn.functional.interpolate(image[None], (64, 64), mode="bicubic", antialias=True)[0]
    expected = encode(model, packed(small))
    with bench.reduced(model, "downsample", keep_rate=0.25):
        found = encode(model, packed(image)).view(16, 16, -1)
    left = ~found[..., 0].isnan()
    assert left[::2, ::2].all() and int(left.sum()) == 64
    torch.testing.assert_close(found[::2, ::2].reshape(64, -1), expected)


@families
def test_a_prompt_that_loses_nothing_beside_one_that_does(make: Any) -> None:
    """The longest prompt loses tokens and the padded one none: no row of NaN may stay."""
    model, batch = make(), tiny.qwen_batch(4)
    with torch.no_grad(), bench.reduced(model, "random", r={"vision": [6, 6, 4, 2]}):
        together = tiny.answers(model, batch, 4)
        each = [tiny.answers(model, tiny.alone(batch, i), 4) for i in range(4)]
        lengths = [
            bench.trace(model, **tiny.alone(batch, i)).tokens["language"][0][0] for i in range(4)
        ]
        assert bool(model(**batch).logits.isfinite().all())
    lost = [int(m.sum()) - n for m, n in zip(batch["attention_mask"], lengths, strict=True)]
    assert 0 in lost and any(lost)
    assert torch.equal(together, torch.cat(each))


@families
@pytest.mark.parametrize("tower", ["vision", "projector", "language"])
def test_a_step_of_training_reaches_all_weights(make: Any, tower: str) -> None:
    """Also with rows of removed tokens on the way, in prompts of unequal length."""
    model, batch = make(), tiny.qwen_batch(3)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] >= tiny.IMAGE, -100)
    with bench.reduced(model, "random", keep_rate={tower: 0.5}):
        model(**batch, labels=labels).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and bool(weight.grad.isfinite().all()), name
        assert bool(weight.grad.any()), name
