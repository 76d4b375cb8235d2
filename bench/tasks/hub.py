"""Tasks from a `datasets` data set: a hub id, or a local folder or file that `datasets` reads."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.tasks import files
from bench.tasks.base import Task, hash_of
from bench.tasks.classification import Classification
from bench.tasks.pictures import check_some, decoded
from bench.tasks.registry import task
from bench.tasks.retrieval import Retrieval
from bench.tasks.rows import Row

if TYPE_CHECKING:
    from PIL.Image import Image

FORM = "hf-dataset:ID[@SPLIT]"
IMAGES = ("image", "img", "jpg", "png")
LABELS = ("label", "labels", "fine_label", "cls")
CAPTIONS = ("caption", "captions", "text", "texts", "sentences")
SPLITS = ("test", "validation", "val", "train")


@dataclass(frozen=True)
class Rows:
    """The images of a data set, decoded when asked for.

    `data` has the column alone, of mappings: `bytes` of a file, or else the `path` of one.
    """

    data: Any
    column: str

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.data)

    def name(self, index: int) -> str:
        """Return the row's number."""
        return f"row {index}"

    def open(self, index: int) -> Image:
        """Return one image."""
        stored = self.data[index][self.column] or {}
        if stored.get("bytes") is not None:
            return decoded(io.BytesIO(stored["bytes"]))
        return decoded(Path(stored.get("path") or ""))


@task(
    FORM,
    "classification (image, label) or retrieval (image, caption)",
)
def load(name: str) -> Task:
    """Return the task that the columns of `ID[@SPLIT]` allow."""
    where, _ = files.options(name, FORM)
    source, _, split = where.partition("@")
    data = read(source, split)
    columns = list(data.column_names)
    image = _first(columns, IMAGES)
    caption = _first(columns, CAPTIONS)
    of = _first(columns, LABELS) or caption
    if image is None or of is None:
        raise BenchError(
            f"data set {source} has columns {columns}: one of {IMAGES} and one of {LABELS} "
            f"(classification) or {CAPTIONS} (retrieval) are needed"
        )
    version = hash_of(source, split, data._fingerprint, len(data))
    images = pictures(data, image, source, FORM)
    full = f"hf-dataset:{name}"
    rows = [Row({of: one}, f"data set {source}:", FORM, i) for i, one in enumerate(data[of])]
    if of == caption:
        return Retrieval(full, version, images, [row.texts(of) for row in rows])
    labels = [row.number(of) for row in rows]
    classes = len(getattr(data.features[of], "names", None) or set(labels))
    for row, value in zip(rows, labels, strict=True):
        if not 0 <= value < classes:
            raise row.fault(of, f"a label from 0 to {classes - 1}, which accuracy needs")
    return Classification(full, version, images, labels, classes)


def pictures(data: Any, column: str, source: str, form: str) -> Rows:
    """Return the images in a column of a data set.

    Raises:
        BenchError: it has no images, or none of them can be opened; `form` is of the task's names.
    """
    kind = data.features.get(column)
    if getattr(kind, "_type", "") != "Image":
        raise BenchError(f"column '{column}' of data set {source} has no images: cast it to Image")
    stored = data.select_columns(column).cast_column(column, replace(kind, decode=False))
    images = Rows(stored, column)
    check_some(images, form)
    return images


def read(source: str, split: str) -> Any:
    """Return a split of a data set, by default the test split.

    Args:
        source: an id of the hub, or a folder or parquet file that is here.
        split: its name, or "".

    Raises:
        BenchError: there is no such data set or split.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        if Path(source).is_dir() and (Path(source) / "dataset_info.json").is_file():
            return datasets.load_from_disk(source)
        if source.endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files=source, split=split or "train")
        data = datasets.load_dataset(source, split=split or None)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise BenchError(
            f"cannot load data set '{source}' ({reason}): give a local folder, "
            "or fill the cache on a machine with network"
        ) from error
    if isinstance(data, dict):
        chosen = _first(list(data), SPLITS)
        if chosen is None:
            raise BenchError(f"data set {source} has splits {list(data)}: add @SPLIT")
        return data[chosen]
    return data


def _first(have: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in have), None)
