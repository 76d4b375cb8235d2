"""Models by name: what to type, how it is loaded, and where its weights come from.

Names: `embedded:vit-fashion` (trained here, in the repository), `timm:deit_small_patch16_224`,
`timm:NAME@FILE` (weights from a file), a Hugging Face id such as `openai/clip-vit-base-patch16`
(`hf:` in front is optional), or a folder written by `save_pretrained`. With random weights nothing
is downloaded: cost columns need shapes only.

    bench.models.load("timm:vit_tiny_patch16_224", random_weights=True).model
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench.models.files import hash_files, weight_files
from bench.models.loaded import Loaded
from bench.models.names import EMBEDDED, FORMS, parse
from bench.models.names import check_name as check_name
from bench.models.shapes import SHAPES, shape

if TYPE_CHECKING:
    import torch


def names() -> list[str]:
    """Return the names that need nothing but this project (and, where said, an optional extra)."""
    return list(EMBEDDED)


def catalogue() -> dict[str, str]:
    """Return every kind of name that `load` takes, with a line about each."""
    known = {name: "by its shape, with --random-weights and without a hub" for name in SHAPES}
    return {**EMBEDDED, **_fine_tuned(), **FORMS, **known}


def _fine_tuned() -> dict[str, str]:
    from bench.models.sources import tuned as model_tuned
    from bench.records.record import label

    found = {}
    for name in model_tuned.names():
        about = model_tuned.training(model_tuned.folder_of(name) or Path())
        found[name] = f"fine-tuned with {label(about['method'], about['budget'])}"
    return found


def load(
    name: str,
    *,
    random_weights: bool = False,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    backend: str = "sdpa",
    seed: int = 0,
) -> Loaded:
    """Return the model called `name`, in eval mode.

    Args:
        name: see the module's first lines.
        random_weights: build from the shape alone, with weights drawn from `seed`.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16", "float16" or a torch dtype.
        backend: attention backend, "sdpa" or "eager".
        seed: of random weights.

    Raises:
        BenchError: unknown name, weights that are missing, broken or out of reach, or a model that
            no adapter covers; the message names the fix.
    """
    from bench.models import loading
    from bench.models.sources import embedded as model_embedded
    from bench.models.sources import hf, timm
    from bench.models.sources import tuned as model_tuned

    check_name(name, random_weights)
    parsed = parse(name)
    match parsed.kind, parsed.path:
        case "tuned", Path() as folder:
            loaded = model_tuned.load(name, folder, random_weights, seed)
        case "embedded", _:
            loaded = model_embedded.load(name, random_weights, seed)
        case "timm", file:
            loaded = timm.load(name, parsed.base, file, random_weights, seed)
        case _, folder:
            source = str(folder or parsed.base)
            loaded = hf.load(name, source, random_weights, seed)
    return loading.finish(loaded, device, dtype, backend)


def fingerprint(name: str, *, random_weights: bool = False, seed: int = 0) -> str | None:
    """Return the sha256 of the weights without loading them, or None when only `load` can tell.

    Raises:
        BenchError: a weights file is missing or truncated.
    """
    if random_weights:
        return hashlib.sha256(f"random {name} {seed}".encode()).hexdigest()
    from bench.models.sources import embedded as model_embedded
    from bench.models.sources import tuned as model_tuned

    parsed = parse(name)
    match parsed.kind, parsed.path:
        case "embedded", _:
            return hash_files(model_embedded.files(name))
        case "tuned", Path() as folder:
            return model_tuned.sha256(folder)
        case "timm", Path() as file:
            return hash_files([file])
        case "folder", Path() as folder:
            return hash_files(weight_files(folder))
    return None


def type_of(name: str) -> str:
    """Return the model type in a Hugging Face configuration, "" where there is none here."""
    from bench.assets import embedded
    from bench.models.loading import read_json
    from bench.models.sources import embedded as model_embedded
    from bench.models.sources import tuned as model_tuned

    parsed = parse(name)
    match parsed.kind, parsed.path:
        case "tuned", Path() as tuned:
            return type_of(str(model_tuned.training(tuned)["model"]))
        case "embedded", _ if name in model_embedded.FOLDERS:
            file = embedded.path(model_embedded.FOLDERS[name]) / "config.json"
        case "folder", Path() as folder:
            file = folder / "config.json"
        case "hub", _:
            known = shape(parsed.base)
            if known is not None:
                return str(known["model_type"])
            file = _cached_config(parsed.base)
        case _:
            return ""
    return str(read_json(file).get("model_type", "")) if file.is_file() else ""


def _cached_config(hub_id: str) -> Path:
    """Return where the hub's cache has a model's configuration; a path to no file if it has not."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    return Path(cached if isinstance(cached, str) else "")


def learned(name: str) -> dict[str, Path]:
    """Return the files with what methods learned with this model (none for most), by method."""
    from bench.models.sources import embedded as model_embedded
    from bench.models.sources import tuned as model_tuned

    parsed = parse(name)
    if parsed.kind == "tuned" and parsed.path:
        return model_tuned.learned(parsed.path)
    return model_embedded.learned(name) if parsed.kind == "embedded" else {}
