"""Every name of timm that means a plain vision transformer: is it reduced, and if not, why not?

Run as a script (`make docs`), this renews the tables of docs/timm.md.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import bench
from bench.core.errors import Unsupported

PAGE = Path(__file__).parents[1] / "docs" / "timm.md"
TABLE = re.compile(r"(<!-- names:begin[^>]*-->\n).*?(<!-- names:end -->)", re.DOTALL)
PREFIXES = ("vit", "deit", "eva", "beit")
READ = {"token": "the class token", "avg": "the mean", "map": "attention pooling"}
SHARE = 0.95  # of the names must work
Kind = tuple[str, str, str, str]  # columns of the table


def names() -> list[str]:
    return [name for prefix in PREFIXES for name in timm.list_models(f"{prefix}*")]


def built(name: str) -> Any:
    """A model by its name, two blocks deep where its blocks are alike; without values."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return timm.create_model(name, depth=2).eval()
        except AssertionError:  # Sapiens2 says of each block how many heads its keys have
            return timm.create_model(name).eval()


def kind(model: Any) -> Kind:
    """What the tables say of a model: its class, blocks, how it knows places, what is read."""
    blocks, stem = type(model.blocks[0]).__name__, type(model.patch_embed).__name__
    attention = type(getattr(model.blocks[0], "attn", None)).__name__
    blocks += "" if attention in ("NoneType", "Attention") else f", {attention}"
    rope = getattr(model, "rope", None)
    knows = {
        "a table": getattr(model, "pos_embed", None) is not None,
        type(rope).__name__: rope is not None,
        "relative biases": type(model).__name__ in ("Beit", "VisionTransformerRelPos"),
    }
    places = " and ".join(name for name, there in knows.items() if there) or "the stem's alone"
    cls = type(model).__name__ + ("" if stem == "PatchEmbed" else f" behind {stem}")
    return cls, blocks, places, READ[model.global_pool]


def layout(model: nn.Module) -> tuple[Any, ...]:
    """All modules by name and class, and what no module shows: equal layouts run the same code."""
    plain = ("dynamic_img_size", "no_embed_class", "num_prefix_tokens", "global_pool")
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    flags = tuple(getattr(model, name, None) for name in plain)
    return (type(model), modules, flags, tuple(name for name, _ in model.named_parameters()))


def outcome(model: Any) -> str:
    """ "yes" if a method that merges tokens runs and leaves fewer, else why it is refused."""
    pixels = torch.empty(1, 3, *model.patch_embed.img_size, device="meta")
    try:
        with torch.inference_mode(), bench.reduced(model, "tome", r=2):
            tokens = bench.trace(model, pixels).tokens["vision"]
    except Unsupported as refusal:
        return str(refusal)
    assert tokens[0][0] - tokens[-1][1] == 2 * len(model.blocks)
    return "yes"


@cache
def tried() -> dict[Kind, dict[str, list[str]]]:
    """Names by kind and outcome; of models that are laid out alike one is run."""
    outcomes: dict[tuple[Any, ...], str] = {}
    kinds: dict[Kind, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names():
        model = built(name)
        key = layout(model)
        if key not in outcomes:
            outcomes[key] = outcome(model)
        kinds[kind(model)][outcomes[key]].append(name)
    return kinds


def lines() -> Iterator[str]:
    """The tables, in Markdown."""
    rows = [(k, said, some) for k, by in sorted(tried().items()) for said, some in by.items()]
    works = sum(len(some) for _, said, some in rows if said == "yes")
    total = sum(len(some) for _, _, some in rows)
    yield f"timm {timm.__version__}: {works} of {total} names are reduced.\n"
    yield "| model | blocks | places | read at the end | names | reduced |"
    yield "|---|---|---|---|---|---|"
    for columns, said, some in rows:
        yield f"| {' | '.join(columns)} | {len(some)} | {said} |"
    for columns, said, some in rows:
        refused = "" if said == "yes" else f" (refused: {said})"
        yield f"\n**{', '.join(columns)}**{refused}: {', '.join(f'`{name}`' for name in some)}"


def with_current_tables(text: str) -> str:
    assert TABLE.search(text), "docs/timm.md has lost the markers of its tables"
    return TABLE.sub(lambda m: m[1] + "\n".join(lines()) + "\n" + m[2], text)


def test_nearly_all_names_are_reduced() -> None:
    by_outcome: dict[str, list[str]] = defaultdict(list)
    for by in tried().values():
        for said, some in by.items():
            by_outcome[said] += some
    assert len(by_outcome["yes"]) >= SHARE * len(names()), dict(by_outcome)


def test_tables_are_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if f"timm {timm.__version__}:" not in text:
        pytest.skip(f"the tables are of another version than timm {timm.__version__}")
    assert with_current_tables(text) == text, "run `make docs`"


if __name__ == "__main__":
    PAGE.write_text(with_current_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
