"""The models that ship with the project: trained here, weights in the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.transforms import Compose, Lambda, Normalize, ToTensor

from bench.assets import embedded
from bench.core.errors import BenchError
from bench.models import huggingface
from bench.models.catalogue import Source
from bench.models.files import check_file, hash_files, read_mapping
from bench.models.loaded import Classifier, Loaded
from bench.models.loading import quiet
from bench.models.sources.hf import HuggingFace
from bench.models.tensors import check, fill, read, shapes

ABOUT = {
    "embedded:vit-fashion": "timm VisionTransformer trained here on Fashion-MNIST",
    "embedded:clip-emoji": "Hugging Face CLIPModel trained here on emoji drawings and their names",
    "embedded:llava-emoji": "small LlavaForConditionalGeneration trained here on scenes of emoji",
    "embedded:blip-vqa-emoji": "small BlipForQuestionAnswering trained here on the same scenes",
    "embedded:blip-caption-emoji": "small BlipForConditionalGeneration, its captions",
    "embedded:blip-match-emoji": "small BlipForImageTextRetrieval, which finds them",
    "embedded:vilt-emoji": "small ViltForImagesAndTextClassification, which judges pairs of them",
}
FOLDERS = {  # as save_pretrained wrote them
    "embedded:clip-emoji": "clip_emoji",
    "embedded:llava-emoji": "llava_emoji",
    "embedded:blip-vqa-emoji": "blip_emoji",
    "embedded:blip-caption-emoji": "blip_emoji",
    "embedded:blip-match-emoji": "blip_emoji",
    "embedded:vilt-emoji": "vilt_emoji",
}
SAVED = (".json", ".jinja", ".safetensors")
# The three BLIPs lie in one folder, with what they share stored once.
COMMON = ("vision_model",)
BLIPS = {
    "vqa": "BlipForQuestionAnswering",
    "caption": "BlipForConditionalGeneration",
    "match": "BlipForImageTextRetrieval",
}


@dataclass(frozen=True)
class Embedded(Source):
    """A model of this project."""

    precedence = 0

    @classmethod
    def take(cls, name: str) -> Self | None:
        return cls(name) if name in ABOUT else None

    @classmethod
    def listing(cls) -> Mapping[str, str]:
        return ABOUT

    def files(self) -> list[Path]:
        """Return the files whose contents make the model.

        Raises:
            BenchError: one is missing or cut short.
        """
        if self.name == "embedded:vit-fashion":
            files = [embedded.path("vit_fashion.safetensors")]
        else:
            files = saved(FOLDERS[self.name])
            if self.name == "embedded:clip-emoji":  # or records that were made would not be known
                files = [file for file in files if file.name != "tokenizer_config.json"]
        for file in files:
            check_file(file)
        return files

    def fingerprint(self) -> str:
        return hash_files(self.files())

    def model_type(self) -> str:
        if self.name not in FOLDERS:
            return ""
        return str(read_mapping(embedded.path(FOLDERS[self.name]) / "config.json")["model_type"])

    def family(self) -> str:
        return huggingface.family_of(self.model_type()) or "timm"

    def learned(self) -> dict[str, Path]:
        folder = embedded.path("learned") / self.name.removeprefix("embedded:")
        return {file.stem: file for file in sorted(folder.glob("*.safetensors"))}

    def build(self, random_weights: bool, seed: int) -> Loaded:
        if not random_weights:
            self.files()
        torch.manual_seed(seed)
        if self.name == "embedded:vit-fashion":
            return _vit_fashion(self.name, random_weights)
        return _folder(self.name, random_weights, seed)


def saved(name: str) -> list[Path]:
    """Return the files that save_pretrained wrote into a folder of the project.

    Raises:
        BenchError: it has no weights.
    """
    folder = embedded.path(name)
    files = sorted(file for file in folder.glob("*") if file.suffix in SAVED)
    if not any(file.suffix == ".safetensors" for file in files):
        raise BenchError(f"{folder} has no weights: clone the project again")
    return files


def provenance(random_weights: bool, card: Path) -> dict[str, Any]:
    """Return where the weights come from, and the file that tells more, if it is there."""
    shown = f"bench/assets/embedded/{card.name}" if card.is_file() else None
    return {"weights": "random" if random_weights else "trained here", "card": shown}


def _vit_fashion(name: str, random_weights: bool) -> Loaded:
    from timm.models.vision_transformer import VisionTransformer

    shape = embedded.VIT_FASHION
    side = shape["img_size"]
    model = VisionTransformer(**shape)
    if not random_weights:
        fill(model, embedded.path("vit_fashion.safetensors"))
    return Classifier(
        name=name,
        model=model,
        image_size=(side, side),
        channels=shape["in_chans"],
        transform=_pixels(side, "L", (embedded.FASHION_MEAN,), (embedded.FASHION_STD,)),
        image_argument="x",
        classes=shape["num_classes"],
        provenance=provenance(random_weights, embedded.path("vit_fashion.md")),
    )


def _folder(name: str, random_weights: bool, seed: int) -> Loaded:
    """Return a model as from any folder that save_pretrained wrote; three BLIPs share one."""
    folder = embedded.path(FOLDERS[name])
    about = provenance(random_weights, folder.with_suffix(".md"))
    if FOLDERS[name] == "blip_emoji":
        with quiet():
            model = unpacked(folder, name.split("-")[1], random_weights)
        return huggingface.describe(name, model, about, None if random_weights else str(folder))
    loaded = HuggingFace(name, str(folder), folder).build(random_weights, seed)
    if name == "embedded:clip-emoji":  # which was saved without an image processor
        side, statistics = loaded.image_size[0], (embedded.EMOJI_MEAN, embedded.EMOJI_STD)
        loaded = replace(loaded, transform=_pixels(side, "RGB", *statistics))
    return replace(loaded, provenance={**loaded.provenance, **about})


def unpacked(folder: Path, which: str, random_weights: bool) -> Any:
    """Return one of the BLIPs "vqa", "caption" and "match" of a folder, in float32."""
    import transformers

    config = transformers.BlipConfig.from_json_file(folder / "config.json")
    model = getattr(transformers, BLIPS[which])(config)
    if random_weights:
        return model
    file = folder / "model.safetensors"
    state = {key.removeprefix(f"{which}."): value for key, value in read(file).items()}
    known = shapes(model.state_dict())
    check(f"weights file {file}", known, shapes(state), surplus=True)
    model.load_state_dict({key: state[key].float() for key in known})
    return model


def _pixels(
    side: int, mode: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Any], Tensor]:
    """Return a transform: PIL image -> (C,side,side) float32, scaled to 0..1 and normalised."""

    def sized(image: Any) -> Any:
        return image.convert(mode).resize((side, side))  # a copy where it has that size

    transform: Callable[[Any], Tensor] = Compose([Lambda(sized), ToTensor(), Normalize(mean, std)])
    return transform
