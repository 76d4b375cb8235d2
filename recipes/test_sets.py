"""Write the two committed test sets again: python -m recipes.test_sets bench/assets/embedded."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

from bench.assets.embedded.drawings import TEST_HOUSE, emoji, house_images, slug
from bench.assets.embedded.raw import ByteArray, fashion

FASHION_TEST_PER_CLASS = 200


def _webp(pixels: ByteArray) -> bytes:
    """Encode an image without loss, in half the bytes of a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, quality=100, method=6)
    return out.getvalue()


def write_test_sets(out: Path, data_dir: str | Path | None = None) -> None:
    """Write `fashion_test.npz` and `emoji_test.parquet`, the committed held-out sets."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = fashion("t10k", data_dir)
    chosen = np.sort(
        np.concatenate([np.flatnonzero(labels == c)[:FASHION_TEST_PER_CLASS] for c in range(10)])
    )
    np.savez_compressed(
        out / "fashion_test.npz",
        images=images[chosen],
        labels=labels[chosen].astype(np.uint8),
        index=chosen.astype(np.int32),
    )
    concepts = emoji("test", data_dir).concepts
    drawn = house_images(TEST_HOUSE, data_dir)
    table = {
        "concept": [c.concept for c in concepts],
        "label": [c.label for c in concepts],
        "text": [c.text for c in concepts],
        "image": [_webp(drawn[slug(c.label)]) for c in concepts],
    }
    pq.write_table(pa.table(table), out / "emoji_test.parquet", compression="zstd")


if __name__ == "__main__":
    write_test_sets(Path(sys.argv[1]))
