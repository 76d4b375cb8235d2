"""Patches that are joined to groups (InternVL, SmolVLM, Idefics3): plain loops, tiles, refusals."""

from __future__ import annotations

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
from bench.core.site import ProjectorSite
from bench.measure.closed_form import check_counters
from bench.measure.generation import stage_macs
from bench.models import catalogue
from bench.models.multimodal import PromptedModel
from bench.models.noise import asked, noise

SIDE = 8  # patches of a tile
FAMILIES = {"InternVL": (2, 1), "SmolVLM": (4, 0)}  # patches of a group, class tokens


class Keeps(Reducer):
    """Keeps these tokens, of each image the same, and notes what it saw."""

    towers: ClassVar[tuple[str, ...]] = ("vision", "projector")
    max_share: ClassVar[float] = 1.0
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def __init__(self, chosen: list[int]) -> None:
        self.chosen, self.sites = chosen, list[Site]()

    def plan(self, site: Site, r: int) -> Plan:
        self.sites.append(site)
        return Plan(torch.tensor([self.chosen] * len(site.x)))


def made(family: str) -> tuple[Any, dict[str, Tensor]]:
    make, batch_of = tiny.MODELS[family]
    return make(), batch_of(3)


def parts(model: Any) -> tuple[Any, Any]:
    """The image encoder and the projector."""
    inner = model.model
    if hasattr(inner, "connector"):
        return inner.vision_model, inner.connector
    return inner.vision_tower, inner.multi_modal_projector


def project(model: Any, groups: Tensor) -> Tensor:
    """Groups (L,J*C) -> tokens (L,D), without what joins patches."""
    projector = parts(model)[1]
    with torch.no_grad():
        return getattr(projector, "modality_projection", projector)(groups)  # type: ignore[no-any-return]


