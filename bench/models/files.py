"""Weights files on disk: which there are, whether they are whole, their hash."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bench.core.documents import read_json
from bench.core.errors import BenchError

DOCUMENTS = frozenset({".jinja", ".json"})  # of a model's folder; all else is weights
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Python programs that build objects: weights are never read from them.
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
SETTINGS_BYTES = 1 << 26  # of a JSON file in a model's folder
# The largest that one can wait for; a model of a million layers is made for hours.
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1000),
    **dict.fromkeys(("hidden_size", "intermediate_size", "image_size", "patch_size"), 1 << 20),
}
# What transformers reads in a model's folder beside its weights.
SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
)


def folder_named(name: str) -> Path | None:
    """Return the folder that a model's name means, if any; `hf:` may stand in front."""
    folder = os.path.expanduser(name.removeprefix("hf:"))
    return Path(folder) if os.path.isdir(folder) else None  # Path.is_dir refuses some names


def weight_files(folder: Path) -> list[Path]:
    """Return the configuration and weights files of a `save_pretrained` folder."""
    config, weights, index = (folder / name for name in ("config.json", WEIGHTS, INDEX))
    if not config.is_file():
        raise BenchError(f"{folder} has no config.json: give a folder written by save_pretrained")
    if weights.is_file():
        return [config, weights]
    if index.exists():
        return [config, index, *_shards(index)]
    pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise BenchError(_no_pickle(pickles[0]))
    raise BenchError(
        f"{folder} has no weights ({WEIGHTS}): copy the file there, "
        "or add --random-weights for the cost columns alone"
    )


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names, which lie beside it."""
    names = read_mapping(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BenchError(f"{index} has no 'weight_map' with its tensors' files: get it again")
    shards = set()
    for name in names.values():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise BenchError(f"{index} names {str(name)[:40]!r}, no file beside it: get it again")
        shards.add(index.with_name(name))
    return sorted(shards)


def _no_pickle(file: Path) -> str:
    """Return why a pickle is refused, with the command that makes safetensors of it."""
    config = file.with_name(SETTINGS[0])
    about = read_mapping(config) if config.is_file() else {}
    if "model_type" in about:
        named = about.get("architectures")
        kind = str(named[0]) if isinstance(named, list) and named else ""
        kind = kind if kind.isidentifier() else "AutoModel"
        folder = json.dumps(str(file.parent))
        code = f"import transformers as t; t.{kind}.from_pretrained(f := {folder})"
        code += ".save_pretrained(f)"
    else:
        target = file.with_name(WEIGHTS) if about else file.with_suffix(".safetensors")
        pickle, safe = json.dumps(str(file)), json.dumps(str(target))
        code = (
            f"import torch, safetensors.torch as s; w = torch.load({pickle}, weights_only=True); "
        )
        code += 'w = w.get("model", w.get("state_dict", w)); '
        code += f"s.save_file({{k: v.clone() for k, v in w.items()}}, {safe})"
    return f"pickles are never loaded: convert it: python -c {shlex.quote(code)}"


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
    if file.suffix in PICKLES:
        raise BenchError(_no_pickle(file))
    if file.suffix not in (*DOCUMENTS, ".onnx"):  # what is in an ONNX is checked as it is read
        try:
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            raise BenchError(
                f"weights file {file} is truncated or no safetensors file ({error}): get it again"
            ) from None


def check_settings(folder: Path) -> None:
    """Raise BenchError when a JSON file that a model's folder must or may have is broken."""
    for name in SETTINGS:
        if name == SETTINGS[0] or (folder / name).exists():
            _check_sizes(read_mapping(folder / name), folder / name)


def _check_sizes(settings: Mapping[str, Any], file: Path) -> None:
    """Raise BenchError where a size is none that a model can have; `null` leaves it open."""
    for key, value in settings.items():
        if isinstance(value, dict):
            _check_sizes(value, file)
        elif key in SIZES and isinstance(value, int) and not 1 <= value <= SIZES[key]:
            raise BenchError(f"{file}: '{key}' is {value}, not from 1 to {SIZES[key]:,}: mend it")


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the mapping in a model folder's JSON file.

    Raises:
        BenchError: no such file, no valid JSON, or another value.
    """
    if not file.exists():
        raise BenchError(
            f"{file.parent} has no {file.name}: give a folder written by save_pretrained"
        )
    value = read_json(file, SETTINGS_BYTES)
    if not isinstance(value, dict):
        raise BenchError(f"{file}:1: holds no mapping: get it again")
    return value
