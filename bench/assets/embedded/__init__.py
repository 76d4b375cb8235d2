"""Tiny real models and real held-out data inside the package, so that a clone runs on its own.

Everything heavy is imported inside the functions; the cards beside the weights say what each
model is, how it was trained and what it scores.
"""

from __future__ import annotations

import io
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FASHION_MEAN, FASHION_STD = 0.286, 0.353
EMOJI_MEAN, EMOJI_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TEXT_TOKENS = 24
fashion_classes = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
VIT_FASHION: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 64,
    "depth": 12,
    "num_heads": 2,
    "mlp_ratio": 4.0,
}


def path(name: str) -> Path:
    """Return the path of a file or folder of this package, for example 'clip_emoji'."""
    with as_file(files(__name__) / name) as found:
        return Path(found)


def fashion_test() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return 2,000 Fashion-MNIST test images (N,28,28) and their labels (N,)."""
    with np.load(path("fashion_test.npz")) as saved:
        return saved["images"], saved["labels"].astype(np.int64)


def emoji_table(*columns: str) -> Any:
    """Return columns of the held-out emoji's table, a `pyarrow.Table`."""
    import pyarrow.parquet as pq

    return pq.read_table(path("emoji_test.parquet"), columns=list(columns))


def emoji_test() -> tuple[NDArray[np.uint8], list[str]]:
    """Return the held-out emoji drawings (N,64,64,3) and one distinct caption each."""
    table = emoji_table("image", "text")
    images = [
        np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"))
        for webp in table.column("image").to_pylist()
    ]
    return np.stack(images), table.column("text").to_pylist()


def emoji_test_224() -> tuple[list[bytes], list[str]]:
    """Return the held-out emoji drawings as WebP of 224 x 224 pixels, and one caption each."""
    import pyarrow.parquet as pq

    table = pq.read_table(path("emoji_test_224.parquet"), columns=["image", "text"])
    return table.column("image").to_pylist(), table.column("text").to_pylist()
