"""Models of timm: `timm:NAME`, `timm:NAME@FILE`, or a folder that timm wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from bench.core.errors import BenchError, near_miss
from bench.models.catalogue import Source
from bench.models.files import folder_named, hash_files, read_mapping, weight_files
from bench.models.loaded import Classifier, Encoder, Loaded
from bench.models.loading import fetching, quiet
from bench.models.tensors import checked, fill

KINDS = ("*vit*", "*deit*", "eva*", "beit*")  # of names that are near misses


@dataclass(frozen=True)
class Timm(Source):
    """A model by timm's own name, `model`, with the weights in `file` or timm's."""

    model: str
    file: Path | None

    precedence = 30

    @classmethod
    def take(cls, name: str) -> Self | None:
        scheme, _, rest = name.partition(":")
        if scheme != "timm":
            return None
        model, at, file = rest.partition("@")
        if at and not file:
            raise BenchError(f"'{name}' names no file behind its @: give timm:NAME@FILE")
        return cls(name, model, Path(file).expanduser() if at else None)

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        about = "timm's vit*, deit*, eva*, beit*; timm:NAME@FILE takes its weights from a file"
        return {"timm:NAME": about}

    def check(self, random_weights: bool = False) -> None:
        import timm

        if not timm.is_model(self.model):
            known = [name for kind in KINDS for name in timm.list_models(kind)]
            hint = near_miss(self.model, known)
            raise BenchError(f"unknown timm model '{self.model}'{hint}")
        try:
            timm.models.get_pretrained_cfg(self.model)
        except RuntimeError as error:  # the part behind the dot, which names the weights
            hint = near_miss(self.model, timm.list_pretrained(f"{self.model.partition('.')[0]}.*"))
            raise BenchError(f"unknown timm model '{self.model}'{hint}") from error

    def build(self, random_weights: bool, seed: int) -> Loaded:
        import timm

        here, published = self.file is not None or random_weights, f"checkpoint {self.name}"
        with quiet(), fetching(self.name, "timm", random_weights), checked(published):
            torch.manual_seed(seed)
            model = timm.create_model(self.model, pretrained=not here)
        if self.file is not None and not random_weights:
            fill(model, self.file)
        weights = "path" if self.file else f"hub:timm/{self.model}"
        return describe(self.name, model, {"weights": "random" if random_weights else weights})

    def family(self) -> str:
        return "timm"

    def fingerprint(self) -> str | None:
        return None if self.file is None else hash_files([self.file])


@dataclass(frozen=True)
class TimmFolder(Source):
    """A folder that timm's `save_for_hf` wrote: its configuration has no type of transformers."""

    folder: Path

    precedence = 40

    @classmethod
    def take(cls, name: str) -> Self | None:
        folder = folder_named(name)
        if folder is None or not (folder / "config.json").is_file():
            return None
        return None if "model_type" in read_mapping(folder / "config.json") else cls(name, folder)

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        return {}  # the forms of Hugging Face's names have folders among them

    def check(self, random_weights: bool = False) -> None:
        import timm

        file = self.folder / "config.json"
        architecture = read_mapping(file).get("architecture")
        if not isinstance(architecture, str) or not timm.is_model(architecture):
            raise BenchError(f"{file} names no model of transformers or timm")

    def build(self, random_weights: bool, seed: int) -> Loaded:
        import timm

        config = read_mapping(self.folder / "config.json")
        torch.manual_seed(seed)
        with fetching(self.name, "timm", random_weights, self.folder):
            model = timm.create_model(
                config["architecture"],
                pretrained=False,
                num_classes=config.get("num_classes", 1000),
                **config.get("model_args", {}),
            )
            size = (config.get("pretrained_cfg") or {}).get("input_size") or (
                model.patch_embed.proj.in_channels,
                *model.patch_embed.img_size,
            )
            if not random_weights:
                fill(model, weight_files(self.folder)[-1])
            sha = None if random_weights else self.fingerprint()
            weights = {"weights": "random" if random_weights else "path", "sha256": sha}
            return describe(self.name, model, weights, input_size=tuple(size))

    def family(self) -> str:
        return "timm"

    def fingerprint(self) -> str | None:
        return hash_files(weight_files(self.folder))


def describe(name: str, model: nn.Module, provenance: dict[str, Any], **images: Any) -> Loaded:
    """Return a model of timm with what its configuration, or `images`, says of its images."""
    from timm.data import create_transform, resolve_model_data_config

    config = {**resolve_model_data_config(model), **images}
    channels, height, width = config["input_size"]
    fields: dict[str, Any] = {
        "name": name,
        "model": model,
        "image_size": (height, width),
        "channels": channels,
        "transform": create_transform(**config, is_training=False),
        "image_argument": "x",
        "provenance": provenance,
    }
    classes = int(getattr(model, "num_classes", 0))
    return Classifier(**fields, classes=classes) if classes else Encoder(**fields)
