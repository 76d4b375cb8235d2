"""Write the committed test sets again: python -m recipes.test_sets bench/assets/embedded."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

from bench.assets.embedded.drawings import EMOJI_PIXELS, TEST_HOUSE, emoji, house_images, slug
from bench.assets.embedded.raw import ByteArray, fashion

FASHION_TEST_PER_CLASS = 200


def _webp(pixels: ByteArray) -> bytes:
    """Encode an image without loss, in half the bytes of a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, quality=100, method=4)
    return out.getvalue()


def write_test_sets(out: Path, data_dir: str | Path | None = None) -> None:
    """Write `fashion_test.npz` and two `emoji_test*.parquet`, the committed held-out sets."""
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
    _write_emoji(out / "emoji_test.parquet", EMOJI_PIXELS, data_dir)
    _write_emoji(out / "emoji_test_224.parquet", 224, data_dir, everywhere=True)


def _write_emoji(
    path: Path, side: int, data_dir: str | Path | None, everywhere: bool = False
) -> None:
    """Write the test house's drawings; `everywhere`: of what every house draws alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    concepts = emoji("test", data_dir, everywhere=everywhere).concepts
    drawn = house_images(TEST_HOUSE, data_dir, side)
    table = {
        "concept": [c.concept for c in concepts],
        "label": [c.label for c in concepts],
        "text": [c.text for c in concepts],
        "image": [_webp(drawn[slug(c.label)]) for c in concepts],
    }
    pq.write_table(pa.table(table), path, compression="zstd")


if __name__ == "__main__":
    write_test_sets(Path(sys.argv[1]))
