"""Folders that zero-shot classification reads: CoOp's data sets, or one folder a class.

    zeroshot:oxford_pets                               its split_zhou_OxfordPets.json and images/
    zeroshot:imagenet/images/val?names=classnames.txt&data=ImageNet

Options: `templates=ensemble`, `prompt=a drawing of a {}.`, `classes=base` or `new` (CoOp's halves),
`names=FILE` (a line `FOLDER name` each) and `data=NAME`, whose sentence is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.core.documents import read_json, read_text
from bench.core.errors import BenchError, shown
from bench.tasks import files
from bench.tasks.base import hash_of
from bench.tasks.registry import task
from bench.tasks.rows import document
from bench.tasks.zeroshot import ZeroShot, templates_for

FORM = "zeroshot:FOLDER"
KNOWN = ("templates", "prompt", "classes", "names", "data")
# Where the paths of a `split_zhou_NAME.json` begin; in the folder itself for StanfordCars.
IMAGES = {
    "Caltech101": "101_ObjectCategories",
    "OxfordPets": "images",
    "StanfordCars": ".",
    "OxfordFlowers": "jpg",
    "Food101": "images",
    "SUN397": "SUN397",
    "DescribableTextures": "images",
    "EuroSAT": "2750",
    "UCF101": "UCF-101-midframes",
}
AIRCRAFT = "images_variant_test.txt"


@dataclass(frozen=True)
class Labelled:
    """Test images with their labels, and the name of each class."""

    paths: Sequence[Path]
    labels: Sequence[int]
    classes: Sequence[str]
    data_set: str = ""

    def half(self, which: str) -> Labelled:
        """Return CoOp's base classes (the first half, rounded up) or its new ones."""
        first = (len(self.classes) + 1) // 2
        kept = range(first) if which == "base" else range(first, len(self.classes))
        rows = [(p, y) for p, y in zip(self.paths, self.labels, strict=True) if y in kept]
        return replace(
            self,
            paths=[path for path, _ in rows],
            labels=[label - kept.start for _, label in rows],
            classes=[self.classes[label] for label in kept],
        )


@task(FORM, "zero-shot classification of CoOp's data sets or of one folder a class")
def folder(rest: str) -> ZeroShot:
    """Return zero-shot classification of the pictures in a folder."""
    (root,), options = files.places(rest, FORM, (1,), KNOWN)
    data = _read(root, options)
    if half := options.get("classes"):
        if half not in ("base", "new"):
            raise BenchError(f"option classes='{shown(half)}' in {FORM} must be base or new")
        data = data.half(half)
        if not data.paths:
            raise BenchError(f"no images are of the classes that classes={half} keeps: {FORM}")
    pictures = files.pictures(data.paths, root, FORM)
    templates = _templates(options, data.data_set)
    rows = [(pictures.name(i), label) for i, label in enumerate(data.labels)]
    version = hash_of(rows, list(data.classes), templates)
    return ZeroShot(f"zeroshot:{rest}", version, pictures, data.labels, data.classes, templates)


def _templates(options: Mapping[str, str], data_set: str) -> tuple[str, ...]:
    prompt, templates = options.get("prompt"), options.get("templates")
    if prompt is not None:
        if "{}" not in prompt:
            raise BenchError(f"option prompt='{shown(prompt)}' in {FORM} lacks {{}} for the name")
        return (prompt,)
    if templates not in (None, "ensemble"):
        raise BenchError(f"option templates='{shown(templates)}' in {FORM} must be ensemble")
    return templates_for(options.get("data", data_set), templates is not None)


def _read(root: Path, options: Mapping[str, str]) -> Labelled:
    splits = sorted(root.glob("split_zhou_*.json"))
    if len(splits) > 1:
        raise BenchError(f"{root} has {len(splits)} files split_zhou_NAME.json: keep one")
    if splits:
        return _coop(splits[0])
    if (root / AIRCRAFT).is_file():
        return _aircraft(root)
    return _folders(root, files.path_of(options["names"], FORM) if "names" in options else None)


def _coop(file: Path) -> Labelled:
    """Read `{"train": [[path, label, name], ...], "val": ..., "test": ...}`."""
    data_set = file.stem.removeprefix("split_zhou_")
    whole = document(read_json(file), file, "split of CoOp's", FORM)
    every = [row for split in ("train", "val", "test") for row in whole.rows(split, [])]
    test = [(row.text(0), row.number(1)) for row in whole.rows("test")]
    names = {row.number(1): row.text(2) for row in every}
    lacking = next((label for label in range(len(names)) if label not in names), None)
    if lacking is not None or not test:
        what = "test images" if lacking is None else f"class {lacking}"
        raise BenchError(f"{shown(file)} is no split of CoOp's: it has no {what}: {FORM}")
    classes = [names[label] for label in range(len(names))]
    inner = IMAGES.get(data_set, "images")
    paths = [file.parent / inner / path for path, _ in test]
    return Labelled(paths, [label for _, label in test], classes, data_set)


def _aircraft(root: Path) -> Labelled:
    """Read FGVC Aircraft's own lists: a variant a line, an image and its variant a line."""
    classes = [line.strip() for line in _lines(root / "variants.txt")]
    rows = [_pair(line, root / AIRCRAFT, "IMAGE VARIANT") for line in _lines(root / AIRCRAFT)]
    numbers = {name: i for i, name in enumerate(classes)}
    for number, name in rows:
        if name not in numbers:
            raise BenchError(
                f"{shown(root / AIRCRAFT)}: image {shown(number)} is of '{shown(name)}', which is "
                f"not in variants.txt: {FORM}"
            )
    labels = [numbers[name] for _, name in rows]
    paths = [root / "images" / f"{number}.jpg" for number, _ in rows]
    return Labelled(paths, labels, classes, "FGVCAircraft")


def _folders(root: Path, names_file: Path | None) -> Labelled:
    """Read one folder a class, in alphabetical order, named like it or as a file says."""
    classes, paths, labels = files.class_folders(root)
    if not paths:
        raise BenchError(
            f"no images under {root}: {FORM} wants split_zhou_NAME.json beside the images, "
            f"or {root}/CLASS/x.png"
        )
    if names_file is not None:
        names = dict(_pair(line, names_file, "FOLDER name") for line in _lines(names_file))
        if unnamed := [name for name in classes if name not in names]:
            raise BenchError(f"{shown(names_file)} names no folder '{shown(unnamed[0])}': {FORM}")
        classes = [names[name] for name in classes]
    elif all(re.fullmatch(r"n\d{8}", name) for name in classes):
        raise BenchError(
            f"the folders of {root} are named by WordNet's numbers: add ?names=classnames.txt, "
            "with a line 'n01440764 tench' each"
        )
    return Labelled(paths, labels, classes)


def _pair(line: str, file: Path, what: str) -> tuple[str, str]:
    first, space, second = line.strip().partition(" ")
    if not space:
        raise BenchError(f"{shown(file)}: a line '{shown(line)}' is not '{what}': {FORM}")
    return first, second


def _lines(file: Path) -> list[str]:
    return [line for line in read_text(file).splitlines() if line.strip()]
