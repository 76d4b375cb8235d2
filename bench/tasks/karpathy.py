"""Karpathy's split files (COCO, Flickr30k): images, each with the texts that describe it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.documents import parse_json, read_text
from bench.core.errors import BenchError
from bench.tasks import files
from bench.tasks.base import hash_of
from bench.tasks.pictures import Files

Row = tuple[Path, list[str], Any]  # where the image is, its texts, its number


@dataclass(frozen=True)
class Captioned:
    """Images and their texts; `ids[i]` is the number that result files know image i by."""

    pictures: Files
    texts: list[list[str]]
    ids: list[Any]
    version: str


def read(where: str, form: str, split: str = "test") -> Captioned:
    """Read a split of `JSON[:IMAGES]`.

    The file holds `{"images": [{"filename", "split", "filepath"?, "sentences": [{"raw"}]}]}`, or is
    a list of `{"image", "caption": str or list}`; IMAGES is by default the file's folder.
    """
    file, root = files.beside(where)
    with files.reading(file, "Karpathy-style file", form):
        text = read_text(file)
        data = parse_json(text, str(file))
        rows = _images(data["images"], split) if isinstance(data, dict) else _list(data)
    if not rows:
        raise BenchError(f"{file} has no images with split '{split}'")
    return Captioned(
        Files([root / path for path, _, _ in rows], root),
        [texts for _, texts, _ in rows],
        [number for _, _, number in rows],
        hash_of(text),
    )


def _images(rows: list[dict[str, Any]], split: str) -> list[Row]:
    return [
        (
            Path(row.get("filepath", "")) / row["filename"],
            [sentence["raw"] for sentence in row["sentences"]],
            row.get("cocoid", row.get("imgid", i)),
        )
        for i, row in enumerate(rows)
        if row.get("split", split) == split
    ]


def _list(rows: list[dict[str, Any]]) -> list[Row]:
    return [
        (Path(row["image"]), _texts_of(row["caption"]), row.get("image_id", _number(row, i)))
        for i, row in enumerate(rows)
    ]


def _number(row: dict[str, Any], place: int) -> int:
    """The number in the name of one of COCO's images, or else the image's place in the file."""
    match = re.search(r"COCO_\w+_(\d+)$", Path(row["image"]).stem)
    return int(match[1]) if match else place


def _texts_of(caption: Any) -> list[str]:
    return [caption] if isinstance(caption, str) else [str(text) for text in caption]
