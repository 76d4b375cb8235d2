"""Tasks from a `datasets` data set: a hub id, or a local folder or file that `datasets` reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.tasks.base import Task, hash_of
from bench.tasks.classification import Classification
from bench.tasks.registry import task
from bench.tasks.retrieval import Retrieval

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = ("image", "img", "jpg", "png")
LABELS = ("label", "labels", "fine_label", "cls")
CAPTIONS = ("caption", "captions", "text", "texts", "sentences")
SPLITS = ("test", "validation", "val", "train")


@dataclass(frozen=True)
class Rows:
    """The images of a data set, decoded when asked for."""

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
        image: Image = self.data[index][self.column]
        return image


@task(
    "hf-dataset:ID[@SPLIT]",
    "classification (image, label) or retrieval (image, caption)",
)
def load(name: str) -> Task:
    """Return the task that the columns of `ID[@SPLIT]` allow."""
    source, _, split = name.partition("@")
    data = _read(source, split)
    columns = list(data.column_names)
    image = _first(columns, IMAGES)
    label, caption = _first(columns, LABELS), _first(columns, CAPTIONS)
    if image is None or (label is None and caption is None):
        raise BenchError(
            f"data set {source} has columns {columns}: one of {IMAGES} and one of {LABELS} "
            f"(classification) or {CAPTIONS} (retrieval) are needed"
        )
    version = hash_of(source, split, data._fingerprint, len(data))
    pictures = Rows(data, image)
    full = f"hf-dataset:{name}"
    if caption is not None and label is None:
        texts = [[row] if isinstance(row, str) else [str(t) for t in row] for row in data[caption]]
        return Retrieval(full, version, pictures, texts)
    labels = [int(row) for row in data[label]]
    names = getattr(data.features[label], "names", None)
    return Classification(full, version, pictures, labels, len(names or set(labels)))


def _read(source: str, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        if Path(source).is_dir() and (Path(source) / "dataset_info.json").is_file():
            return datasets.load_from_disk(source)
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
