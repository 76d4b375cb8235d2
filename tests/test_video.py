"""Videos through Qwen's models: a slice in time is an image to the encoder, a video is one site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import vlm_models as tiny
from torch import Tensor
from vlm_models import GRIDS, VIDEO, padded, patches, shown, videos

import bench
from bench.core import Plan, Reducer
from bench.core.errors import Unsupported
from bench.core.kinds import LanguageReducer, ProjectorReducer
from bench.engine.families.prompt import frames_of
from bench.measure.closed_form import check_counters

FAMILIES = {"Qwen2-VL": tiny.qwen2_vl, "Qwen2.5-VL": tiny.qwen2_5_vl, "Qwen3-VL": tiny.qwen3_vl}
families = pytest.mark.parametrize("family", FAMILIES)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {"keep_rate": {"projector": 0.5}}),
    "divprune": ("divprune", {"keep_rate": 0.4}),
    "pool": ("pool", {"keep_rate": {"projector": 0.5}}),
    "hiprune": ("hiprune", {"keep_rate": 0.4}),
    "tome": ("tome", {"r": 4}),
    "random patches": ("random", {"keep_rate": {"vision": 0.4}}),
    "random words": ("random", {"keep_rate": {"language": 0.5}, "layers": {"language": [1, 3]}}),
    "fastv": ("fastv", {"keep_rate": 0.5}),
}


@torch.no_grad()
@families
def test_a_pass_that_removes_nothing_is_the_plain_model(family: str) -> None:
    model, given = FAMILIES[family](), videos(family)
    plain, scores = tiny.answers(model, given, 3), model(**given).logits
    for tower in ("vision", "projector", "language"):
        with bench.reduced(model, "random", r={tower: lambda *_: 0}):
            assert torch.equal(tiny.answers(model, given, 3), plain), tower
            assert torch.equal(model(**given).logits, scores), tower


@torch.no_grad()
@families
@pytest.mark.parametrize("way", WAYS)
def test_a_padded_batch_is_answered_as_each_sample_alone(family: str, way: str) -> None:
    """And counted alike by both counters."""
    model, (method, budget), given = FAMILIES[family](), WAYS[way], videos(family)
    with bench.reduced(model, method, **budget):
        together = tiny.answers(model, given, 3)
        each = [tiny.answers(model, videos(family, [i]), 3) for i in range(3)]
        seen = bench.trace(model, **given)
        check_counters(model, seen, bench.count_macs(model, **given))
        cached = tiny.answers(model, given, 3, use_cache=False)
    assert torch.equal(together, torch.cat(each))
    if method != "fastv":  # which ranks by the last word
        assert torch.equal(together, cached)
    assert not torch.equal(model(**given).logits[:, -1], _scores(model, method, budget, given))


@torch.no_grad()
@families
@pytest.mark.parametrize("method", ["vidcom2", "evs", "dycoke"])
def test_methods_that_compare_frames(family: str, method: str) -> None:
    """In a batch as alone, with the cache as without, and counted alike by both counters."""
    model, given = FAMILIES[family](), videos(family, [0, 1])
    plain = model(**given).logits[:, -1]
    with bench.reduced(model, method, keep_rate=0.6):
        together = tiny.answers(model, given, 3)
        each = [tiny.answers(model, videos(family, [i]), 3) for i in range(2)]
        assert torch.equal(together, torch.cat(each))
        assert torch.equal(together, tiny.answers(model, given, 3, use_cache=False))
        assert not torch.equal(model(**given).logits[:, -1], plain)
        seen = bench.trace(model, **given)
        check_counters(model, seen, bench.count_macs(model, **given))
        kept = [after for _, after in seen.tokens["projector"]]
        with pytest.raises(Unsupported, match="compares the frames of a video: give it one"):
            model(**videos(family, [2]))  # a single frame
    assert all(0 < after < 12 for after in kept)


def _scores(model: Any, method: str, budget: Any, given: Any) -> Tensor:
    with bench.reduced(model, method, **budget):
        return model(**given).logits[:, -1]  # type: ignore[no-any-return]


@torch.no_grad()
@families
@pytest.mark.parametrize("way", ["pool", "tome"])
def test_each_frame_is_treated_as_an_image(family: str, way: str) -> None:
    """Pooled at the projector, merged in the image encoder: as three images of the same patches."""
    model, (method, budget) = FAMILIES[family](), WAYS[way]
    given = {"hidden_states": patches(GRIDS[1:2])}
    with bench.reduced(model, method, **budget):
        video = model.model.visual(**given, grid_thw=torch.tensor([[3, 4, 4]]))
        images = model.model.visual(**given, grid_thw=torch.tensor([[1, 4, 4]] * 3))
    for name in ("pooler_output", "deepstack_features"):
        one, other = getattr(video, name, ()), getattr(images, name, ())
        torch.testing.assert_close(one, other, equal_nan=True)
    if way == "pool":
        assert int(video.pooler_output[:, 0].isnan().sum()) == 3 * 2


class Looks(Reducer):
    """Notes what it sees; tokens at the end go."""

    budget = {"keep_rate": 0.5}
    max_share = 1.0
    towers = ("vision", "projector")

    def __init__(self) -> None:
        self.sites: list[Any] = []

    def plan(self, site: Any, r: int) -> Plan:
        self.sites.append(site)
        n = site.x.shape[1]
        stay = torch.arange(n) < n - r
        return Plan(stay.nonzero()[None, :, 0] if site.tower != "language" else _words(site, r))


def _words(site: Any, r: int) -> Tensor:
    image = (~site.protect).nonzero()[:, 1]
    gone = set(image[len(image) - r :].tolist())
    return torch.tensor([[i for i in range(site.x.shape[1]) if i not in gone]])


class LooksAhead(Looks, ProjectorReducer):
    towers, before = ("projector",), True


@families
def test_a_video_is_one_site_at_the_projector(family: str) -> None:
    model, looks = FAMILIES[family](), LooksAhead()
    given = {"hidden_states": patches(GRIDS[:2]), "grid_thw": torch.tensor(GRIDS[:2])}
    slices = {**given, "grid_thw": torch.tensor([[1, 4, 6]] * 2 + [[1, 4, 4]] * 3)}
    with bench.reduced(model, looks, keep_rate={"projector": 0.5}):
        model.model.visual(**given)
        model.model.visual(**slices)
    two, three, *frames = looks.sites
    assert (two.frames, two.grid, two.x.shape) == (2, (2, 3), (1, 12, 128))
    assert (three.frames, three.grid, three.x.shape) == (3, (2, 2), (1, 12, 128))
    assert [site.frames for site in frames] == [1] * 5
    for video, parts in ((two, frames[:2]), (three, frames[2:])):
        torch.testing.assert_close(video.x, torch.cat([site.x for site in parts], 1))
        received = torch.cat([site.received() for site in parts], 1)
        torch.testing.assert_close(video.received(), received)
        attention, n = video.attention(), parts[0].q.shape[2]
        torch.testing.assert_close(attention[:, :, :n, :n], parts[0].attention())
        assert not attention[:, :, :n, n:].any()


@families
def test_frames_are_known_as_long_as_they_are_equal(family: str) -> None:
    model, looks = FAMILIES[family](), Looks()
    given = {"hidden_states": patches(GRIDS[1:2]), "grid_thw": torch.tensor(GRIDS[1:2])}
    ways: list[Any] = [
        ("pool", {"keep_rate": {"projector": 0.5}}),
        (looks, {"r": {"projector": 1}}),
    ]
    with bench.reduced(model, [*ways, (looks, {"r": {"projector": 1}})]):
        model.model.visual(**given)
    pooled, cut = looks.sites
    assert (pooled.frames, pooled.grid, pooled.x.shape[1]) == (3, (1, 2), 6)
    assert (cut.frames, cut.grid, cut.x.shape[1]) == (1, None, 5)


class LooksInside(Looks, LanguageReducer):
    towers = ("language",)


def test_a_language_model_knows_the_frames_of_each_prompt() -> None:
    """Of a batch of unequal videos, at the removal, at the input, and behind it."""
    for family, make in FAMILIES.items():
        model, looks = make(), LooksInside()
        with torch.no_grad(), bench.reduced(model, looks, r={"language": [0, 2, 0, 2, 0, 0]}):
            model(**videos(family))
            model(**tiny.qwen_batch(1))
        first, later, image = looks.sites[:3], looks.sites[3:6], looks.sites[6]
        assert [site.frames for site in first] == [2, 3, 1]
        assert [site.start.frames for site in (*first, *later)] == [2, 3, 1] * 2
        assert [site.frames for site in later] == [1] * 3 and image.frames == 1
        assert [int((~site.protect).sum()) for site in first] == [12, 12, 6]


class Sparse(LooksAhead):
    """Keeps every third token of a video."""

    def plan(self, site: Any, r: int) -> Plan:
        return Plan(torch.arange(0, site.x.shape[1], 3)[None])


@torch.no_grad()
@families
def test_what_is_left_of_a_video_is_a_shorter_prompt(family: str) -> None:
    """At the positions that the tokens had, with words between the frames or not."""
    model, given = FAMILIES[family](), videos(family, [1])
    hidden: list[Tensor] = []
    head = model.lm_head.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    with head, bench.reduced(model, Sparse(), r={"projector": 8}):
        model(**given)
    inner, ids = model.model, given["input_ids"]
    features = inner.visual(given["pixel_values_videos"], grid_thw=given["video_grid_thw"])
    x, video = inner.get_input_embeddings()(ids), ids[0] == VIDEO
    x[0, video] = features.pooler_output
    position, _ = inner.get_rope_index(
        ids, mm_token_type_ids=given["mm_token_type_ids"], video_grid_thw=given["video_grid_thw"]
    )
    kept = torch.ones(ids.shape[1], dtype=torch.bool)
    kept[video] = torch.arange(12) % 3 == 0
    deep = getattr(features, "deepstack_features", None)
    more: dict[str, Any] = {}
    if deep is not None:
        more = {
            "visual_pos_masks": video[None, kept],
            "deepstack_visual_embeds": [d[::3] for d in deep],
        }
    out = inner.language_model(
        inputs_embeds=x[:, kept], position_ids=position[:, :, kept], **more
    ).last_hidden_state
    torch.testing.assert_close(hidden[0][:, kept], out, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@families
def test_images_and_videos_in_one_prompt(family: str) -> None:
    """An image and a video, beside a prompt with a video alone: as each by itself."""
    model, apart = FAMILIES[family](), family == "Qwen3-VL"
    one = [5, 6, *[tiny.IMAGE] * 6, 7, *shown(GRIDS[0], apart), 8, 9, 10]
    other = [5, *shown(GRIDS[1], apart), 8, 9]
    image = {"pixel_values": patches([(1, 4, 6)], 1), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    pixels = patches(GRIDS[:2])

    def video(at: slice, rows: slice) -> dict[str, Tensor]:
        return {"pixel_values_videos": pixels[rows], "video_grid_thw": torch.tensor(GRIDS[at])}

    both = padded([one, other], **image, **video(slice(2), slice(None)))
    first = padded([one], **image, **video(slice(1), slice(48)))
    second = padded([other], **video(slice(1, 2), slice(48, None)))
    plain = tiny.answers(model, both, 3)
    with bench.reduced(model, "tome", r={"vision": lambda *_: 0}):
        assert torch.equal(tiny.answers(model, both, 3), plain)
    for way in ("divprune", "pool", "random patches", "fastv"):
        method, budget = WAYS[way]
        with bench.reduced(model, method, **budget):
            together = tiny.answers(model, both, 3)
            each = torch.cat([tiny.answers(model, prompt, 3) for prompt in (first, second)])
            check_counters(model, bench.trace(model, **both), bench.count_macs(model, **both))
        assert torch.equal(together, each), way


def test_frames_of_prompts() -> None:
    """Videos go to prompts in their order; several in one, or an image beside it, count as one."""
    two, three, one = (2, 12), (3, 12), (1, 6)
    assert frames_of([two, three], [12, 12], [12, 12]) == [2, 3]
    assert frames_of([two, three, one], [24, 0, 6], [24, 9, 6]) == [1, 1, 1]
    assert frames_of([three], [0, 12], [9, 12]) == [1, 3]
    assert frames_of([three], [12], [21]) == [1]
    assert frames_of([three], [24], [24]) == [1]  # what an earlier prompt showed
