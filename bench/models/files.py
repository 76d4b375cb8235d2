"""Weights files on disk: which there are, whether they are whole, their hash."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bench.core.errors import BenchError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def folder_named(name: str) -> Path | None:
    """Return the folder that a model's name means, if any; `hf:` may stand in front."""
    folder = os.path.expanduser(name.removeprefix("hf:"))
    return Path(folder) if os.path.isdir(folder) else None  # Path.is_dir refuses some names


def weight_files(folder: Path) -> list[Path]:
    """Return the configuration and weights files of a `save_pretrained` folder."""
    config = folder / "config.json"
    if not config.is_file():
        raise BenchError(f"{folder} has no config.json: give a folder written by save_pretrained")
    for name in WEIGHT_FILES:
        index = folder / name
        if index.is_file():
            parts = [index]
            if name.endswith(".index.json"):
                shards = set(json.loads(index.read_text())["weight_map"].values())
                parts += [folder / shard for shard in sorted(shards)]
            return [config, *parts]
    raise BenchError(
        f"{folder} has no weights (model.safetensors): copy the file there, "
        "or add --random-weights for the cost columns alone"
    )


def hash_files(files: list[Path]) -> str:
    """Return the sha256 over the files' contents, after a look at each one's completeness."""
    digest = hashlib.sha256()
    for file in files:
        check_file(file)
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def check_file(file: Path) -> None:
    """Raise BenchError when a weights file is missing or is a truncated safetensors file."""
    if not file.is_file():
        raise BenchError(f"weights file {file} is missing: get it again or name another model")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            raise BenchError(
                f"weights file {file} is truncated or no safetensors file ({error}): get it again"
            ) from None


def read_json(file: Path) -> dict[str, Any]:
    """Return the mapping in a model folder's JSON file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(
            f"{file.parent} has no config.json: give a folder written by save_pretrained"
        ) from error
    except ValueError as error:
        raise BenchError(f"{file} is not valid JSON: get it again") from error
    return value if isinstance(value, dict) else {}
