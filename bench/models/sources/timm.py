"""Models of timm: by name, from a weights file, or from a folder that timm wrote."""

from __future__ import annotations

from pathlib import Path

from bench.core.errors import BenchError
from bench.models.files import hash_files, weight_files
from bench.models.loaded import Loaded
from bench.models.loading import fetching, quiet, read_json
from bench.models.tensors import checked, fill


def load(name: str, bare: str, file: Path | None, random_weights: bool, seed: int) -> Loaded:
    """Return a timm model: random, from `file`, or with its published weights."""
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    if file is None or random_weights:
        with quiet(), fetching(name, "timm", random_weights), checked(f"checkpoint {name}"):
            torch.manual_seed(seed)
            model = timm.create_model(bare, pretrained=not random_weights)
    else:
        model = timm.create_model(bare, pretrained=False)
        fill(model, file)
    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    source = "random" if random_weights else ("path" if file else f"hub:timm/{bare}")
    return Loaded(
        name=name,
        model=model,
        kind="classifier" if getattr(model, "num_classes", 0) else "encoder",
        image_size=(height, width),
        channels=channels,
        transform=create_transform(**config, is_training=False),
        image_argument="x",
        classes=int(getattr(model, "num_classes", 0)),
        provenance={"weights": source, "card": None},
    )


def from_folder(name: str, folder: Path, random_weights: bool, seed: int) -> Loaded:
    """Return a model that timm's `save_for_hf` wrote to a folder."""
    import timm
    import torch

    config = read_json(folder / "config.json")
    bare = config.get("architecture")
    if not isinstance(bare, str) or not timm.is_model(bare):
        raise BenchError(f"{folder}/config.json names no model of transformers or timm")
    if random_weights:
        torch.manual_seed(seed)
    model = timm.create_model(
        bare,
        pretrained=False,
        num_classes=config.get("num_classes", 1000),
        **config.get("model_args", {}),
    )
    if not random_weights:
        fill(model, weight_files(folder)[-1])
    size = (config.get("pretrained_cfg") or {}).get("input_size") or (
        model.patch_embed.proj.in_channels,
        *model.patch_embed.img_size,
    )
    from timm.data import create_transform, resolve_model_data_config

    data = {**resolve_model_data_config(model), "input_size": tuple(size)}
    return Loaded(
        name=name,
        model=model,
        kind="classifier" if model.num_classes else "encoder",
        image_size=(size[1], size[2]),
        channels=size[0],
        transform=create_transform(**data, is_training=False),
        image_argument="x",
        classes=int(model.num_classes),
        provenance={
            "weights": "random" if random_weights else "path",
            "card": None,
            "sha256": None if random_weights else hash_files(weight_files(folder)),
        },
    )
