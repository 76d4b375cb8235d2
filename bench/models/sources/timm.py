"""Models of timm: `timm:NAME`, `timm:NAME@FILE`, or a folder that timm wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.core.errors import BenchError, near_miss
from bench.models.files import hash_files, read_json, weight_files
from bench.models.loaded import Classifier, Encoder, Loaded
from bench.models.names import Source, folder_named

if TYPE_CHECKING:
    from torch import nn

SCHEME = "timm:"


@dataclass(frozen=True)
class Timm(Source):
    """A model by timm's name.

    Attributes:
        model: timm's name.
        file: where its weights are; None: timm's own.
    """

    model: str
    file: Path | None

    precedence = 30

    @classmethod
    def take(cls, name: str) -> Self | None:
        """Take names that begin with `timm:`."""
        if not name.startswith(SCHEME):
            return None
        model, at, file = name.removeprefix(SCHEME).partition("@")
        if at and not file:
            raise BenchError(f"'{name}' names no file behind its @: give timm:NAME@FILE")
        return cls(name, model, Path(file).expanduser() if at else None)

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        """Return the form of such a name."""
        about = "any timm VisionTransformer; timm:NAME@FILE takes its weights from a file"
        return {"timm:NAME": about}

    def check(self, random_weights: bool = False) -> None:
        """See that timm has the model and, where the name says which, the weights."""
        import timm

        if not timm.is_model(self.model):
            hint = near_miss(self.model, timm.list_models("*vit*") + timm.list_models("*deit*"))
            raise BenchError(f"unknown timm model '{self.model}'{hint}")
        try:
            timm.models.get_pretrained_cfg(self.model)
        except RuntimeError as error:  # the part behind the dot, which names the weights
            hint = near_miss(self.model, timm.list_pretrained(f"{self.model.partition('.')[0]}.*"))
            raise BenchError(f"unknown timm model '{self.model}'{hint}") from error

    def build(self, random_weights: bool, seed: int) -> Loaded:
        """Return the model: random, from the file, or with its published weights."""
        import timm
        import torch

        from bench.models.loading import fetching, quiet
        from bench.models.tensors import checked, fill

        if self.file is None or random_weights:
            with (
                quiet(),
                fetching(self.name, "timm", random_weights),
                checked(f"checkpoint {self.name}"),
            ):
                torch.manual_seed(seed)
                model = timm.create_model(self.model, pretrained=not random_weights)
        else:
            model = timm.create_model(self.model, pretrained=False)
            fill(model, self.file)
        source = "path" if self.file else f"hub:timm/{self.model}"
        return describe(self.name, model, {"weights": "random" if random_weights else source})

    def fingerprint(self) -> str | None:
        """Return the hash of the file."""
        return None if self.file is None else hash_files([self.file])


@dataclass(frozen=True)
class TimmFolder(Source):
    """A model that timm's `save_for_hf` wrote to a folder."""

    folder: Path

    precedence = 31

    @classmethod
    def take(cls, name: str) -> Self | None:
        """Take folders whose configuration names no model of transformers."""
        folder = folder_named(name)
        if folder is None or not (folder / "config.json").is_file():
            return None
        return None if "model_type" in read_json(folder / "config.json") else cls(name, folder)

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        """Return nothing: it is one of the folders that transformers' listing names."""
        return {}

    def build(self, random_weights: bool, seed: int) -> Loaded:
        """Return the model that the configuration names."""
        import timm
        import torch

        from bench.models.tensors import fill

        config = read_json(self.folder / "config.json")
        architecture = config.get("architecture")
        if not isinstance(architecture, str) or not timm.is_model(architecture):
            raise BenchError(f"{self.folder}/config.json names no model of transformers or timm")
        if random_weights:
            torch.manual_seed(seed)
        model = timm.create_model(
            architecture,
            pretrained=False,
            num_classes=config.get("num_classes", 1000),
            **config.get("model_args", {}),
        )
        if not random_weights:
            fill(model, weight_files(self.folder)[-1])
        size = (config.get("pretrained_cfg") or {}).get("input_size") or (
            model.patch_embed.proj.in_channels,
            *model.patch_embed.img_size,
        )
        return describe(
            self.name,
            model,
            {
                "weights": "random" if random_weights else "path",
                "sha256": None if random_weights else self.fingerprint(),
            },
            input_size=tuple(size),
        )

    def fingerprint(self) -> str | None:
        """Return the hash of configuration and weights."""
        return hash_files(weight_files(self.folder))


def describe(name: str, model: nn.Module, provenance: dict[str, Any], **data_config: Any) -> Loaded:
    """Return a model of timm with what its configuration says of images.

    Args:
        name: as the user typed it.
        model: built by timm.
        provenance: see `Loaded`.
        **data_config: what is known better than by timm, such as `input_size`.
    """
    from timm.data import create_transform, resolve_model_data_config

    config = {**resolve_model_data_config(model), **data_config}
    channels, height, width = config["input_size"]
    common: dict[str, Any] = {
        "name": name,
        "model": model,
        "image_size": (height, width),
        "channels": channels,
        "transform": create_transform(**config, is_training=False),
        "image_argument": "x",
        "provenance": provenance,
    }
    classes = int(getattr(model, "num_classes", 0))
    return Classifier(**common, classes=classes) if classes else Encoder(**common)
