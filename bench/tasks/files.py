"""Data files of the standard tasks: their names in a task's name, and one clear line when wrong.

    places("pope", "pope.json:val2014?x=1", "pope:JSON:IMAGES", 2)   # ([pope.json, val2014], {...})

A task's name gives paths between colons and, after a question mark, options (`?k=256&split=val`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, near_miss, shown
from bench.tasks.pictures import Files, check_some

LONGEST_OPTION = 1000  # characters
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".ppm"})


def options(rest: str, form: str, known: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """Split `PATHS?key=value&key=value`.

    Raises:
        BenchError: an option that the task does not have, that is there twice, or too long.
    """
    paths, _, query = rest.partition("?")
    values = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            takes = (
                f"it takes {', '.join(known)}{near_miss(key, known)}" if known else "it takes none"
            )
            raise BenchError(f"unknown option '{shown(part)}' in {form}: {takes}")
        if key in values:
            raise BenchError(f"option {key} in {form} is there twice: keep one")
        if len(value) > LONGEST_OPTION or not value.replace("\n", "").isprintable():
            raise BenchError(
                f"option {key}='{shown(value)}' in {form} must be plain text of at most "
                f"{LONGEST_OPTION:,} characters"
            )
        values[key] = value
    return paths, values


def places(
    rest: str, form: str, counts: Collection[int], known: Sequence[str] = ()
) -> tuple[list[Path], dict[str, str]]:
    """Split `PATH:PATH...[?options]` into paths, as many as one of `counts`, and the options."""
    paths, values = options(rest, form, known)
    parts = paths.split(":")
    if len(parts) not in counts:
        wanted = " or ".join(map(str, counts))
        raise BenchError(f"'{shown(rest)}' names {len(parts)} paths, not {wanted}: write {form}")
    return [path_of(part, form) for part in parts], values


def beside(rest: str, form: str) -> tuple[Path, Path]:
    """Split `JSON[:IMAGES]`; the images are by default beside the file."""
    json_name, colon, images = rest.partition(".json:")
    file = path_of(json_name + ".json" if colon else rest, form)
    return file, path_of(images, form) if colon else file.parent


def path_of(text: str, form: str) -> Path:
    """Return a path in a task's name; raises BenchError where nothing is there."""
    if not text:
        raise BenchError(f"an empty path: write {form}")
    try:
        path = Path(text).expanduser()
        path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL; the home of nobody
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"cannot read {shown(text)} ({reason}): {form}") from None
    return path


def positive(value: str, option: str, form: str) -> int:
    """Return an option that is a number of things, 1 or more."""
    if not value.isdecimal() or len(value) > 9 or int(value) < 1:
        raise BenchError(
            f"option {option}='{shown(value)}' in {form} must be a whole number from 1, "
            "of at most 9 digits"
        )
    return int(value)


def first_there(candidates: Sequence[Path]) -> Path:
    """Return the first path that exists, or else the first: opening it then says it is missing."""
    return next((path for path in candidates if os.path.exists(path)), candidates[0])


def pictures(paths: Sequence[Path], root: Path, form: str) -> Files:
    """Return the images of a data set; raises BenchError where none of them can be opened."""
    images = Files(paths, root)
    check_some(images, form)
    return images


def numbered(images: Sequence[Hashable]) -> dict[Any, int]:
    """Return each image that is named, once, and its place among them."""
    return {image: i for i, image in enumerate(dict.fromkeys(images))}


def class_folders(root: Path) -> tuple[list[str], list[Path], list[int]]:
    """Return the folders under `root` by name, the images in them, and each one's folder."""
    folders = sorted(f for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    images = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    paths, labels = [file for file, _ in images], [label for _, label in images]
    return [folder.name for folder in folders], paths, labels


def answers_as_json(key: str, ids: Sequence[Any], value: str, answers: Sequence[Any]) -> str:
    """Return the JSON list that evaluation servers take: an id and an answer each."""
    rows = [{key: i, value: answer} for i, answer in zip(ids, answers, strict=True)]
    return json.dumps(rows, ensure_ascii=False) + "\n"
