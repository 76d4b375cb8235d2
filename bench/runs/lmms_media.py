"""Images and videos as lmms-eval's tasks hand them over: open, by path, or as a part of a video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from bench.core.errors import BenchError
from bench.tasks.pictures import BROKEN, decoded
from bench.tasks.videos import Clip, Videos


def picture(part: Mapping[str, Any]) -> Image.Image:
    """Return the image of a message's part as RGB.

    Raises:
        BenchError: it is not there, or does not decode.
    """
    image = part["url"]
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return decoded(Path(image))
    except BROKEN as error:
        raise BenchError(f"{image}: no image that can be read ({error})") from None


def video_frames(part: Mapping[str, Any], frames: int) -> list[Image.Image]:
    """Return so many frames of the video of a message's part, or all where it has fewer.

    A task names a video by its path; or by a mapping that has the path and, of a part of the
    video, where it begins and ends, in seconds.

    Raises:
        BenchError: it is not there, or does not decode.
    """
    named = part["url"] if isinstance(part["url"], Mapping) else {"url": part["url"], **part}
    where = next((named[key] for key in ("url", "path", "video") if key in named), None)
    if not isinstance(where, str | Path):
        raise BenchError(f"a video is handed over as {type(where).__name__}: a path is needed")
    start, end = (_second(named, key) for key in ("start", "end"))
    path = Path(where)
    try:
        return Videos([Clip(path, start, end)], path.parent).frames(0, frames)
    except BROKEN as error:
        raise BenchError(f"{path}: no video that can be read ({error})") from None


def _second(named: Mapping[str, Any], key: str) -> float | None:
    """Return where a part of a video begins or ends, by either of the names in use."""
    value = named.get(f"{key}_time", named.get(f"video_{key}"))
    return None if value is None else float(value)
