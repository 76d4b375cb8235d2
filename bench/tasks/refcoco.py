"""RefCOCO, RefCOCO+ and RefCOCOg as their files come: JSON lines, JSON, parquet, or from the hub.

    refcoco:refcoco_val.jsonl:IMAGES          Qwen-VL's evaluation
    refcoco:REC_refcoco_unc_val.jsonl:IMAGES  Shikra's
    refcoco:lmms-lab/RefCOCO@testA            with the images inside
    refcoco:jxu124/refcoco@validation:IMAGES

Options: `boxes=pixels`, `thousand`, `share` or `loc`, where a model's family does not say it, and
`prompt=Where is {}?`. The images are those of COCO's train2014. The pickles of REFER are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.documents import parse_json, parse_json_lines, read_text
from bench.core.errors import BenchError, shown
from bench.tasks import boxes, files, hub
from bench.tasks.base import hash_of
from bench.tasks.boxes import Box
from bench.tasks.localisation import Expression, Localisation
from bench.tasks.pictures import Pictures
from bench.tasks.registry import task
from bench.tasks.rows import Row, listed

FORM = "refcoco:DATA[@SPLIT][:IMAGES]"
PICKLES = (".p", ".pkl", ".pickle")
COCO = "train2014"


@dataclass(frozen=True)
class Format:
    """How somebody writes the expressions of a picture.

    Attributes:
        texts: the field with one expression or several, which tells the format.
        image: the field with the image's path; empty: the images are inside.
        corners: whether a box is left, top, right, bottom; else left, top, width, height.
    """

    texts: str
    image: str
    corners: bool = True


FORMATS = (
    Format("sent", "image"),  # Qwen-VL
    Format("expression", "img_path"),  # Shikra
    Format("sentences", "image_path"),  # jxu124/refcoco
    Format("answer", "", corners=False),  # lmms-lab/RefCOCO
)


@task(FORM, "RefCOCO, RefCOCO+, RefCOCOg: where is it; accuracy at IoU 0.5")
def refcoco(rest: str) -> Localisation:
    """Return the referring expressions of a file or of a data set of the hub."""
    where, options = files.options(rest, FORM, ("boxes", "prompt"))
    unit, prompt = options.get("boxes"), options.get("prompt")
    boxes.chosen(unit, prompt, FORM)
    source, colon, images = where.partition(":")
    root = files.path_of(images, FORM) if colon else None
    _refuse_pickles(Path(source))
    read = _from_json if source.endswith((".json", ".jsonl")) else _from_hub
    pictures, expressions, version = read(source, root)
    version = hash_of(version, unit, prompt)
    return Localisation(f"refcoco:{rest}", version, pictures, expressions, unit, prompt)


Data = tuple[Pictures, list[Expression], str]  # with what their version is made of


def _from_json(source: str, root: Path | None) -> Data:
    """Read a list, or a value a line; images lie beside the file where nobody says where."""
    file = files.path_of(source, FORM)
    text = read_text(file)
    is_list = text.lstrip().startswith("[")
    values = parse_json(text, str(file)) if is_list else parse_json_lines(text, str(file))
    rows = listed(values, file, "RefCOCO file", FORM)
    form = _format(rows[0])
    return _on_disk(rows, form, root or file.parent, text)


def _from_hub(source: str, root: Path | None) -> Data:
    """Read a data set of the hub, or a folder or parquet file that `datasets` reads."""
    name, _, split = source.partition("@")
    if not split and not name.endswith(".parquet"):
        raise BenchError(f"data set {shown(name)} has several splits: write {shown(name)}@testA")
    data = hub.read(name, split)
    version = hash_of(source, data._fingerprint, len(data))
    form = _format(_rows(data.select(range(min(1, len(data)))), name, data.column_names)[0])
    fields = [form.texts, "bbox", *filter(None, [form.image])]
    rows = _rows(data, name, [field for field in fields if field in data.column_names])
    if form.image:
        if root is None:
            raise BenchError(f"data set {shown(name)} names its images: add :IMAGES for {FORM}")
        return _on_disk(rows, form, root, version)
    pictures = hub.pictures(data, "image", name, FORM)
    expressions = [one for i, row in enumerate(rows) for one in _expressions(row, form, i)]
    return pictures, expressions, version


def _rows(data: Any, name: str, fields: Sequence[str]) -> list[Row]:
    plain = [f for f in fields if getattr(data.features[f], "_type", "") != "Image"]
    values = data.select_columns(plain).to_list()
    return listed(values, Path(name), "RefCOCO data set", FORM)


def _on_disk(rows: Sequence[Row], form: Format, root: Path, version: str) -> Data:
    named = [row.text(form.image) for row in rows]
    at = files.numbered(named)
    paths = [
        files.first_there([root / name, root / Path(name).name, root / COCO / Path(name).name])
        for name in at
    ]
    expressions = [
        one
        for row, name in zip(rows, named, strict=True)
        for one in _expressions(row, form, at[name])
    ]
    return files.pictures(paths, root, FORM), expressions, version


def _format(first: Row) -> Format:
    """Tell a format by a field that it alone has."""
    fields = first.values if isinstance(first.values, dict) else {}
    for form in FORMATS:
        if form.texts in fields:
            return form
    known = ", ".join(repr(form.texts) for form in FORMATS)
    raise BenchError(f"{first.above} row 1: it has none of {known}: mend it for {FORM}")


def _expressions(row: Row, form: Format, picture: int) -> list[Expression]:
    if form.texts == "sentences":
        texts = [one.text("sent") for one in row.rows("sentences", least=1)]
    else:
        texts = row.texts(form.texts)
    box, size = _box(row, form), None
    if form.image and row.value("width", None) is not None:
        size = row.number("width"), row.number("height")
        for name, side in zip(("width", "height"), size, strict=True):
            if side < 1:
                raise row.fault(name, "a number of pixels")
    return [Expression(picture, text, box, size) for text in texts]


def _box(row: Row, form: Format) -> Box:
    left, top, right, bottom = row.numbers("bbox", 4)
    if not form.corners:
        right, bottom = left + right, top + bottom
    if right <= left or bottom <= top:
        raise row.fault("bbox", "a box with an inside")
    return left, top, right, bottom


def _refuse_pickles(path: Path) -> None:
    """Raise BenchError where REFER's own files are named: to unpickle is to run what they say."""
    inside = sorted(path.glob("refs(*).p")) if path.is_dir() else []
    if path.suffix in PICKLES or inside:
        raise BenchError(
            f"{shown((inside or [path])[0])} is a pickle, which may run anything when read: take "
            "the split as JSON lines (Qwen-VL's refcoco_val.jsonl) or lmms-lab/RefCOCO@val"
        )
