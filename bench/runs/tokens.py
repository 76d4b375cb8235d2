"""Record what recorded cells do with the patches of a few sample images: `run_bench.py tokens`.

Each cell is run again, through the same `reduced()`, on a CPU; nothing is measured.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import tasks
from bench.assets import embedded
from bench.core import registry
from bench.core.errors import BenchError
from bench.engine.families import adapter_for
from bench.engine.tracing import Trace, trace
from bench.models import catalogue
from bench.models.loaded import Classifier, Loaded, TwoTower
from bench.records.fates import FOLDER, Fate, Fates, Sample, pack
from bench.records.files import write_atomic
from bench.records.record import Cell, Record
from bench.records.store import Store, stem
from bench.runs.session import apply
from bench.tasks.base import Feed, subset
from bench.tasks.classification import Classification
from bench.tasks.retrieval import Retrieval, text_features

TOWER = "vision"
BEST = 3  # answers kept
Answers = list[list[tuple[str, float]]]


def main(folders: Sequence[Path], samples: int) -> list[Path]:
    """Write the tokens of all cells whose records lie in some suites' folders.

    Raises:
        BenchError: a folder holds no finished cell, or cannot be written to.
    """
    written = []
    for folder in folders:
        records = [record for record in Store(folder).read_all() if record.status == "ok"]
        if not records:
            raise BenchError(f"no finished cell in {folder}: name a suite's folder in results/")
        for (model, task), group in groupby(sorted(records, key=_place), key=_place):
            fates = record_fates(list(group), samples)
            if fates is not None:
                path = folder / FOLDER / f"{stem(model, task)}.json"
                write_atomic(path, fates.to_json())
                written.append(path)
    return written


def _place(record: Record) -> tuple[str, str]:
    return record.cell.model, record.cell.task


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def record_fates(records: Sequence[Record], samples: int) -> Fates | None:
    """Return what cells of one model and task do with sample images; None where it is not shown."""
    model, task_name = _place(records[0])
    task = tasks.load(task_name) if not records[0].cell.random_weights else None
    if not isinstance(task, Classification | Retrieval):
        _tell(f"{model} on {task_name}: no pictures that a single image tower answers; left out")
        return None
    loaded = catalogue.load(model, device="cpu", dtype="float32")
    index = subset(len(task), samples)
    images = next(task.prepared.batches(loaded, index, samples))[0]
    tower = adapter_for(loaded.model).towers(loaded.model)[TOWER]
    patches = _trace(loaded, images).tokens[TOWER][0][0] - tower.prefix
    grid = tower.grid(patches)
    if grid is None:
        _tell(f"{model} on {task_name}: {patches} patches form no grid; left out")
        return None
    answer, score = _answerer(task, loaded, records[0].cell.limit)
    made = {"task_version": task.version, "weights_sha256": str(catalogue.fingerprint(model))}
    cells = {
        record.cell.label: _fate(record.cell, loaded, images, grid, answer, made)
        for record in records
    }
    shown = [
        Sample(task.prepared.pictures.name(i), _png(image), _truth(task, i))
        for i, image in zip(index, images, strict=True)
    ]
    return Fates(model, task_name, grid, len(tower.blocks), score, shown, [*cells.values()])


def _trace(loaded: Loaded, images: Tensor) -> Trace:
    inputs = loaded.example_inputs(len(images))
    return trace(loaded.model, **{**inputs, loaded.image_argument: images})


def _fate(
    cell: Cell,
    loaded: Loaded,
    images: Tensor,
    grid: tuple[int, int],
    answer: Callable[[Tensor], Answers],
    made: dict[str, str],
) -> Fate:
    """Run one cell on the images."""
    with apply(loaded, cell), torch.inference_mode():
        tracked = _trace(loaded, images)
        answers = answer(images)
        prefix = adapter_for(loaded.model).towers(loaded.model)[TOWER].prefix
    patches = grid[0] * grid[1]
    before = tracked.tokens[TOWER][0][0] - prefix  # appended tokens stand behind the patches
    layers = sorted({layer for layer, _ in tracked.layer_slots[TOWER]})
    if before < patches:  # a smaller image, before there were tokens
        layers, maps = [-1, *layers], _resized(tracked, layers, before, grid, prefix, len(images))
    else:
        at = [tracked.position(TOWER, layer) for layer in layers]
        maps = [slots[:, prefix : prefix + patches] for slots in at if slots is not None]
    stacked = torch.stack(maps, 1) if maps else torch.zeros(len(images), 0, patches)
    texts = [pack(slots.numpy()) for slots in stacked]
    made = {**made, "method_source_sha256": registry.source_hash(cell.method, cell.params)}
    return Fate(cell.method, cell.label, made, layers, texts, answers, tracked.soft[TOWER])


def _resized(
    tracked: Trace, layers: list[int], small: int, grid: tuple[int, int], prefix: int, images: int
) -> list[Tensor]:
    """Maps (B,N) of the full grid, at the input and after each layer, for a smaller image.

    A patch belongs to the patch of the smaller image that covers its middle.
    """
    rows, columns = grid
    height = round((small * rows / columns) ** 0.5)
    width = small // height
    row = ((torch.arange(rows) + 0.5) * height / rows).long()
    column = ((torch.arange(columns) + 0.5) * width / columns).long()
    where = (row[:, None] * width + column).flatten() + prefix
    maps = [where.expand(images, -1)]
    for layer in layers:
        slots = tracked.position(TOWER, layer)
        assert slots is not None
        maps.append(slots[:, where])
    return maps


def _answerer(
    task: Classification | Retrieval, loaded: Loaded, limit: int | None
) -> tuple[Callable[[Tensor], Answers], str]:
    """Return images -> the best answers of the model as it then is, and what their scores are."""
    if isinstance(loaded, Classifier) and isinstance(task, Classification):
        names = _classes(task)
        return lambda images: _best(loaded.logits(images).softmax(-1), names), "probability"
    if not isinstance(loaded, TwoTower) or not isinstance(task, Retrieval):
        raise BenchError(f"{loaded.name} cannot do task '{task.name}'")
    _, texts = task.searched(subset(len(task), limit))

    def retrieve(images: Tensor) -> Answers:
        features = loaded.encode_images(images)
        return _best(features @ text_features(Feed(loaded, (), device="cpu"), texts).T, texts)

    return retrieve, "cosine similarity"


def _best(scores: Tensor, names: Sequence[str]) -> Answers:
    top = scores.topk(min(BEST, scores.shape[1]))
    return [
        [(names[i], round(value, 3)) for value, i in zip(values, places, strict=True)]
        for values, places in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]


def _classes(task: Classification) -> list[str]:
    known = task.name == "fashion-mnist"
    return [embedded.fashion_classes[i] if known else f"class {i}" for i in range(task.classes)]


def _truth(task: Classification | Retrieval, i: int) -> str:
    if isinstance(task, Retrieval):
        return "; ".join(task.texts[i])
    return _classes(task)[task.labels[i]]


def _png(image: Tensor) -> str:
    """Return (C,H,W) as the model gets it, stretched to the range that a picture has."""
    low, high = image.min(), image.max()
    pixels = ((image - low) / (high - low).clamp_min(1e-6) * 255).round().byte().numpy()
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
