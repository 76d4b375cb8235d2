"""Multiple choice about videos: frames, options and letters, and files as they are published."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from fakes import Answering, picture, shade
from PIL import Image
from test_vqa import Tiny
from vlm_models import llava, qwen2_vl

from bench import tasks
from bench.core.errors import BenchError, Unsupported
from bench.models.multimodal import PromptedModel
from bench.tasks import choices, videos
from bench.tasks.pictures import Undecoded
from bench.tasks.videos import Clip, Videos, middles

SHADES = [20 * i for i in range(10)]  # of a video's ten frames


@pytest.fixture(autouse=True)
def fresh_reader() -> Iterator[None]:
    videos.reader.cache_clear()
    yield
    videos.reader.cache_clear()


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "count", "chosen"),
    [
        (10, 1, [5]),
        (10, 2, [2, 7]),
        (10, 5, [1, 3, 5, 7, 9]),
        (10, 10, list(range(10))),
        (3, 16, [0, 1, 2]),
        (1, 4, [0]),
    ],
)
def test_frames_are_the_middles_of_equal_parts(total: int, count: int, chosen: list[int]) -> None:
    assert middles(Clip(Path()), total, None, count) == chosen


def test_frames_of_a_part_lie_in_it() -> None:
    assert middles(Clip(Path(), 1.0, 2.0), 100, 10, 11) == list(range(10, 21))
    assert middles(Clip(Path(), 1.0), 14, 10, 2) == [11, 13]
    assert middles(Clip(Path(), None, 0.3), 100, 10, 4) == [0, 1, 2, 3]
    assert middles(Clip(Path(), 0.5, 99.0), 10, 10, 5) == [5, 6, 7, 8, 9]
    with pytest.raises(Undecoded, match="how many frames make a second"):
        middles(Clip(Path(), 1.0, 2.0), 100, None, 4)
    with pytest.raises(Undecoded, match="no frames there, of 10"):
        middles(Clip(Path(), 5.0, 6.0), 10, 10, 4)
    with pytest.raises(Undecoded, match="no frames there, of 0"):
        middles(Clip(Path()), 0, None, 4)


def folder(path: Path) -> Path:
    for i, value in enumerate(SHADES):
        picture(path / f"frame_{i + 1}.png", value)  # frame_10 comes last, not second
    (path / "notes.txt").write_text("not a frame")
    return path


def animation(path: Path) -> Path:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in SHADES]
    path.parent.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **how)
    return path


def video(path: Path) -> Path:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for value in SHADES:
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 32, 3), value, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("make", "name"), [(folder, "f"), (animation, "a.gif"), (animation, "a.webp"), (video, "v.mp4")]
)
def test_each_kind_of_video_gives_its_frames_in_order(tmp_path: Path, make: Any, name: str) -> None:
    path = make(tmp_path / name)
    whole = Videos([Clip(path)], tmp_path).frames(0, 5)
    assert [shade(frame) for frame in whole] == pytest.approx([20, 60, 100, 140, 180], abs=4)
    assert {frame.mode for frame in whole} == {"RGB"}
    part = Videos([Clip(path, 0.4, 0.7)], tmp_path, fps=10).frames(0, 8)  # ten frames a second
    assert [shade(frame) for frame in part] == pytest.approx([80, 100, 120, 140], abs=4)


@pytest.mark.parametrize("name", ["lost.mp4", "lost.gif", "empty", "broken.gif", "https://a/b.mp4"])
def test_what_is_no_video_does_not_decode(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    with pytest.raises((OSError, ValueError)):
        Videos([Clip(tmp_path / name)], tmp_path).frames(0, 2)


def test_a_video_file_that_is_broken_does_not_decode(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(Undecoded):
        Videos([Clip(tmp_path / "v.mp4")], tmp_path).frames(0, 2)


def test_without_a_reader_video_files_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torchcodec", "decord", "av"):
        monkeypatch.setitem(sys.modules, module, None)
    name = mvbench(tmp_path)
    (tmp_path / "videos" / "b.mp4").write_bytes(b"some video")
    tasks.load(name)  # nobody asks about it
    rows = json.loads((tmp_path / "moving_count.json").read_text())
    (tmp_path / "moving_count.json").write_text(json.dumps([*rows, {**rows[0], "video": "b.mp4"}]))
    with pytest.raises(
        BenchError, match=r"pip install 'crossget-bench\[video\]', or give"
    ) as error:
        tasks.load(name)
    assert "\n" not in str(error.value)


# --- options -------------------------------------------------------------------------------------

OPTIONS = ("a red dog", "two dogs", "dogs", "a cat on a mat")


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1), ("b", 1), ("B.", 1), ("(B)", 1), (" **B** ", 1), ("B. two dogs", 1),
        ("B) two dogs", 1), ("[D]", 3), ("B: it has two", 1),
        ("The answer is B.", 1), ("The correct option is (B), as there are two", 1),
        ("Answer: D", 3), ("I think that option A is right", None), ("The best answer is: A", 0),
        ("Option A.", 0), ("The answer is a cat on a mat", 3), ("The answer is A cat on a mat", 3),
        ("two dogs", 1), ("Two dogs.", 1), ("Dogs", 2), ("There are two dogs in it", None),
        ("A cat on a mat", 3), ("It is a red dog", 0), ("", None), ("E", None),
        ("F. something", None), ("I do not know", None), ("neither", None), ("A or B", None),
    ],
)  # fmt: skip
def test_answers_mean_one_option_or_none(answer: str, place: int | None) -> None:
    assert choices.chosen(answer, OPTIONS) == place


def test_a_question_lists_its_options() -> None:
    assert choices.question("What is it?", ["a dog", "a cat"]) == (
        "What is it?\nOptions:\nA. a dog\nB. a cat\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_letters_ahead_of_options_go_where_they_are_letters() -> None:
    assert choices.unlettered(["A. Apples.", "B. Candles.", "C) It"]) == [
        "Apples.",
        "Candles.",
        "It",
    ]
    assert choices.unlettered(["B. Apples.", "A. Candles."]) == ["B. Apples.", "A. Candles."]
    assert choices.unlettered(["A. Lincoln", "George"]) == ["A. Lincoln", "George"]


# --- whole tasks ---------------------------------------------------------------------------------


def mvbench(path: Path) -> str:
    """Two questions about an animation, and one about a part of it."""
    animation(path / "videos" / "a.gif")
    row = {"video": "a.gif", "question": "How bright does it end?"}
    row |= {"candidates": ["100", "180", "20"], "answer": "180"}
    rows = [row, {**row, "answer": "20"}, {**row, "start": 0.4, "end": 0.5, "answer": "100"}]
    (path / "moving_count.json").write_text(json.dumps(rows))
    return f"mvbench:{path}/moving_count.json:{path}/videos?frames=5"


def watching(letters: bool = True) -> Any:
    """A model of videos that says which option is the shade of the last frame."""

    def say(frames: list[Any], text: str) -> str:
        options = [line.partition(". ") for line in text.splitlines() if line[1:3] == ". "]
        last = shade(frames[-1])
        (found,) = [o for o in options if abs(int("".join(filter(str.isdigit, o[2]))) - last) < 5]
        return found[0] if letters else f"It is {found[2]}."

    model = Answering("multimodal", say)
    model.takes_video = True
    return model


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("letters", [True, False])
def test_mvbench_is_scored_to_what_a_hand_gets(
    tmp_path: Path, letters: bool, batch_size: int
) -> None:
    model = watching(letters)
    scored = tasks.load(mvbench(tmp_path)).evaluate(model, batch_size=batch_size)
    assert scored.outcomes["correct"] == [1, 0, 1]
    assert [frames for frames, _ in model.seen] == [5, 5, 2]
    assert model.seen[0][1].startswith("How bright does it end?\nOptions:\nA. 100\nB. 180\nC. 20\n")
    assert scored.primary == "accuracy" and set(scored.metrics) == {"accuracy"}
    assert scored.metrics["accuracy"].value == pytest.approx(200 / 3)


def test_a_folder_of_subtasks_tells_them_apart(tmp_path: Path) -> None:
    mvbench(tmp_path / "old")
    animation(tmp_path / "video" / "clevrer" / "video_validation" / "a.gif")
    folder(tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "show")
    row = {"video": "show", "question": "?", "candidates": ["120", "20"], "answer": "120"}
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "moving_count.json").write_text(
        (tmp_path / "old" / "moving_count.json").read_text()
    )
    bound = {**row, "start": 1.0, "end": 2.0}  # frames 3 to 6 of three a second
    (tmp_path / "json" / "episodic_reasoning.json").write_text(json.dumps([bound]))
    name = f"mvbench:{tmp_path}/json:{tmp_path}/video"
    scored = tasks.load(f"{name}?fps=3").evaluate(watching())
    assert {key: metric.value for key, metric in scored.metrics.items()} == pytest.approx(
        {"accuracy": 75, "accuracy_episodic_reasoning": 100, "accuracy_moving_count": 200 / 3}
    )
    # Without frames a second the folder's part is unknown: one video less.
    lost = tasks.load(name).evaluate(watching())
    assert lost.failed == ["tvqa/frames_fps3_hq/show"] and lost.outcomes["correct"][0] == 0
    # Cut already: the last frame of all is 180, which is no option of the row's.
    with pytest.raises(ValueError, match="not enough values"):
        tasks.load(f"{name}?fps=3&bounds=ignore").evaluate(watching())


def videomme(path: Path) -> str:
    folder(path / "videos" / "short1")
    animation(path / "videos" / "long1.gif")
    row = {"video_id": "1", "duration": "short", "domain": "Knowledge", "videoID": "short1"}
    row |= {"question": "How bright?", "options": ["A. 100.", "B. 180.", "C. 20.", "D. 7."]}
    rows = [{**row, "answer": "B"}, {**row, "videoID": "long1", "duration": "long", "answer": "C"}]
    rows.insert(1, {**row, "videoID": "lost", "duration": "long", "answer": "B"})
    datasets.Dataset.from_list(rows).to_parquet(path / "test.parquet")
    return f"videomme:{path}/test.parquet:{path}/videos"


def test_video_mme_is_scored_to_what_a_hand_gets(tmp_path: Path) -> None:
    model = watching()
    scored = tasks.load(videomme(tmp_path)).evaluate(model)
    assert scored.outcomes == {"correct": [1, 0, 0], "answer": ["B", "", "B"]}
    assert {key: metric.value for key, metric in scored.metrics.items()} == pytest.approx(
        {"accuracy": 100 / 3, "accuracy_short": 100, "accuracy_long": 0}
    )
    assert scored.failed == ["lost.mp4"]
    assert "\nB. 180.\n" in model.seen[0][1] and model.seen[0][0] == 10  # all frames there are


def test_frames_are_part_of_the_version(tmp_path: Path) -> None:
    name = mvbench(tmp_path)
    others = [name, name.replace("frames=5", "frames=6"), f"{name}&bounds=ignore", f"{name}&fps=2"]
    assert len({tasks.load(other).version for other in others}) == len(others)


def test_a_model_without_videos_is_refused_in_one_line(tmp_path: Path) -> None:
    task = tasks.load(mvbench(tmp_path))
    model = Answering("multimodal", lambda *_: "A")
    with pytest.raises(Unsupported, match="fake takes no videos here") as error:
        task.evaluate(model)
    assert "\n" not in str(error.value) and model.seen == []
    tiny = Tiny("tiny", llava(), (24, 24), provenance={"weights": "path"})
    with pytest.raises(Unsupported, match="tiny takes no videos here"):
        tiny.answer([[Image.new("RGB", (24, 24))]], ["?"], 2, video=True)
    with pytest.raises(Unsupported, match="needs a multimodal model; fake is an answerer"):
        task.evaluate(Answering("answerer", lambda *_: "A"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mvbench:{0}/moving_count.json", "names 1 paths, not 2"),
        ("mvbench:{0}/nothing:{0}/videos", "has no .json file"),
        ("mvbench:{0}/no.json:{0}/videos", "cannot read .*no.json"),
        (
            "mvbench:{0}/moving_count.json:{0}/nothing",
            "none of 2 videos can be opened, such as a.gif",
        ),
        ("mvbench:{0}/moving_count.json:{0}/videos?frames=0", "must be a whole number from 1"),
        ("mvbench:{0}/moving_count.json:{0}/videos?bounds=no", "must be ignore"),
        ("mvbench:{0}/answer.json:{0}/videos", "row 1: 'answer' is '7', not one of its candidates"),
        ("mvbench:{0}/second.json:{0}/videos", "row 1: 'start' is '1', not a number of seconds"),
        ("mvbench:{0}/lone.json:{0}/videos", "row 1: 'candidates' is .*, not a list of 2 to 26"),
        ("videomme:{0}/test.parquet", "names no videos: write videomme:"),
        ("videomme:{0}/test.parquet:{0}/else", "cannot read .*else"),
        ("videomme:{0}/test.parquet:{0}/videos?fps=3", "it takes frames"),
        ("videomme:{0}/odd.parquet:{0}/videos", "row 1: 'answer' is 'E', not the letter of one"),
        ("videomme:{0}/bare.parquet:{0}/videos", "row 1: it has no 'options'"),
    ],
)
def test_wrong_files_are_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    mvbench(tmp_path), videomme(tmp_path)
    (tmp_path / "nothing").mkdir()
    row = json.loads((tmp_path / "moving_count.json").read_text())[0]
    for file, change in (
        ("answer", {"answer": "7"}),
        ("second", {"start": "1"}),
        ("lone", {"candidates": ["180"]}),
    ):
        (tmp_path / f"{file}.json").write_text(json.dumps([{**row, **change}]))
    row = {"videoID": "short1", "question": "?", "answer": "E"}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "bare.parquet")
    row = {**row, "options": ["A. a", "B. b"]}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(BenchError, match=message) as error:
        tasks.load(name.format(tmp_path))
    assert "\n" not in str(error.value)


# --- how a model gets them -----------------------------------------------------------------------


def qwen_processor() -> Any:
    """Qwen2-VL's processor around a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    special = ["<|image_pad|>", "<|video_pad|>", "<pad>"]
    words = {word: i for i, word in enumerate(["?", *special, "what", "happens", "who"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", additional_special_tokens=special[:2]
    )
    fast.padding_side = "left"
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 6}
    template = (
        "{% for part in messages[0]['content'] %}{% if part['type'] == 'text' %}"
        "{{ part['text'] }}{% else %}{{ '<|' + part['type'] + '_pad|> ' }}{% endif %}{% endfor %}"
    )
    parts = Qwen2VLImageProcessor(size=size), fast, Qwen2VLVideoProcessor(size=size)
    return Qwen2VLProcessor(*parts, chat_template=template)


def test_frames_reach_a_processor_as_one_video_each() -> None:
    processor = qwen_processor()
    model = PromptedModel("q", qwen2_vl(), (56, 56), processor=processor)
    rng = np.random.default_rng(0)
    clips = [
        [Image.fromarray(rng.integers(0, 256, (56, 84, 3), np.uint8)) for _ in range(count)]
        for count in (4, 6)
    ]
    inputs = model.prepare(clips, ["what happens", "who"], video=True)
    grid = inputs["video_grid_thw"]
    assert grid[:, 0].tolist() == [2, 3]  # two frames a step, none left out
    tokens = (inputs["input_ids"] == processor.video_token_id).sum(1)
    assert tokens.tolist() == (grid.prod(1) // 4).tolist()
    assert len(inputs["pixel_values_videos"]) == int(grid.prod(1).sum())
    assert "pixel_values" not in inputs
    images = model.prepare(clips, ["what happens", "who"])
    assert len(images["image_grid_thw"]) == 10 and "pixel_values_videos" not in images
