"""Multiple choice about videos, from the files that MVBench and Video-MME come in.

    mvbench:JSON:VIDEOS              one subtask's file, or the folder of them
    videomme:DATA[@SPLIT]:VIDEOS     parquet, or lmms-lab/Video-MME

Options: `frames=16`, and of MVBench `fps=3`, for folders of frames, and `bounds=ignore`, where the
videos are cut to their questions' seconds already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from bench.core.documents import parse_json, read_text
from bench.core.errors import BenchError, shown
from bench.models.loaded import Multimodal
from bench.tasks import choices, files, hub, videos
from bench.tasks.base import Evaluation, Feed, Task, hash_of
from bench.tasks.pictures import BROKEN
from bench.tasks.registry import task
from bench.tasks.rows import Row, listed
from bench.tasks.scores import share
from bench.tasks.videos import Clip, Videos

MVBENCH, VIDEOMME = "mvbench:JSON:VIDEOS", "videomme:DATA[@SPLIT]:VIDEOS"
FRAMES = 16
MAX_ANSWER = 16  # tokens
# Where the videos of MVBench's subtasks lie below its folder `video`.
FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".gif", "")  # the last: a folder of frames


@dataclass(frozen=True)
class VideoQuestion:
    """A question about a video, by its number: the options, the right one's place, its kind."""

    video: int
    text: str
    options: tuple[str, ...]
    right: int
    kind: str = ""


