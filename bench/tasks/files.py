"""Data files of the standard tasks: their names in a task's name, and one clear line when wrong.

    places("pope", "pope.json:val2014?x=1", "pope:JSON:IMAGES", 2)   # ([pope.json, val2014], {...})

A task's name gives paths between colons and, after a question mark, options (`?k=256&split=val`).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.core.errors import BenchError, near_miss
from bench.tasks.pictures import Files

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".ppm"})


def options(rest: str, form: str, known: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """Split `PATHS?key=value&key=value`; raises BenchError at an option that the task has not."""
    paths, _, query = rest.partition("?")
    values = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise BenchError(
                f"unknown option '{part}' in {form}: {takes}{near_miss(key, list(known))}"
            )
        values[key] = value
    return paths, values


def places(
    rest: str, form: str, count: int, known: Sequence[str] = ()
) -> tuple[list[Path], dict[str, str]]:
    """Split `PATH:PATH...[?options]` into exactly `count` paths and the options."""
    paths, values = options(rest, form, known)
    parts = paths.split(":")
    if len(parts) != count or not all(parts):
        raise BenchError(f"'{rest}' names {len(parts)} paths, not {count}: write {form}")
    return [Path(part).expanduser() for part in parts], values


def beside(rest: str) -> tuple[Path, Path]:
    """Split `JSON[:IMAGES]`; the images are by default beside the file."""
    json_name, colon, images = rest.partition(".json:")
    file = Path(json_name + ".json" if colon else rest).expanduser()
    return file, Path(images).expanduser() if images else file.parent


def positive(value: str, option: str, form: str) -> int:
    """Return an option that is a number of things, 1 or more."""
    if not value.isdecimal() or int(value) < 1:
        raise BenchError(f"option {option}='{value}' in {form} must be a whole number from 1")
    return int(value)


@contextmanager
def reading(file: Path, what: str, form: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one line that names the fix."""
    try:
        yield
    except BenchError as error:
        raise BenchError(f"{error}: {form}") from error
    except KeyError as error:
        raise BenchError(f"{file} is no {what} (it has no {error}): {form}") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise BenchError(f"{file} is no {what} ({error!r}): {form}") from error


def first_there(candidates: Sequence[Path]) -> Path:
    """Return the first path that exists, or else the first: opening it then says it is missing."""
    return next((path for path in candidates if path.exists()), candidates[0])


def pictures(paths: Sequence[Path], root: Path, form: str) -> Files:
    """Return the images of a data set; single missing ones count as wrong.

    Raises:
        BenchError: none of them is where it should be.
    """
    if not any(path.is_file() for path in paths):
        raise BenchError(f"none of {len(paths)} images is there, such as {paths[0]}: {form}")
    return Files(paths, root)


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
