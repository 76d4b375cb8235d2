"""What became of the patches of sample images: data beside the records, read without torch.

`results/MACHINE/SUITE/tokens/MODEL--TASK.json` holds a few images once, and for each recorded cell
where each patch was after each layer that removed tokens. `run_bench.py tokens` writes it; a report
shows the cells that it has records of, and says where these were made by other code or weights.
"""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from bench.core.documents import read_json
from bench.core.errors import BenchError
from bench.records.record import dump

FOLDER = "tokens"  # below a suite's records, which lie in its folder themselves
DROPPED = -1


@dataclass(frozen=True)
class Sample:
    """An image as the model gets it, in base64 PNG, and what it shows."""

    name: str
    png: str
    truth: str


@dataclass(frozen=True)
class Fate:
    """What a cell did with the samples.

    Attributes:
        method, label: the cell's; `made` is what it depends on, as in a record's provenance.
        layers: blocks that changed something, -1 for the input itself.
        maps: for each sample: int16 (layers, patches), deflated, in base64: the token that stands
            for a patch after that block, -1 where none does.
        answers: for each sample: the model's best answers and their scores, best first.
        soft: a patch is part of several tokens; the maps have the one that it weighs most in.
    """

    method: str
    label: str
    made: dict[str, str]
    layers: list[int]
    maps: list[str]
    answers: list[list[tuple[str, float]]]
    soft: bool = False


@dataclass(frozen=True)
class Fates:
    """All cells of one model and task, on the same samples.

    Attributes:
        grid: rows and columns of patches; `depth` the number of blocks.
        score: what an answer's number is ("probability", "cosine similarity").
    """

    model: str
    task: str
    grid: tuple[int, int]
    depth: int
    score: str
    samples: list[Sample]
    cells: list[Fate]

    def to_json(self) -> str:
        """Return it as indented JSON."""
        return dump(_plain(asdict(self))) + "\n"


def _plain(value: Any) -> Any:
    """Return nested dicts and lists without tuples, as JSON will have them."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def pack(slots: NDArray[Any]) -> str:
    """Return a map (layers, patches) as text."""
    return base64.b64encode(zlib.compress(slots.astype("<i2").tobytes(), 9)).decode()


def unpack(text: str, patches: int) -> NDArray[Any]:
    """Return the map (layers, patches) that `pack` made a text of."""
    flat = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i2")
    return flat.astype(int).reshape(-1, patches)


def read(results: Sequence[Path]) -> list[Fates]:
    """Return what lies under some results folders, by path.

    Raises:
        BenchError: a file is not what it should be.
    """
    fates = []
    for root in results:
        for path in sorted(Path(root).rglob(f"{FOLDER}/*.json")):
            try:
                fates.append(_adapter().validate_python(read_json(path)))
            except (BenchError, ValidationError) as error:
                raise BenchError(
                    f"{path} is not readable: delete it and make it anew with run_bench.py tokens"
                ) from error
    return fates


@functools.cache
def _adapter() -> Any:
    return TypeAdapter(Fates)
