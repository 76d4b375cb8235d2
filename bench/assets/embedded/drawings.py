"""Emoji drawings of seven design houses with captions, the data of `clip-emoji`.

The drawings are ``@iconify-json/*`` on npm, their names and keywords ``emojibase-data``, and
``resvg-py`` renders them.
"""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.assets.embedded.raw import ByteArray, DataError, cache_dir, fetch_npm

TRAIN_HOUSES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione")
VALIDATION_HOUSE = "openmoji"
TEST_HOUSE = "twemoji"
EMOJI_PIXELS = 64


@dataclass(frozen=True)
class Emoji:
    """One named concept: its Unicode id, its label, and the caption used as text."""

    concept: str
    label: str
    text: str


@dataclass(frozen=True)
class Drawings:
    """Images (N,S,S,3) uint8 with the position of each image's concept in `concepts` (N,)."""

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
    concepts: dict[str, Emoji] = {}
    texts: set[str] = set()
    for entry in entries:
        text = caption(entry)
        if "group" in entry and text.lower() not in texts and slug(entry["label"]) not in concepts:
            texts.add(text.lower())
            concepts[slug(entry["label"])] = Emoji(entry["hexcode"], entry["label"], text)
    return concepts


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


def render_house(
    house: str, data_dir: str | Path | None = None, side: int = EMOJI_PIXELS
) -> Iterator[tuple[str, bytes]]:
    """Yield (slug, PNG of `side` pixels on white) for every concept that the design house draws."""
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
            png = svg_to_bytes(svg_string=svg, background="#ffffff", width=side, height=side)
            yield name, bytes(png)


def house_images(
    house: str, data_dir: str | Path | None, side: int = EMOJI_PIXELS
) -> dict[str, ByteArray]:
    """Return {slug: image (side,side,3)} of one house, rendered once and cached as npz."""
    path = cache_dir(data_dir) / f"emoji-{house}-{side}.npz"
    if not path.exists():
        drawn = render_house(house, data_dir, side)
        images = {
            name: np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for name, png in drawn
        }
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(
            partial, names=np.array(list(images)), images=np.stack(list(images.values()))
        )
        partial.replace(path)
    with np.load(path) as saved:
        return dict(zip(saved["names"].tolist(), saved["images"], strict=True))


def emoji(
    split: str,
    data_dir: str | Path | None = None,
    side: int = EMOJI_PIXELS,
    everywhere: bool = False,
) -> Drawings:
    """Return the drawings of a split: 'train' (five houses), 'validation' or 'test' (one each).

    All splits share one list of concepts: those drawn by both held-out houses and by at least two
    training houses, so that every test caption was seen in training and no test drawing was.
    With `everywhere`, those drawn by all houses.
    """
    fewest = len(TRAIN_HOUSES) if everywhere else 2
    groups = {"train": TRAIN_HOUSES, "validation": (VALIDATION_HOUSE,), "test": (TEST_HOUSE,)}
    drawn = {h: house_images(h, data_dir, side) for g in groups.values() for h in g}
    named = emoji_concepts(data_dir)
    shared = [
        name
        for name in named
        if name in drawn[TEST_HOUSE]
        and name in drawn[VALIDATION_HOUSE]
        and sum(name in drawn[house] for house in TRAIN_HOUSES) >= fewest
    ]
    pairs = [
        (position, drawn[house][name])
        for house in groups[split]
        for position, name in enumerate(shared)
        if name in drawn[house]
    ]
    positions = np.array([position for position, _ in pairs], np.int64)
    return Drawings(np.stack([i for _, i in pairs]), positions, [named[n] for n in shared])


def distort(images: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
    """Move, scale, turn and recolour drawings at random, so that none is seen twice the same way.

    Takes images (B,64,64,3) uint8; returns colours (B,3,pixels,pixels) from 0 to 1.
    """
    count = len(images)

    def draw(*size: int) -> Tensor:
        """Return uniform numbers in [-1, 1)."""
        return torch.rand(*size, generator=rng) * 2 - 1

    angle, scale = draw(count) * 0.2, torch.exp(draw(count, 2) * 0.12 + draw(count, 1) * 0.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cos * scale[:, 0], -sin * scale[:, 1]], 1),
        torch.stack([sin * scale[:, 0], cos * scale[:, 1]], 1),
    ]
    matrix = torch.cat([torch.stack(rows, 1), draw(count, 2, 1) * 0.12], 2)
    ink = 1 - images.permute(0, 3, 1, 2).float() / 255  # white paper is zero, as is the padding
    if pixels != images.shape[1]:
        ink = F.interpolate(ink, size=pixels, mode="area")
    grid = F.affine_grid(matrix, [count, 3, pixels, pixels], align_corners=False)
    x = 1 - F.grid_sample(ink, grid, align_corners=False)
    mix = torch.eye(3) + 0.12 * draw(count, 3, 3)
    x = torch.einsum("bij,bjhw->bihw", mix / mix.sum(2, keepdim=True), x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + 0.5 * draw(count, 1, 1, 1))
    x = 1 - (1 - x) * (1 + 0.15 * draw(count, 1, 1, 1))
    return x.clamp(0, 1)


def drop_keywords(text: str, rng: torch.Generator) -> str:
    """Keep the label of "label: a, b, c"; half the time keep and shuffle some keywords only."""
    label, _, tail = text.partition(": ")
    words = tail.split(", ") if tail else []
    if not words or float(torch.rand(1, generator=rng)) < 0.5:
        return text
    count = int(torch.randint(0, len(words) + 1, (1,), generator=rng))
    chosen = torch.randperm(len(words), generator=rng)[:count].tolist()
    return f"{label}: {', '.join(words[i] for i in chosen)}"


def choose_texts(
    concept: Tensor, total: int, extra: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the concepts (U,) to caption: the batch's, each once, and `extra` others at random.

    Also returns the row (B,) of each image's own concept. Captions are cheap beside images, so
    more of them make a small batch a harder task at little cost.
    """
    unique, rows = concept.unique(return_inverse=True)
    free = torch.ones(total, dtype=torch.bool)
    free[unique] = False
    others = torch.nonzero(free).flatten()
    picked = others[torch.randperm(len(others), generator=rng)[:extra]]
    return torch.cat([unique, picked]), rows
