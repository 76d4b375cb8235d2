"""Models of Hugging Face: from a folder, the hub or its cache, or by their shape alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.models import joint, multimodal
from bench.models.files import check_file, hash_files, weight_files
from bench.models.loaded import Loaded
from bench.models.loading import fetching, hub_answers, quiet, read_json
from bench.models.shapes import shape
from bench.models.sources import timm
from bench.models.tensors import from_pretrained

if TYPE_CHECKING:
    from torch import Tensor

HF_TYPES = ("clip", "siglip", "vit", "dinov2", "deit")


def load(name: str, source: str, random_weights: bool, seed: int) -> Loaded:
    """Return a Hugging Face model from a folder, the hub or its cache, or by its shape alone."""
    import torch

    folder = Path(source).expanduser()
    local = folder.is_dir()
    where = str(folder) if local else source
    known = random_weights and shape(where) is not None
    on_disk = local or known or not hub_answers()
    if local and "model_type" not in read_json(folder / "config.json"):
        return timm.from_folder(name, folder, random_weights, seed)
    with quiet(), fetching(name, "Hugging Face", random_weights):
        config = _config(where, on_disk, random_weights and not local)
        auto = _class_for(name, config)
        if random_weights:
            torch.manual_seed(seed)
            build = getattr(auto, "from_config", None) or auto._from_config
            model = build(config, attn_implementation=_attention(config))
        else:
            if local:
                for file in weight_files(folder):
                    check_file(file)
            model = from_pretrained(
                auto,
                where,
                config=config,
                attn_implementation=_attention(config),
                dtype="auto" if _answers(config) else torch.float32,
                trust_remote_code=False,
                local_files_only=on_disk,
            )
    source_name = "random" if random_weights else ("path" if local else f"hub:{source}")
    sha = hash_files(weight_files(folder)) if local and not random_weights else None
    provenance = {"weights": source_name, "card": None, "sha256": sha}
    with quiet():
        if _answers(config):
            processor = None if random_weights else multimodal.processor_of(where, on_disk)
            return multimodal.describe(name, model, provenance, processor)
        if config.model_type in joint.TYPES:
            processor = None if random_weights else joint.processor_of(where, on_disk)
            return joint.describe(name, model, provenance, processor)
        feeds = {} if random_weights else _processors(where, on_disk)
    return _describe(name, model, provenance, feeds)


def _answers(config: Any) -> bool:
    return config.model_type in multimodal.TYPES


def _attention(config: Any) -> str:
    """The attention backend to build a model with."""
    return joint.ATTENTION if config.model_type in joint.TYPES else "sdpa"


def _class_for(name: str, config: Any) -> Any:
    """Return the class that makes this model, the automatic one where the task is no matter.

    Raises:
        BenchError: no adapter covers it.
    """
    import transformers

    if _answers(config):
        multimodal.check(config)
        return transformers.AutoModelForImageTextToText
    if config.model_type in joint.TYPES:
        return joint.class_for(name, config)
    if config.model_type not in HF_TYPES:
        raise BenchError(
            f"model type '{config.model_type}' of {name} is not supported: "
            f"known are {', '.join((*HF_TYPES, *joint.TYPES, *multimodal.TYPES))}"
        )
    if any("ImageClassification" in a for a in config.architectures or []):
        return transformers.AutoModelForImageClassification
    return transformers.AutoModel


def _config(where: str, on_disk: bool, built_in: bool) -> Any:
    """Return the configuration: the built-in shape if there is one and it will do, else its own."""
    import transformers

    values = shape(where) if built_in else None
    if values is None:
        return transformers.AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=on_disk
        )
    values = dict(values)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    if config.model_type == "clip":
        config.text_config.projection_dim = config.projection_dim
        config.vision_config.projection_dim = config.projection_dim
    return config


def _describe(name: str, model: Any, provenance: dict[str, Any], feeds: dict[str, Any]) -> Loaded:
    """Read from an HF model's configuration how it is to be fed."""
    config = model.config
    vision = getattr(config, "vision_config", config)
    text = getattr(config, "text_config", None)
    size = vision.image_size
    classifier = type(model).__name__.endswith("ForImageClassification")
    return Loaded(
        name=name,
        model=model,
        kind="two-tower" if text is not None else "classifier" if classifier else "encoder",
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        channels=int(getattr(vision, "num_channels", 3)),
        text_length=int(text.max_position_embeddings) if text is not None else 0,
        vocabulary=int(text.vocab_size) if text is not None else 0,
        end_token=getattr(text, "eos_token_id", None),
        classes=int(config.num_labels) if classifier else 0,
        provenance=provenance,
        **feeds,
    )


def _processors(where: str, on_disk: bool) -> dict[str, Any]:
    """Return the image transform and the tokenizer that were saved beside a model, if any."""
    import transformers

    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, ImportError):
        images = transformers.AutoImageProcessor.from_pretrained(
            where, trust_remote_code=False, local_files_only=on_disk
        )

        def transform(image: Any) -> Tensor:
            pixels: Tensor = images(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            return pixels

        found["transform"] = transform
    with contextlib.suppress(OSError, ValueError, ImportError, KeyError):
        words = transformers.AutoTokenizer.from_pretrained(
            where, trust_remote_code=False, local_files_only=on_disk
        )

        def tokenizer(texts: list[str]) -> dict[str, Tensor]:
            # SigLIP was trained on texts padded to full length; CLIP ignores padding.
            return dict(words(texts, padding="max_length", truncation=True, return_tensors="pt"))

        if multimodal.knows_words(words):  # without its files it has no words
            found["tokenizer"] = tokenizer
    return found
