"""Emoji drawings of seven design houses with captions, the data of `clip-emoji`.

The drawings are ``@iconify-json/*`` on npm, their names and keywords ``emojibase-data``, and
``resvg-py`` renders them. ``python -m bench.training.drawings bench/assets/embedded`` writes the
two committed test sets again.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.training.data import ByteArray, DataError, cache_dir, fashion, fetch_npm

TRAIN_HOUSES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione")
VALIDATION_HOUSE = "openmoji"
TEST_HOUSE = "twemoji"
EMOJI_PIXELS = 64
FASHION_TEST_PER_CLASS = 200


@dataclass(frozen=True)
class Emoji:
    """One named concept: its Unicode id, its label, and the caption used as text."""

    concept: str
    label: str
    text: str


@dataclass(frozen=True)
class Drawings:
    """Images (N,64,64,3) uint8 with the position of each image's concept in `concepts` (N,)."""

    images: ByteArray
    concept: NDArray[np.int64]
    concepts: list[Emoji]


def slug(label: str) -> str:
    """Return an emoji label in the spelling of the icon sets ("Côte d'Ivoire" → cote-divoire)."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def caption(entry: dict[str, Any]) -> str:
    """Return "label: keyword, keyword", leaving out keywords that the label already says."""
    label = str(entry["label"])
    tags = [str(tag) for tag in entry.get("tags", []) if str(tag) not in label.lower().split()]
    return f"{label}: {', '.join(tags)}" if tags else label


def emoji_concepts(data_dir: str | Path | None = None) -> dict[str, Emoji]:
    """Return the named emoji by slug: no skin tones, no bare flag letters, each caption once."""
    folder = fetch_npm("emojibase-data", cache_dir(data_dir))
    entries = json.loads((folder / "en" / "data.json").read_text("utf-8"))
    found: dict[str, Emoji] = {}
    texts: set[str] = set()
    for entry in entries:
        text = caption(entry)
        if "group" in entry and text.lower() not in texts and slug(entry["label"]) not in found:
            texts.add(text.lower())
            found[slug(entry["label"])] = Emoji(entry["hexcode"], entry["label"], text)
    return found


def _svg(icons: dict[str, Any], name: str) -> str | None:
    """Return the SVG of an icon (or of the icon it is an alias of), None where it is missing."""
    alias = icons.get("aliases", {}).get(name)
    if alias is not None:
        return None if set(alias) - {"parent", "hidden"} else _svg(icons, alias["parent"])
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} viewBox="{box}" width="64" height="64">{icon["body"]}</svg>'


def render_house(house: str, data_dir: str | Path | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield (slug, 64-pixel PNG on white) for every concept that the design house draws."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise DataError("rendering emoji needs resvg-py: pip install resvg-py") from error
    folder = fetch_npm(f"@iconify-json/{house}", cache_dir(data_dir))
    icons = json.loads((folder / "icons.json").read_text("utf-8"))
    # Some sets name an icon differently; where they carry a code-point table, that finds it.
    table = json.loads((folder / "chars.json").read_text("utf-8")) or {}
    by_code = {code.replace("-fe0f", ""): name for code, name in table.items()}
    for name, emoji in emoji_concepts(data_dir).items():
        code = emoji.concept.lower().replace("-fe0f", "")
        svg = _svg(icons, name) or _svg(icons, by_code.get(code, ""))
        if svg is not None:
            yield (
                name,
                bytes(
                    svg_to_bytes(
                        svg_string=svg,
                        background="#ffffff",
                        width=EMOJI_PIXELS,
                        height=EMOJI_PIXELS,
                    )
                ),
            )


def _pixels(png: bytes) -> ByteArray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _webp(pixels: ByteArray) -> bytes:
    """Encode an image without loss, in half the bytes of a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True, quality=100, method=6)
    return out.getvalue()


def _house_arrays(house: str, data_dir: str | Path | None) -> dict[str, ByteArray]:
    """Return {slug: image} of one house, rendered once and cached as npz."""
    path = cache_dir(data_dir) / f"emoji-{house}-{EMOJI_PIXELS}.npz"
    if not path.exists():
        images = {name: _pixels(png) for name, png in render_house(house, data_dir)}
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(
            partial, names=np.array(list(images)), images=np.stack(list(images.values()))
        )
        partial.replace(path)
    with np.load(path) as saved:
        return dict(zip(saved["names"].tolist(), saved["images"], strict=True))


def emoji(split: str, data_dir: str | Path | None = None) -> Drawings:
    """Return the drawings of a split: 'train' (five houses), 'validation' or 'test' (one each).

    All splits share one list of concepts: those drawn by both held-out houses and by at least two
    training houses, so that every test caption was seen in training and no test drawing was.
    """
    groups = {"train": TRAIN_HOUSES, "validation": (VALIDATION_HOUSE,), "test": (TEST_HOUSE,)}
    drawn = {h: _house_arrays(h, data_dir) for g in groups.values() for h in g}
    named = emoji_concepts(data_dir)
    shared = [
        name
        for name in named
        if name in drawn[TEST_HOUSE]
        and name in drawn[VALIDATION_HOUSE]
        and sum(name in drawn[house] for house in TRAIN_HOUSES) >= 2
    ]
    pairs = [
        (position, drawn[house][name])
        for house in groups[split]
        for position, name in enumerate(shared)
        if name in drawn[house]
    ]
    positions = np.array([position for position, _ in pairs], np.int64)
    return Drawings(np.stack([i for _, i in pairs]), positions, [named[n] for n in shared])


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
    drawn = _house_arrays(TEST_HOUSE, data_dir)
    table = {
        "concept": [c.concept for c in concepts],
        "label": [c.label for c in concepts],
        "text": [c.text for c in concepts],
        "image": [_webp(drawn[slug(c.label)]) for c in concepts],
    }
    pq.write_table(pa.table(table), out / "emoji_test.parquet", compression="zstd")


if __name__ == "__main__":
    write_test_sets(Path(sys.argv[1]))
