"""Video-LLaVA: two image encoders ahead of one projector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import vlm_models as tiny
from PIL import Image
from test_onevision import Keeps, Reads, into_prompt, kept_of
from torch import Tensor

import bench
from bench.core.errors import Unsupported
from bench.core.site import ProjectorSite
from bench.measure.generation import stage_macs
from bench.models import catalogue
from bench.models.multimodal import PromptedModel
from bench.models.noise import asked, noise

TOKENS = 3 * 37  # of a video: three frames of 36 patches and a class token

WAYS: dict[str, dict[str, Any]] = {
    "random": {"keep_rate": {"projector": 0.4}},
    "vidcom2": {"keep_rate": 0.5},
    "divprune": {"keep_rate": {"language": 0.4}},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.video_llava()


def test_a_video_is_one_sequence_of_all_tokens_of_its_frames(model: Any) -> None:
    batch, method = tiny.video_llava_videos(2), Keeps(kept_of(2, TOKENS, 1 / 3))
    plain = into_prompt(model, batch, "video")
    with bench.reduced(model, method, keep_rate={"projector": 1 / 3}):
        videos = into_prompt(model, batch, "video").view(2, TOKENS, -1)
        tokens = bench.trace(model, **batch).tokens
    site = method.sites[0]
    assert isinstance(site, ProjectorSite)
    assert (site.frames, site.grid, site.prefix) == (3, None, 0)
    assert torch.equal(site.x, plain.view(2, TOKENS, -1)) and not site.q.shape[-1]
    for video, before, chosen in zip(videos, site.x, method.chosen, strict=True):
        assert torch.equal(video[:37], before[chosen]) and video[37:].isnan().all()
    longest = int(batch["attention_mask"].sum(1).max())
    assert tokens["projector"] == [(TOKENS, 37)]
    assert tokens["language"][0][0] == longest - TOKENS + 37 and "vision" not in tokens


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_videos_is_answered_as_each_alone(model: Any, way: str) -> None:
    batch = tiny.video_llava_videos(3)
    plain = model(**batch).logits
    with bench.reduced(model, way, **WAYS[way]):
        together = tiny.answers(model, batch, 4)
        assert torch.equal(together, tiny.answers(model, batch, 4, use_cache=False))
        each = [tiny.answers(model, tiny.alone(batch, i), 4) for i in range(3)]
        assert not torch.equal(model(**batch).logits, plain)
    assert torch.equal(together, torch.cat(each))
    tower = "language" if way == "divprune" else "projector"
    with bench.reduced(model, way, r={tower: lambda *_: 0}):
        assert torch.equal(model(**batch).logits, plain)


@torch.no_grad()
def test_images_are_seen_as_by_a_llava_with_its_image_encoder(model: Any) -> None:
    """The same weights in a LlavaForConditionalGeneration give the same, reduced or not."""
    llava, batch = tiny.llava(), tiny.llava_batch(3)
    renamed = {
        key.replace("image_tower", "vision_tower"): value
        for key, value in model.state_dict().items()
        if "video_tower" not in key
    }
    llava.load_state_dict(renamed)
    for method, given in (("tome", {"r": 3}), ("visionzip", {"keep_rate": 0.5}), ("none", {})):
        answers: list[Tensor] = []
        for one in (model, llava):
            with bench.reduced(one, method, **given):
                answers.append(one(**batch).logits)
        torch.testing.assert_close(*answers)


@torch.no_grad()
def test_an_image_and_a_video_in_one_prompt(model: Any) -> None:
    one, film = tiny.alone(tiny.llava_batch(1), 0), tiny.alone(tiny.video_llava_videos(1), 0)
    names = ("input_ids", "attention_mask")
    batch = {**one, **film} | {name: torch.cat([one[name], film[name]], 1) for name in names}
    with bench.reduced(model, "random", keep_rate={"projector": 0.5}):
        assert model(**batch).logits.isfinite().all()
        entering = bench.trace(model, **batch).tokens["language"][0][0]
    assert entering == batch["input_ids"].shape[1] - 18 - 55


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    ("tome", {"r": 2}, "'tome' acts in the encoder of images"),
    (Reads([]), {}, "method 'reads' reads attention, and videos have an encoder of their own"),
    ("downsample", {"keep_rate": 0.5}, "counts on videos of their full size"),
    ("pool", {"keep_rate": {"projector": 0.5}}, "needs patches in a grid"),
]


@pytest.mark.parametrize(("method", "given", "message"), REFUSED)
def test_what_a_video_does_not_offer_is_refused_in_one_line(
    model: Any, method: Any, given: dict[str, Any], message: str
) -> None:
    with bench.reduced(model, method, **given), pytest.raises(Unsupported) as refusal:
        model(**tiny.video_llava_videos(1))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_costs_from_the_shape_are_those_of_values(model: Any) -> None:
    shape = tiny.video_llava().to("meta")
    for method, given in (("none", {}), ("tome", {"r": 3}), ("divprune", {"keep_rate": 0.5})):
        with bench.reduced(model, method, **given):
            real = stage_macs(model, noise(model, words=7))
        with asked(shape, words=7) as prompt, bench.reduced(shape, method, **given):
            assert stage_macs(shape, prompt) == real


def test_a_question_about_frames_goes_through_the_saved_processor(
    model: Any, tmp_path: Path
) -> None:
    from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor
    from transformers import VideoLlavaVideoProcessor as Videos

    model.save_pretrained(tmp_path)
    sides = {"size": {"height": 24, "width": 24}, "crop_size": {"height": 24, "width": 24}}
    words = tiny.words_of("<image>", "<video>")
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(**sides), Videos(**sides), words, patch_size=4
    )
    processor.save_pretrained(tmp_path)
    loaded = catalogue.load(str(tmp_path))
    assert isinstance(loaded, PromptedModel) and loaded.takes_video
    frames = [Image.new("RGB", (48, 48), color) for color in ("red", "blue", "red")]
    inputs = loaded.prepare([frames], ["what is this?"], video=True)
    assert int((inputs["input_ids"] == tiny.VIDEO).sum()) == TOKENS
    with bench.reduced(loaded.model, "dycoke"):
        assert len(loaded.answer([frames], ["what is this?"], 2, video=True)) == 1
