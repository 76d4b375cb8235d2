"""Karpathy's split files (COCO, Flickr30k): images, each with the texts that describe it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.documents import parse_json, read_text
from bench.core.errors import BenchError, near_miss, shown
from bench.tasks import files
from bench.tasks.base import hash_of
from bench.tasks.pictures import Files
from bench.tasks.rows import Row, document, listed

TEST, WHAT = "test", "Karpathy-style file"
Image = tuple[str, list[str], Any]  # its path below the folder, its texts, its number


@dataclass(frozen=True)
class Captioned:
    """Images and their texts; `ids[i]` is the number that result files know image i by."""

    pictures: Files
    texts: list[list[str]]
    ids: list[Any]
    version: str


def read(where: str, form: str, split: str | None = None, default: str = TEST) -> Captioned:
    """Read a split of `JSON[:IMAGES]`, a default one where none is named.

    The file holds `{"images": [{"filename", "split", "filepath"?, "sentences": [{"raw"}]}]}`, or is
    a list of `{"image", "caption": str or list}`; IMAGES is by default the file's folder.
    """
    file, root = files.beside(where, form)
    text = read_text(file)
    data = parse_json(text, str(file))
    if isinstance(data, dict):
        images = _split(data, default if split is None else split, file, form)
    elif split is None:
        images = [_listed(row, i) for i, row in enumerate(listed(data, file, WHAT, form))]
    else:
        raise BenchError(f"{shown(file)} is a list without splits: leave split= out of {form}")
    if not any(texts for _, texts, _ in images):
        raise BenchError(f"no image of {shown(file)} has a caption: {form}")
    return Captioned(
        files.pictures([root / path for path, _, _ in images], root, form),
        [texts for _, texts, _ in images],
        [number for _, _, number in images],
        hash_of(text, *filter(None, [split])),
    )


def _split(data: Any, split: str, file: Path, form: str) -> list[Image]:
    rows = document(data, file, WHAT, form).rows("images")
    of = [row.text("split", split) for row in rows]
    if split not in of:
        hint = near_miss(split, dict.fromkeys(of))
        raise BenchError(f"{shown(file)} has no images with split '{shown(split)}'{hint}")
    return [_image(row, i) for i, row in enumerate(rows) if of[i] == split]


def _image(row: Row, place: int) -> Image:
    texts = [sentence.text("raw") for sentence in row.rows("sentences")]
    number = row.identifier("cocoid", row.identifier("imgid", place))
    return os.path.join(row.text("filepath", ""), row.text("filename")), texts, number


def _listed(row: Row, place: int) -> Image:
    """Take an image's number from its row, its name (COCO's have one), or its place in the file."""
    name = row.text("image")
    match = re.search(r"COCO_\w+_(\d+)$", Path(name).stem)
    number = row.identifier("image_id", int(match[1]) if match else place)
    return name, row.texts("caption"), number
