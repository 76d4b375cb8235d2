"""Videos as frames: a folder of images, an animated GIF or WebP, or a video file.

Frames are the middles of so many equal parts of the video, or of the part between two seconds, as
MVBench's program has it. Video files are read through transformers, by torchcodec, decord or PyAV,
whichever is there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from bench.core.errors import BenchError
from bench.tasks.files import IMAGE_SUFFIXES
from bench.tasks.pictures import Undecoded, check_some, decoded, opening, rgb

ANIMATED = (".gif", ".webp")
_NUMBERS = re.compile(r"(\d+)")
READERS = {"torchcodec": "torchcodec", "decord": "decord", "av": "pyav"}


@dataclass(frozen=True)
class Clip:
    """A video, or the part of it from one second to another."""

    path: Path
    start: float | None = None
    end: float | None = None

    @property
    def is_part(self) -> bool:
        """Whether it is not all of the video."""
        return self.start is not None or self.end is not None

    @property
    def is_file(self) -> bool:
        """Whether a reader of video files is needed."""
        return self.path.suffix.lower() not in ANIMATED and self.path.is_file()


@dataclass(frozen=True)
class Videos:
    """Videos by position.

    Attributes:
        clips: where they are.
        root: the folder below which names are told.
        fps: frames a second in folders of images; None: nobody says.
    """

    clips: Sequence[Clip]
    root: Path
    fps: float | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.clips)

    def name(self, index: int) -> str:
        """Return the path below the root."""
        path = self.clips[index].path
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def open(self, index: int) -> Image.Image:
        """Return one frame."""
        return self.frames(index, 1)[0]

    def frames(self, index: int, count: int) -> list[Image.Image]:
        """Return so many frames of a video as RGB, or all where it has fewer.

        Raises:
            OSError, ValueError: it is not there, or does not decode.
        """
        clip = self.clips[index]
        if clip.path.is_dir():
            return self._from_folder(clip, count)
        if clip.path.suffix.lower() in ANIMATED:
            return _from_animation(clip, count)
        return _from_file(clip, count)

    def _from_folder(self, clip: Clip, count: int) -> list[Image.Image]:
        files = [f for f in clip.path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES]
        files.sort(
            key=lambda file: [int(p) if p.isdigit() else p for p in _NUMBERS.split(file.name)]
        )
        return [decoded(files[i]) for i in middles(clip, len(files), self.fps, count)]


def _from_animation(clip: Clip, count: int) -> list[Image.Image]:
    with opening(clip.path) as image:
        fps, frames = _pace(image) if clip.is_part else None, []
        for i in middles(clip, getattr(image, "n_frames", 1), fps, count):
            image.seek(i)
            frames.append(rgb(image))
        return frames


def _pace(image: Image.Image) -> float | None:
    """Return an animation's frames a second, on average; None where it does not say."""
    milliseconds = []
    for frame in ImageSequence.Iterator(image):
        frame.load()  # a WebP says it then
        milliseconds.append(frame.info.get("duration", 0))
    return 1000 * len(milliseconds) / sum(milliseconds) if any(milliseconds) else None


def _from_file(clip: Clip, count: int) -> list[Image.Image]:
    from transformers.video_utils import load_video

    def choose(metadata: Any, **_: Any) -> list[int]:
        return middles(clip, int(metadata.total_num_frames or 0), metadata.fps, count)

    if not clip.path.is_file():  # what is no file would be taken for an address
        raise Undecoded("no regular file")
    try:
        frames, _ = load_video(str(clip.path), backend=reader(), sample_indices_fn=choose)
    except (BenchError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        raise Undecoded((str(error) or type(error).__name__).splitlines()[0]) from error
    pixels = getattr(frames, "numpy", lambda: frames)()
    if pixels.shape[-1] != 3:  # (N,3,H,W)
        pixels = pixels.transpose(0, 2, 3, 1)
    return [Image.fromarray(frame) for frame in pixels]


def middles(clip: Clip, total: int, fps: float | None, count: int) -> list[int]:
    """Return the frames, from 0, in the middle of `count` equal parts of a clip.

    Args:
        clip: which part of the video.
        total: frames of the video.
        fps: frames a second, needed where the clip begins or ends at a second.
        count: of frames; all where there are fewer.

    Raises:
        Undecoded: there are none, or nobody says how many make a second.
    """
    first, last = 0, total
    if clip.is_part:
        if not fps:
            raise Undecoded("nothing says how many frames make a second")
        first = round((clip.start or 0) * fps)
        last = min(total, round(clip.end * fps) + 1) if clip.end is not None else total
    if last <= first:
        raise Undecoded(f"no frames there, of {total}")
    chosen = (first + int((k + 0.5) * (last - first) / count) for k in range(count))
    return list(dict.fromkeys(chosen))


@cache
def reader() -> str:
    """Return which reader of video files is there, by transformers' name for it.

    Raises:
        BenchError: none is.
    """
    for module, name in READERS.items():
        try:
            library = importlib.import_module(module)
        except (ImportError, OSError, RuntimeError):  # its libraries lack or misfit
            continue
        if getattr(library, "ffmpeg_major_version", 0) is not None:  # torchcodec's, without FFmpeg
            return name
    raise BenchError(
        "no reader of video files is installed: pip install 'crossget-bench[video]', or give "
        "videos as folders of images or as GIFs"
    )


def checked(clips: Sequence[Clip], root: Path, form: str, fps: float | None = None) -> Videos:
    """Return the videos of a data set; raises BenchError where none of them can be opened."""
    if any(clip.is_file for clip in clips):
        reader()
    made = Videos(clips, root, fps)
    check_some(made, form, "videos")
    return made


def version(videos: Videos) -> str:
    """Name what frames depend on beside the files: the reader of video files, where one is used."""
    return reader() if any(clip.is_file for clip in videos.clips) else ""
