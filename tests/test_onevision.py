"""Crops put together and resampled by a plain loop, several images; videos of the LLaVAs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import vlm_models as tiny
from PIL import Image
from torch import Tensor

import bench
from bench.core import Plan, Reducer, Site
from bench.core.errors import Unsupported
from bench.core.kinds import ProjectorReducer
from bench.core.site import ProjectorSite
from bench.models import catalogue
from bench.models.multimodal import PromptedModel

SIDE = 6  # patches of a crop


class Keeps(Reducer):
    """Keeps these tokens of each image or video, and notes what it saw."""

    towers: ClassVar[tuple[str, ...]] = ("vision", "projector")
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def __init__(self, chosen: list[list[int]]) -> None:
        self.chosen, self.sites = chosen, list[Site]()

    def plan(self, site: Site, r: int) -> Plan:
        self.sites.append(site)
        return Plan(torch.tensor(self.chosen))


class Reads(Keeps, ProjectorReducer):
    """The same, of which the attention is read."""

    name = "reads"
    towers: ClassVar[tuple[str, ...]] = ("projector",)


def kept_of(images: int, tokens: int, share: float, seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    count = round(tokens * share)
    return [sorted(torch.randperm(tokens, generator=g)[:count].tolist()) for _ in range(images)]


def into_prompt(model: Any, batch: dict[str, Tensor], kind: str = "image") -> Any:
    """What goes into the prompts of a batch."""
    names = ("pixel_values", "image_sizes") if kind == "image" else ("pixel_values_videos",)
    encode = getattr(model.model, f"get_{kind}_features")
    with torch.no_grad():
        return encode(**{name: batch[name] for name in names}).pooler_output


def resampled(x: list[list[Tensor | None]], rows: int, columns: int) -> list[list[Tensor | None]]:
    """Bilinear means of the tokens that are there; None where the nearest one is not."""
    height, width = len(x), len(x[0])
    out: list[list[Tensor | None]] = []
    for i in range(rows):
        out.append([])
        for j in range(columns):
            at = ((i + 0.5) * height / rows - 0.5, (j + 0.5) * width / columns - 0.5)
            near = x[int((i + 0.5) * height / rows)][int((j + 0.5) * width / columns)]
            total, weight = torch.zeros(32), 0.0
            for row in range(height):
                for column in range(width):
                    w = max(1 - abs(at[0] - row), 0) * max(1 - abs(at[1] - column), 0)
                    token = x[row][column]
                    if token is not None and w > 0:
                        total, weight = total + w * token, weight + w
            out[-1].append(None if near is None else total / weight)
    return out


def put_together(crops: Tensor, down: int, across: int, line: Tensor) -> list[Tensor | None]:
    """Crops (P,36,D) of which removed tokens are NaN -> an image's tokens, with None for those."""
    tokens = [[None if t.isnan().any() else t for t in crop] for crop in crops]
    grid = [
        [
            tokens[1 + row // SIDE * across + column // SIDE][row % SIDE * SIDE + column % SIDE]
            for column in range(across * SIDE)
        ]
        for row in range(down * SIDE)
    ]
    ratio = math.sqrt(len(grid) * len(grid[0]) / (2 * SIDE**2))
    if ratio > 1.1:
        grid = resampled(grid, int(len(grid) // ratio), int(len(grid[0]) // ratio))
    return tokens[0] + [token for row in grid for token in (*row, line)]


def same(found: Tensor, expected: list[Tensor | None]) -> None:
    assert len(found) == len(expected)
    for token, wanted in zip(found, expected, strict=True):
        if wanted is None:
            assert token.isnan().all()
        else:
            torch.testing.assert_close(token, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_crops_are_put_together_as_the_loop_does(share: float) -> None:
    """Two crops side by side, as they are; four in a square, made smaller."""
    model, batch = tiny.onevision(), tiny.onevision_batch(2)
    projected: list[Tensor] = []
    model.model.multi_modal_projector.register_forward_hook(lambda *call: projected.append(call[2]))
    with bench.reduced(model, Keeps(kept_of(8, 36, share)), keep_rate={"projector": share}):
        found = into_prompt(model, batch)
    (crops,) = projected
    line = model.model.image_newline.detach()
    for image, some, shape in zip(found, crops.split([3, 5]), ((1, 2), (2, 2)), strict=True):
        same(image, put_together(some, *shape, line))
    assert bool(found[1].isnan().any()) == (share < 1)


def test_as_large_a_share_remains_of_what_is_resampled() -> None:
    model, batch = tiny.onevision(), tiny.alone(tiny.onevision_batch(2), 1)
    plain = into_prompt(model, batch)[0]
    shares = []
    for seed in range(40):
        with bench.reduced(
            model, Keeps(kept_of(5, 36, 1 / 3, seed)), keep_rate={"projector": 1 / 3}
        ):
            found = into_prompt(model, batch)[0][36:]
        lines = (found == model.model.image_newline).all(1)
        shares.append(float((~found[~lines, 0].isnan()).float().mean()))
    assert len(plain) == 36 + 8 * 9
    assert abs(sum(shares) / len(shares) - 1 / 3) < 0.02


def test_several_images_of_a_prompt_are_one_crop_each() -> None:
    model = tiny.onevision()
    batch = tiny.prompts([74, 74], [(3, 5), (1, 9)])
    batch |= {"pixel_values": tiny.pixels(4)[:, None], "image_sizes": torch.full((4, 2), 24)}
    counts = {"batch_num_images": torch.tensor([2, 2])}
    with torch.no_grad():
        plain = model(**batch, **counts).logits
        with bench.reduced(model, "random", r={"projector": lambda *_: 0}):
            assert torch.equal(model(**batch, **counts).logits, plain)
        with bench.reduced(model, "random", keep_rate={"projector": 0.5}):
            seen = bench.trace(model, **batch, **counts).tokens
            assert model(**batch, **counts).logits.isfinite().all()
    assert seen["projector"] == [(36, 18)] and seen["language"][0][0] == 10 + 2 * 19


# --- videos -------------------------------------------------------------------------------------


VIDEOS: dict[str, tuple[Any, Any, int]] = {  # a model, its videos, new lines behind each
    "OneVision": (tiny.onevision, tiny.onevision_videos, 1),
    "NeXT-Video": (tiny.next_video, tiny.next_videos, 0),
}


@pytest.mark.parametrize("family", VIDEOS)
def test_a_video_is_one_sequence_of_pooled_frames_in_time_order(family: str) -> None:
    make, batch_of, lines = VIDEOS[family]
    model, batch = make(), batch_of(2)
    plain = into_prompt(model, batch, "video")
    method = Keeps(kept_of(2, 27, 1 / 3))
    with bench.reduced(model, method, keep_rate={"projector": 1 / 3}):
        found = into_prompt(model, batch, "video")
        tokens = bench.trace(model, **batch).tokens
    site = method.sites[0]
    assert isinstance(site, ProjectorSite)
    assert (site.frames, site.grid, site.anchor, site.prefix) == (3, (3, 3), None, 0)
    assert torch.equal(site.x, plain[:, :27]) and not site.q.shape[-1]
    for video, before, chosen in zip(found, plain, method.chosen, strict=True):
        stay = [*chosen, *[27] * lines]  # the last is a new line
        assert video.isnan().all(1).logical_not().nonzero()[:, 0].tolist() == stay
        assert torch.equal(video[stay], before[stay])
    assert tokens["projector"] == [(27, 9)]
    longest = int(batch["attention_mask"].sum(1).max())
    assert tokens["language"][0][0] == longest - 18


def test_frames_are_pooled_ahead_of_a_projector_as_the_loop_does() -> None:
    model, batch = tiny.next_video(), tiny.next_videos(2)
    features: list[Tensor] = []
    block = model.model.vision_tower.encoder.layers[2]  # which makes them
    chosen = [[0, *[i + 1 for i in kept]] for kept in kept_of(1, 36, 0.3)] * 6
    with bench.reduced(model, Keeps(chosen), r={"vision": [0, 25, 0, 0]}):
        run = block.forward
        object.__setattr__(
            block, "forward", lambda *a, **kw: features.append(run(*a, **kw)) or features[-1]
        )
        found = into_prompt(model, batch, "video").view(6, 9, -1)
        object.__setattr__(block, "forward", run)
    places = {at - 1: i for i, at in enumerate(chosen[0])}
    for frame, output in zip(features[0], found, strict=True):
        square = [
            [frame[places[p]] if p in places else None for p in range(6 * r, 6 * r + 6)]
            for r in range(SIDE)
        ]
        pooled = [token for row in resampled(square, 3, 3) for token in row]
        same(output, [None if t is None else model.model.multi_modal_projector(t) for t in pooled])
    assert found.isnan().any()


def test_frames_reduced_in_the_image_encoder_are_pooled_as_the_loop_does() -> None:
    model, batch = tiny.onevision(), tiny.onevision_videos(2)
    projected: list[Tensor] = []
    model.model.multi_modal_projector.register_forward_hook(lambda *call: projected.append(call[2]))
    with bench.reduced(model, Keeps(kept_of(6, 36, 0.3)), r={"vision": [0, 25, 0, 0]}):
        found = into_prompt(model, batch, "video")
    frames = [
        [[None if t.isnan().any() else t for t in row] for row in frame.view(SIDE, SIDE, -1)]
        for frame in projected[0]
    ]
    expected = [[t for row in resampled(frame, 3, 3) for t in row] for frame in frames]
    for video, three in zip(found, (expected[:3], expected[3:]), strict=True):
        same(video[:-1], [token for frame in three for token in frame])
    assert found[:, :-1].isnan().any() and not found[:, -1].isnan().any()


def test_each_frame_is_pooled() -> None:
    model, batch = tiny.onevision(), tiny.onevision_videos(1)
    frames = into_prompt(model, batch, "video")[0, :-1].view(3, 3, 3, -1)
    with bench.reduced(model, "pool", keep_rate={"projector": 0.5}):
        found = into_prompt(model, batch, "video")[0, :-1].view(3, 3, 3, -1)
    assert (~found[..., 0].isnan()).flatten(1).sum(1).tolist() == [4, 4, 4]
    torch.testing.assert_close(found[:, 0, 0], frames[:, :2, :2].mean((1, 2)))
    torch.testing.assert_close(found[:, 2, 2], frames[:, 2, 2])


WAYS: dict[str, dict[str, Any]] = {
    "random": {"keep_rate": {"projector": 0.4}},
    "pool": {"keep_rate": {"projector": 0.5}},
    "tome": {"r": 4},
    "downsample": {"keep_rate": 0.5},
    "divprune": {"keep_rate": {"language": 0.4}},
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", VIDEOS)
def test_a_batch_of_videos_is_answered_as_each_alone(family: str, way: str) -> None:
    make, batch_of, _ = VIDEOS[family]
    model, batch = make(), batch_of(3)
    plain = model(**batch).logits
    with bench.reduced(model, way, **WAYS[way]):
        together = tiny.answers(model, batch, 4)
        assert torch.equal(together, tiny.answers(model, batch, 4, use_cache=False))
        each = [tiny.answers(model, tiny.alone(batch, i), 4) for i in range(3)]
        logits = model(**batch).logits
    assert torch.equal(together, torch.cat(each))
    assert logits.isfinite().all() and not torch.equal(logits, plain)
    given = {"r": lambda *_: 0} if way != "downsample" else {"keep_rate": 1.0}
    with bench.reduced(model, way, **given):
        assert torch.equal(model(**batch).logits, plain)


@torch.no_grad()
@pytest.mark.parametrize("family", VIDEOS)
def test_an_image_and_a_video_in_one_prompt(family: str) -> None:
    make, batch_of, lines = VIDEOS[family]
    model, film = make(), tiny.alone(batch_of(1), 0)
    one = tiny.alone((tiny.onevision_batch if lines else tiny.llava_next_batch)(1), 0)
    names = ("input_ids", "attention_mask")
    batch = {**one, **film} | {name: torch.cat([one[name], film[name]], 1) for name in names}
    whole = batch["input_ids"].shape[1]
    for method, given in (("random", {"keep_rate": {"projector": 0.5}}), ("tome", {"r": 4})):
        with bench.reduced(model, method, **given):
            assert model(**batch).logits.isfinite().all()
            entering = bench.trace(model, **batch).tokens["language"][0][0]
        assert entering < whole - 36 - 9


@pytest.mark.parametrize("family", VIDEOS)
def test_what_a_video_does_not_offer_is_refused_in_one_line(family: str) -> None:
    make, batch_of, _ = VIDEOS[family]
    model, batch = make(), batch_of(1)
    both = [("tome", {"r": 2}), ("random", {"keep_rate": {"projector": 0.5}})]
    for method, says in (
        (Reads([]), "method 'reads' reads attention, and the frames of a video are pooled"),
        (both, "lost tokens in the image encoder, and 'random' at the projector needs all"),
    ):
        with bench.reduced(model, method), pytest.raises(Unsupported) as refusal:
            model(**batch)
        assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_questions_go_through_the_saved_processor(tmp_path: Path) -> None:
    """One image of a prompt is cut into crops, of two each is one."""
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor
    from transformers import LlavaOnevisionVideoProcessor as Videos

    model = tiny.onevision()
    model.save_pretrained(tmp_path)
    sides = {"size": {"height": 24, "width": 24}}
    images = LlavaOnevisionImageProcessor(
        **sides, image_grid_pinpoints=model.config.image_grid_pinpoints
    )
    words = tiny.words_of("<image>", "<video>")
    LlavaOnevisionProcessor(
        images,
        words,
        Videos(**sides),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    ).save_pretrained(tmp_path)
    loaded = catalogue.load(str(tmp_path))
    assert isinstance(loaded, PromptedModel)
    picture = Image.new("RGB", (48, 48), "red")
    for shown, tokens in (([picture], 36 + 8 * 9), ([picture] * 2, 2 * 37)):
        inputs = loaded.prepare([shown], ["what is this?"])
        assert int((inputs["input_ids"] == tiny.IMAGE).sum()) == tokens
        with bench.reduced(loaded.model, "random", keep_rate={"projector": 0.5}):
            assert tiny.answers(loaded.model, inputs, 2).shape == (1, 2)


@torch.no_grad()
@pytest.mark.parametrize("method", ["vidcom2", "evs", "dycoke"])
def test_methods_that_compare_frames_see_pooled_tokens(method: str) -> None:
    model, batch = tiny.onevision(), tiny.onevision_videos(2)
    plain = into_prompt(model, batch, "video")
    with bench.reduced(model, method, keep_rate=0.6):
        left = into_prompt(model, batch, "video")
        together = tiny.answers(model, batch, 3)
        each = [tiny.answers(model, tiny.alone(batch, i), 3) for i in range(2)]
        with pytest.raises(Unsupported, match="compares the frames of a video: give it one"):
            model(**tiny.onevision_batch(1))
    assert torch.equal(together, torch.cat(each))
    assert plain.shape == left.shape
    gone = left[..., 0].isnan().float().mean()
    assert 0.2 < float(gone) < 0.5