def encode(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """(I,G,D) tokens of all tiles; NaN where one is removed."""
    with torch.no_grad():
        out = model.model.get_image_features(batch["pixel_values"]).pooler_output
    side = SIDE // (2 if "internvl" in model.config.model_type else 4)
    return (out if isinstance(out, Tensor) else torch.cat(out)).view(-1, side**2, 32)


def group_of(patch: int, side: int) -> tuple[int, int]:
    """Which group a patch belongs to, and where in it."""
    row, column = divmod(patch, SIDE)
    group = row // side * (SIDE // side) + column // side
    return group, row % side * side + column % side


@pytest.mark.parametrize("family", FAMILIES)
def test_dropped_patches_are_the_mean_of_their_group_and_empty_groups_go(family: str) -> None:
    (model, batch), (side, prefix) = made(family), FAMILIES[family]
    kept = [0, 1, 2, 3, 9, 16, 27, 36, 37, 63]
    chosen = [*range(prefix), *[patch + prefix for patch in kept]]
    seen: list[Tensor] = []
    norm = getattr(parts(model)[0], "post_layernorm", None)
    hook = parts(model)[0].encoder.register_forward_hook(
        lambda *call: seen.append(call[-1].last_hidden_state)
    )
    with bench.reduced(model, Keeps(chosen), r={"vision": [0, 0, 0, 64 - len(kept)]}):
        found = encode(model, batch)
    hook.remove()
    (tokens,) = seen
    tokens = (tokens if norm is None else norm(tokens))[:, prefix:].detach()
    assert tokens.shape[1] == len(kept)
    for image, output in zip(tokens, found, strict=True):
        groups: dict[int, dict[int, Tensor]] = {}
        for patch, token in zip(kept, image, strict=True):
            group, at = group_of(patch, side)
            groups.setdefault(group, {})[at] = token
        for group, row in zip(sorted(groups), output, strict=False):  # those without one are last
            there = groups[group]
            mean = sum(there.values()) / len(there)
            joined = torch.cat([there.get(at, mean) for at in range(side**2)])
            torch.testing.assert_close(row, project(model, joined[None])[0])
        assert len(groups) < len(output) and bool(output[len(groups) :].isnan().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_patches_go_back_to_their_places(family: str) -> None:
    (model, batch), (side, prefix) = made(family), FAMILIES[family]
    seen: list[Tensor] = []
    norm = getattr(parts(model)[0], "post_layernorm", None)
    hook = parts(model)[0].encoder.register_forward_hook(
        lambda *call: seen.append(call[-1].last_hidden_state)
    )
    with bench.reduced(model, "tome", r=6):
        found = encode(model, batch)
        at = bench.trace(model, **batch).position()
    hook.remove()
    tokens = (seen[0] if norm is None else norm(seen[0])).detach()
    assert at is not None and tokens.shape[1] == 64 + prefix - 4 * 6
    for image, slots, output in zip(tokens, at, found, strict=True):
        shown = image[slots][prefix:]
        order = sorted(range(64), key=lambda patch: group_of(patch, side))
        joined = shown[order].view(-1, side**2 * 32)
        torch.testing.assert_close(output, project(model, joined))


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_projector_a_token_is_a_group(family: str) -> None:
    (model, batch), (side, prefix) = made(family), FAMILIES[family]
    cells = (SIDE // side) ** 2
    joined: list[Tensor] = []
    projector = parts(model)[1]
    inside = getattr(projector, "modality_projection", projector)
    inside.register_forward_pre_hook(lambda _, args: joined.append(args[0]))
    plain = encode(model, batch)
    ahead, behind = Keeps([0, 2]), Keeps([1])
    ahead.before = True  # type: ignore[misc]
    both = [(one, {"r": {"projector": r}}) for one, r in ((ahead, cells - 2), (behind, 1))]
    inner = Keeps([*range(64 + prefix)])
    with bench.reduced(model, [(inner, {"r": {"vision": [0, 0, 0, 1]}})]):
        encode(model, batch)  # a look at the attention of the last block
    with bench.reduced(model, both):
        found = encode(model, batch)
    before, after = ahead.sites[0], behind.sites[0]
    assert isinstance(before, ProjectorSite) and isinstance(after, ProjectorSite)
    rows = SIDE // side
    assert (before.joins, before.grid, before.prefix) == (side**2, (rows, rows), 0)
    assert torch.equal(before.x, joined[0]) and after.x.shape == (len(plain), 2, 32)
    order = sorted(range(64), key=lambda patch: group_of(patch, side))
    k = inner.sites[0].k[:, :, [prefix + patch for patch in order]]
    assert torch.equal(before.k, k) and after.k.shape[2] == 2 * side**2
    assert before.received().shape == (len(plain), cells)
    torch.testing.assert_close(found[:, 0], plain[:, 2])  # of those kept ahead the second
    assert found[:, 1:].isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_and_projector_together(family: str) -> None:
    """Tiles with unequally many groups: a batch is as each prompt alone, and counters agree."""
    model, batch = made(family)
    ways = [
        ("random", {"keep_rate": {"vision": 0.2}, "layers": {"vision": [1]}}),
        (Keeps([0]), {"r": {"projector": 1}}),
    ]
    with bench.reduced(model, ways[:1]):
        groups = (~encode(model, batch)[..., 0].isnan()).sum(1)
    with bench.reduced(model, ways):
        found = (~encode(model, batch)[..., 0].isnan()).sum(1)
        together = tiny.answers(model, batch, 3)
        each = [tiny.answers(model, tiny.alone(batch, i), 3) for i in range(3)]
        counted, seen = bench.count_macs(model, **batch), bench.trace(model, **batch)
        check_counters(model, seen, counted)
    assert bool((found == 1).all()) and bool((groups > 1).any())
    assert torch.equal(together, torch.cat(each))


@torch.no_grad()
def test_idefics3_is_smolvlm_under_another_name() -> None:
    model, batch = tiny.idefics3(), tiny.smolvlm_batch(3)
    plain, meta = model(**batch).logits, tiny.idefics3().to("meta")
    for tower in ("vision", "projector", "language"):
        with bench.reduced(model, "random", r={tower: lambda *_: 0}):
            assert torch.equal(model(**batch).logits, plain)
        ways: dict[str, Any] = {"keep_rate": {tower: 0.5}, "layers": {tower: [0]}}
        with bench.reduced(model, "random", **ways), bench.reduced(meta, "random", **ways):
            assert model(**batch).logits.isfinite().all()
            assert torch.equal(
                tiny.answers(model, batch, 3), tiny.answers(model, batch, 3, use_cache=False)
            )
            with asked(meta, words=7) as shape:
                shapes = stage_macs(meta, shape)
            if tower != "vision":  # there chance says which groups become empty
                assert stage_macs(model, noise(model, words=7)) == shapes


def test_what_cannot_be_is_refused_in_one_line() -> None:
    model, batch = tiny.smolvlm(), tiny.smolvlm_batch(1)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.long)
    mask[..., 24:] = 0
    for way, given in (("tome", {}), ("downsample", {"keep_rate": 0.25})):
        with bench.reduced(model, way, **given), pytest.raises(Unsupported) as refusal:
            model(**batch, pixel_attention_mask=mask)
        assert "padded to one size" in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(Unsupported, match="gets groups of 4 patches without it"):
        bench.reduced(tiny.internvl(), "visionzip").__enter__()
    early = tiny.internvl()
    early.config.vision_feature_layer = -2
    with pytest.raises(Unsupported, match="another vision layer than the last"):
        bench.reduced(early, "tome").__enter__()


def test_a_smaller_tile_has_fewer_groups() -> None:
    model, batch = made("InternVL")
    small = torch.nn.functional.interpolate(
        batch["pixel_values"], (16, 16), mode="bicubic", antialias=True
    )
    expected = encode_small(model, small)
    with bench.reduced(model, "downsample", keep_rate=0.25):
        found = encode(model, batch)
    torch.testing.assert_close(found[:, :4], expected)
    assert found[:, 4:].isnan().all()


def encode_small(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.model.get_image_features(pixels).pooler_output  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_go_through_the_saved_processor(family: str, tmp_path: Path) -> None:
    """A wide image is cut into tiles, with the whole one beside them."""
    model, _ = made(family)
    model.save_pretrained(tmp_path)
    tokens = processor(family, tmp_path)
    loaded = catalogue.load(str(tmp_path))
    assert isinstance(loaded, PromptedModel)
    picture = Image.new("RGB", (64, 32), "red")
    inputs = loaded.prepare([[picture], [picture, picture]], ["what is this?", "red?"])
    assert (inputs["input_ids"] == tiny.IMAGE).sum(1).tolist() == [tokens, 2 * tokens]
    with bench.reduced(loaded.model, "random", keep_rate={"projector": 0.5}):
        assert tiny.answers(loaded.model, inputs, 2).shape == (2, 2)


def processor(family: str, folder: Path) -> int:
    """Save a processor; returns the tokens of an image of 64x32 pixels."""
    from transformers import (
        GotOcr2ImageProcessor,
        Idefics3ImageProcessor,
        Idefics3Processor,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    if family == "InternVL":
        images: Any = GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=True)
        marks = {"start_image_token": "<s>", "end_image_token": "<unk>"}
        marks |= {"context_image_token": "<image>", "video_token": "<video>"}
        words = tiny.words_of("<image>", "<video>", **marks)
        InternVLProcessor(images, words, InternVLVideoProcessor(), 16).save_pretrained(folder)
        return 3 * 16
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(images, tiny.words_of("<image>"), image_seq_len=4).save_pretrained(folder)
    return 3 * 4