class VideoQuestions(Task):
    """Multiple choice about videos."""

    kinds = (Multimodal,)

    def __init__(
        self,
        name: str,
        version: str,
        videos: Videos,
        questions: Sequence[VideoQuestion],
        frames: int = FRAMES,
    ) -> None:
        """Name the task, its data, and how many frames of a video a model is shown."""
        super().__init__(name, version, questions)
        self.videos, self.questions, self.frames = videos, questions, frames

    def by_sample(self, metric: str) -> bool:
        """Yes: a question is answered alone."""
        return True

    def score(self, feed: Feed) -> Evaluation:
        """Score a model. Outcomes: `correct` and `answer`, "" to a video that does not decode.

        Raises:
            Unsupported: the model takes no videos.
        """
        feed.loaded.require_video()
        asked = [self.questions[i] for i in feed.index]
        failed: list[str] = []
        small = replace(feed, size=max(1, feed.size // self.frames))  # frames fill the memory
        answers = small.answers(asked, partial(self._answers, feed.loaded, failed))
        right = [
            int(choices.chosen(answer, one.options) == one.right)
            for one, answer in zip(asked, answers, strict=True)
        ]
        metrics = {"accuracy": share(right)}
        for kind in dict.fromkeys(one.kind for one in asked if one.kind):
            of = [hit for hit, one in zip(right, asked, strict=True) if one.kind == kind]
            metrics[f"accuracy_{kind}"] = share(of)
        return Evaluation(metrics, "accuracy", {"correct": right, "answer": answers}, failed)

    def _answers(
        self, loaded: Multimodal, failed: list[str], some: Sequence[VideoQuestion]
    ) -> list[str]:
        """The answers to some questions, "" where the video does not decode."""
        numbers = dict.fromkeys(one.video for one in some)
        frames = {number: self._frames(number) for number in numbers}
        failed += [self.videos.name(one.video) for one in some if not frames[one.video]]
        seen = [one for one in some if frames[one.video]]
        texts = [choices.question(one.text, one.options) for one in seen]
        shots = [frames[one.video] for one in seen]
        answers = iter(loaded.answer(shots, texts, MAX_ANSWER, video=True) if seen else [])
        return [next(answers) if frames[one.video] else "" for one in some]

    def _frames(self, video: int) -> list[Any]:
        """The frames of a video, none where it does not decode."""
        try:
            return self.videos.frames(video, self.frames)
        except BROKEN:
            return []


def _made(
    name: str,
    clips: Sequence[Clip],
    root: Path,
    questions: Sequence[tuple[str, Sequence[str], int, str]],
    version: Sequence[object],
    options: Mapping[str, str],
    form: str,
) -> VideoQuestions:
    """The task of questions (text, options, right one, kind), each about the clip at its place."""
    frames = files.positive(options.get("frames", str(FRAMES)), "frames", form)
    fps = files.positive(options["fps"], "fps", form) if "fps" in options else None
    at = files.numbered(clips)
    made = videos.checked(list(at), root, form, fps)
    asked = [
        VideoQuestion(at[clip], text, tuple(choice), right, kind)
        for clip, (text, choice, right, kind) in zip(clips, questions, strict=True)
    ]
    full_version = hash_of(*version, choices.ASKED, frames, fps, videos.version(made))
    return VideoQuestions(name, full_version, made, asked, frames)


@task(MVBENCH, "MVBench: multiple choice about videos, by subtask")
def mvbench(rest: str) -> VideoQuestions:
    """Return MVBench from a subtask's file, or the folder of them, and the folder of videos."""
    (where, root), options = files.places(rest, MVBENCH, (2,), ("frames", "fps", "bounds"))
    if options.get("bounds", "ignore") != "ignore":
        raise BenchError(f"option bounds='{shown(options['bounds'])}' in {MVBENCH} must be ignore")
    sources = sorted(where.glob("*.json")) if where.is_dir() else [where]
    if not sources:
        raise BenchError(f"{shown(where)} has no .json file: {MVBENCH}")
    texts = [read_text(source) for source in sources]
    clips, questions = [], []
    for source, text in zip(sources, texts, strict=True):
        for row in listed(parse_json(text, str(source)), source, "MVBench file", MVBENCH):
            clips.append(_clip(row, source.stem, root, "bounds" in options))
            candidates = _options(row, "candidates")
            answer = row.text("answer")
            if answer not in candidates:
                raise row.fault("answer", "one of its candidates")
            kind = source.stem if len(sources) > 1 else ""
            questions.append((row.text("question"), candidates, candidates.index(answer), kind))
    version = [*texts, options.get("bounds")]
    return _made(f"mvbench:{rest}", clips, root, questions, version, options, MVBENCH)


def _clip(row: Row, subtask: str, root: Path, uncut: bool) -> Clip:
    name = row.text("video")
    path = files.first_there([root / name, root / FOLDERS.get(subtask, "") / name])
    seconds = [None if uncut else _second(row, name) for name in ("start", "end")]
    return Clip(path, *seconds)


def _second(row: Row, name: str) -> float | None:
    value = row.value(name, None)
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise row.fault(name, "a number of seconds")
    return float(value)


@task(VIDEOMME, "Video-MME: multiple choice about videos, by their length")
def videomme(rest: str) -> VideoQuestions:
    """Return Video-MME from its parquet file or data set, and the folder of its videos."""
    where, options = files.options(rest, VIDEOMME, ("frames",))
    source, colon, below = where.partition(":")
    if not colon:
        raise BenchError(f"'{shown(rest)}' names no videos: write {VIDEOMME}")
    root = files.path_of(below, VIDEOMME)
    name, _, split = source.partition("@")
    data = hub.read(name, split)
    fields = ("videoID", "question", "options", "answer", "duration")
    known = [field for field in fields if field in data.column_names]
    rows = listed(data.select_columns(known).to_list(), Path(name), "Video-MME data", VIDEOMME)
    clips, questions = [], []
    for row in rows:
        stem = row.text("videoID")
        clips.append(Clip(files.first_there([root / f"{stem}{suffix}" for suffix in SUFFIXES])))
        texts = choices.unlettered(_options(row, "options"))
        letter = row.text("answer")
        right = ascii_uppercase.find(letter)
        if len(letter) != 1 or not 0 <= right < len(texts):
            raise row.fault("answer", "the letter of one of its options")
        questions.append((row.text("question"), texts, right, row.text("duration", "")))
    version = [name, split, data._fingerprint, len(data)]
    return _made(f"videomme:{rest}", clips, root, questions, version, options, VIDEOMME)


def _options(row: Row, name: str) -> list[str]:
    texts = row.texts(name)
    if not 2 <= len(texts) <= choices.MOST:
        raise row.fault(name, f"a list of 2 to {choices.MOST} texts")
    return texts
