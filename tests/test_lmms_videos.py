"""The bridge to lmms-eval on videos, asked as lmms-eval asks it, which is not needed for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vlm_models as tiny
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

import bench
from bench.core.errors import BenchError, Unsupported
from bench.models import catalogue
from bench.runs import lmms
from bench.tasks.pictures import decoded
from bench.tasks.videos import Clip, Videos

QUESTION = "what is this ?"
TEMPLATE = (
    "{% for part in messages[0].content %}"
    "{{ part.text if part.type == 'text' else '<' + part.type + '>' }}{% endfor %} ASSISTANT :"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA-OneVision with a processor, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("onevision")
    made, sides = tiny.onevision(blocks=2), {"size": {"height": 24, "width": 24}}
    made.save_pretrained(folder)
    LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(
            **sides, image_grid_pinpoints=made.config.image_grid_pinpoints
        ),
        tiny.words_of("<image>", "<video>"),
        LlavaOnevisionVideoProcessor(**sides),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An animation of ten frames, and a folder of six."""
    folder = tmp_path_factory.mktemp("videos")
    frames = [
        Image.linear_gradient("L").rotate(17 * i).resize((48, 40)).convert("RGB") for i in range(10)
    ]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    (folder / "b").mkdir()
    for i, frame in enumerate(frames[:6]):
        frame.transpose(Image.Transpose.ROTATE_180).save(folder / "b" / f"{i}.png")
    return [folder / "a.gif", folder / "b"]


def bridge(model: Path, method: str, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Any:
    """The bridge without lmms-eval, which has a cache of its own that is not tried here."""
    monkeypatch.setattr(lmms, "_sign_caches", lambda: None)
    return lmms.Bridge(str(model), method, **{"device": "cpu", "frames": "4"} | arguments)


def request(number: int) -> Any:
    """A request for document `number`, of the kind `generate_until`."""
    options = {"max_new_tokens": 3, "do_sample": False}
    return SimpleNamespace(args=("", messages, options, number, "task", "test"))


def messages(parts: Any) -> list[dict[str, Any]]:
    """What lmms-eval makes of a document's videos and its text."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def video(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "video", "url": url, **more}


def listened(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tokens of each answer that the model gives from now on, prompt included."""
    heard, generate = [], model.generate

    def noting(**asked: Any) -> Tensor:
        heard.extend(generate(**asked))
        return torch.stack(heard[-len(asked["input_ids"]) :])

    monkeypatch.setattr(model, "generate", noting)
    return heard


def test_videos_are_answered_as_by_the_harness(
    model: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by paths, as text or in a mapping; in a batch as alone, with a method at work."""
    loaded: Any = catalogue.load(str(model))
    films = Videos([Clip(path) for path in videos], model)
    shown = [films.frames(i, 4) for i in range(2)]
    docs = [[video(str(videos[0]))], [video({"type": "video", "path": str(videos[1])})]]
    expected = listened(loaded.model, monkeypatch)
    for method in ("none", "dycoke"):
        made = bridge(model, method, monkeypatch, batch_size=2)
        made.task_dict = {"task": {"test": docs}}
        heard = listened(made.model, monkeypatch)
        made.generate_until([request(0), request(1)])
        for i in range(2):
            made.generate_until([request(i)])
        with bench.reduced(loaded.model, method):
            loaded.answer(shown, [QUESTION] * 2, 3, video=True)
        assert all(map(torch.equal, heard, [*expected[-2:]] * 2))
        assert len(heard) == 4 and not torch.equal(heard[0], heard[1])
    assert not torch.equal(expected[0], expected[2])


def test_a_part_of_a_video_has_frames_of_its_own(
    model: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By lmms-eval's names for where it begins and ends; a still image may be a path, too."""
    made, (gif, folder) = bridge(model, "none", monkeypatch), videos
    expected = Videos([Clip(gif, 0.2, 0.7)], model).frames(0, 4)
    for part in (
        video(str(gif), start_time=0.2, end_time=0.7),
        video({"path": str(gif), "video_start": 0.2, "video_end": 0.7}),
    ):
        made.task_dict = {"task": {"test": [[part, {"type": "image", "url": f"{folder}/0.png"}]]}}
        text, images, (frames,) = made._prompt(request(0))
        assert text.startswith(f"<video><image>{QUESTION}")
        assert [one.tobytes() for one in frames] == [one.tobytes() for one in expected]
        assert [one.tobytes() for one in images] == [decoded(folder / "0.png").tobytes()]
    whole = Videos([Clip(gif)], model).frames(0, 4)
    assert [one.tobytes() for one in whole] != [one.tobytes() for one in expected]


def test_what_cannot_be_shown_is_refused_in_one_line(
    model: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bridge(model, "none", monkeypatch)
    broken = videos[0].with_name("broken.gif")
    broken.write_bytes(b"no animation")
    for part, says in (
        (video("./nowhere.gif"), "nowhere.gif: no video that can be read"),
        (video(str(broken)), "broken.gif: no video that can be read"),
        (video([Image.new("RGB", (8, 8))]), "a video is handed over as list: a path is needed"),
        ({"type": "image", "url": "./nowhere.png"}, "nowhere.png: no image that can be read"),
        ({"type": "audio", "url": "a.wav"}, "task 'task' shows audio: images and videos only"),
    ):
        made.task_dict = {"task": {"test": [[part]]}}
        with pytest.raises(BenchError) as refusal:
            made.generate_until([request(0)])
        assert says in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(BenchError, match="frames=none: give a number"):
        bridge(model, "none", monkeypatch, frames="none")
    made = bridge(Path("embedded:llava-emoji"), "none", monkeypatch)
    made.task_dict = {"task": {"test": [[video(str(videos[0]))]]}}
    with pytest.raises(Unsupported, match="shows video: images only"):
        made.generate_until([request(0)])
