"""Models of transformers: which class makes one, of which kind it is, and what feeds it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.engine.families import adapter_for
from bench.engine.families.blip import heed_padding
from bench.engine.families.t5 import padding_side
from bench.models import blip, joint, multimodal, vilt
from bench.models.loaded import Classifier, Encoder, Loaded, Matcher, Reader, TwoTower
from bench.models.loading import quiet
from bench.models.shapes import shape

JOINT = {**blip.KINDS, **vilt.KINDS}  # by architecture, which the configuration names


def speaks(model_type: str) -> bool:
    """Whether a type of transformers is a language model that sees, BLIP and ViLT excepted."""
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return model_type in known and model_type not in joint.TYPES


def family_of(model_type: str) -> str:
    """Return the family of a type of transformers, of `records.sources.FAMILIES`; "" of none."""
    if not model_type or model_type in joint.TYPES:
        return model_type
    return "multimodal" if speaks(model_type) else "encoders"


def configuration(where: str, on_disk: bool, built_in: bool) -> Any:
    """Return the configuration: the built-in shape if there is one and it will do, else its own."""
    import transformers

    values = copy.deepcopy(shape(where)) if built_in else None
    if values is None:
        return transformers.AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=on_disk
        )
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    if config.model_type == "clip":
        config.text_config.projection_dim = config.projection_dim
        config.vision_config.projection_dim = config.projection_dim
    return config


def class_for(name: str, config: Any) -> Any:
    """Return the class that makes a model, the automatic one where the task is no matter.

    Raises:
        BenchError: no adapter covers it; looked at on the meta device, without weights.
    """
    import transformers

    if config.model_type in joint.TYPES:
        for architecture in config.architectures or []:
            if architecture in JOINT:
                return getattr(transformers, architecture)
        named = config.architectures or "no named architecture"
        raise BenchError(
            f"{name} is a {config.model_type} with {named}: supported are {', '.join(JOINT)}; "
            "name one under 'architectures' in its config.json"
        )
    if speaks(config.model_type):
        auto = transformers.AutoModelForImageTextToText
    elif any(a.endswith("ImageClassification") for a in config.architectures or []):
        auto = transformers.AutoModelForImageClassification
    elif "DeiTForImageClassificationWithTeacher" in (config.architectures or []):
        auto = transformers.DeiTForImageClassificationWithTeacher  # with both of its heads
    else:
        auto = transformers.AutoModel
    with torch.device("meta"):
        model = build(auto, copy.deepcopy(config))
    adapter_for(model).towers(model)
    return auto


def build(auto: Any, config: Any, **settings: Any) -> nn.Module:
    """Return a model of a class, with random weights."""
    make = getattr(auto, "from_config", None) or auto._from_config
    model: nn.Module = make(config, **settings)
    return model


def describe(
    name: str, model: Any, provenance: dict[str, Any], where: str | None, on_disk: bool = True
) -> Loaded:
    """Read from a model's configuration of which kind it is and how it is fed.

    Args:
        name: as the user typed it.
        model: of transformers.
        provenance: see `Loaded`.
        where: folder or id with what was saved to feed it; None: look for nothing.
        on_disk: look at no hub.
    """
    family, saved = model.config.model_type, partial(_saved, where=where, on_disk=on_disk)
    with quiet():
        if speaks(family):
            side = padding_side(model)
            return multimodal.describe(name, model, provenance, _processor(saved, side))
        vision = getattr(model.config, "vision_config", model.config)
        fields: dict[str, Any] = {
            "name": name,
            "model": model,
            "image_size": joint.image_size(vision),
            "channels": int(getattr(vision, "num_channels", 3)),
            "provenance": provenance,
        }
        if family in joint.TYPES:  # their texts are read from the start
            return _joint(fields, _processor(saved, "right"))
        fields["transform"] = _transform(saved("AutoImageProcessor"))
        words = saved("AutoTokenizer")
    text = getattr(model.config, "text_config", None)
    if text is not None:
        return TwoTower(
            **fields,
            tokenizer=_tokenizer(words),
            text_length=int(text.max_position_embeddings),
            vocabulary=int(text.vocab_size),
            end_token=getattr(text, "eos_token_id", None),
        )
    if "ForImageClassification" in type(model).__name__:
        return Classifier(**fields, classes=int(model.config.num_labels))
    return Encoder(**fields)


def _joint(fields: dict[str, Any], processor: Any) -> Loaded:
    model = fields["model"]
    architecture = type(model).__name__
    kind = JOINT[architecture]
    if architecture == "BlipForQuestionAnswering":  # its answers read padded questions
        heed_padding(model.text_decoder.bert)
    if processor is not None and issubclass(kind, Matcher):
        fields["transform"] = _transform(processor.image_processor)
        fields["tokenizer"] = blip.caption_tokenizer(model, processor)
    elif issubclass(kind, Reader):
        fields["processor"] = processor
    return kind(**fields)


# --- what is saved beside a model to feed it -----------------------------------------------------


def _saved(auto: str, where: str | None, on_disk: bool) -> Any:
    """Return what an automatic class of transformers reads there; None where files are missing."""
    import transformers

    with contextlib.suppress(OSError, ValueError, ImportError, KeyError, AttributeError):
        return where and getattr(transformers, auto).from_pretrained(
            where, trust_remote_code=False, local_files_only=on_disk
        )
    return None


def _processor(saved: Callable[[str], Any], padding_side: str) -> Any:
    processor = saved("AutoProcessor")
    words = getattr(processor, "tokenizer", None)
    if words is None or not _knows_words(words):
        return None
    words.padding_side = padding_side
    words.pad_token = words.pad_token or words.eos_token
    return processor


def _knows_words(tokenizer: Any) -> bool:
    """Whether a tokenizer was read from files: without any it comes with special tokens alone."""
    return len(tokenizer) > len(tokenizer.all_special_ids)


def _tokenizer(words: Any) -> Callable[[list[str]], Mapping[str, Tensor]] | None:
    """Return a function: texts -> ids and mask (B,L), padded to full length.

    SigLIP was trained on texts so padded; CLIP ignores padding.
    """
    if words is None or not _knows_words(words):
        return None
    settings = {"padding": "max_length", "truncation": True, "return_token_type_ids": False}
    return partial(words, return_tensors="pt", **settings)


def _transform(images: Any) -> Callable[[Any], Tensor] | None:
    """Return a function of an image processor: PIL image -> (C,H,W)."""

    def transform(image: Any) -> Tensor:
        pixels: Tensor = images(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return None if images is None else transform
